(** Finite sums over lists of indices, Euclidean norms, and what the theorems use of them.

    A sum of the pages over i in I is [sum I f], with [I] a list of indices of any type; a vector is a function
    from indices to reals, a matrix a function of two. Nothing here is specific to a theorem. *)

From Coq Require Import Reals List Permutation Arith Lia Lra Psatz.
Import ListNotations.
Open Scope R_scope.

Set Implicit Arguments.

Fixpoint sum (A : Type) (l : list A) (f : A -> R) : R :=
  match l with
  | [] => 0
  | a :: rest => f a + sum rest f
  end.

Lemma sum_ext (A : Type) (l : list A) (f g : A -> R) :
  (forall a, In a l -> f a = g a) -> sum l f = sum l g.
Proof.
  induction l as [|a l IH]; intros same; simpl; [reflexivity|].
  rewrite same by now left. rewrite IH; [reflexivity|]. intros b inside. apply same. now right.
Qed.

Lemma sum_le (A : Type) (l : list A) (f g : A -> R) :
  (forall a, In a l -> f a <= g a) -> sum l f <= sum l g.
Proof.
  induction l as [|a l IH]; intros below; simpl; [lra|].
  apply Rplus_le_compat; [apply below; now left|].
  apply IH. intros b inside. apply below. now right.
Qed.

Lemma sum_zero (A : Type) (l : list A) : sum l (fun _ => 0) = 0.
Proof. induction l; simpl; lra. Qed.

Lemma sum_nonneg (A : Type) (l : list A) (f : A -> R) :
  (forall a, In a l -> 0 <= f a) -> 0 <= sum l f.
Proof. intros above. rewrite <- (sum_zero l). now apply sum_le. Qed.

Lemma sum_plus (A : Type) (l : list A) (f g : A -> R) :
  sum l (fun a => f a + g a) = sum l f + sum l g.
Proof. induction l; simpl; lra. Qed.

Lemma sum_minus (A : Type) (l : list A) (f g : A -> R) :
  sum l (fun a => f a - g a) = sum l f - sum l g.
Proof. induction l; simpl; lra. Qed.

Lemma sum_opp (A : Type) (l : list A) (f : A -> R) : sum l (fun a => - f a) = - sum l f.
Proof. induction l; simpl; lra. Qed.

Lemma sum_scal (A : Type) (l : list A) (c : R) (f : A -> R) : sum l (fun a => c * f a) = c * sum l f.
Proof. induction l; simpl; lra. Qed.

Lemma sum_scal_r (A : Type) (l : list A) (c : R) (f : A -> R) : sum l (fun a => f a * c) = sum l f * c.
Proof. induction l; simpl; lra. Qed.

Lemma sum_swap (A B : Type) (l : list A) (k : list B) (f : A -> B -> R) :
  sum l (fun a => sum k (fun b => f a b)) = sum k (fun b => sum l (fun a => f a b)).
Proof.
  induction l as [|a l IH]; simpl; [now rewrite sum_zero|].
  now rewrite IH, <- sum_plus.
Qed.

Lemma sum_Rabs (A : Type) (l : list A) (f : A -> R) : Rabs (sum l f) <= sum l (fun a => Rabs (f a)).
Proof.
  induction l as [|a l IH]; simpl; [rewrite Rabs_R0; lra|].
  eapply Rle_trans; [apply Rabs_triang|]. lra.
Qed.

Lemma Rabs_between (x c : R) : Rabs x <= c -> - c <= x <= c.
Proof. intros small. pose proof (Rle_abs x). pose proof (Rle_abs (- x)) as other. rewrite Rabs_Ropp in other. lra. Qed.

Lemma exp_monotone x y : x <= y -> exp x <= exp y.
Proof. intros [less | ->]; [left; now apply exp_increasing | apply Rle_refl]. Qed.

Lemma sum_term_le (A : Type) (l : list A) (f : A -> R) (a : A) :
  (forall b, In b l -> 0 <= f b) -> In a l -> f a <= sum l f.
Proof.
  induction l as [|b l IH]; intros above inside; simpl; [destruct inside|].
  assert (0 <= sum l f) by (apply sum_nonneg; intros c inner; apply above; now right).
  destruct inside as [<- | inside]; [lra|].
  assert (0 <= f b) by (apply above; now left).
  assert (f a <= sum l f) by (apply IH; [intros c inner; apply above; now right | exact inside]). lra.
Qed.

(** Only the indices that satisfy a condition count. *)

Definition where_ (c : bool) (x : R) : R := if c then x else 0.

Lemma where_split (c : bool) (x : R) : x = where_ c x + where_ (negb c) x.
Proof. destruct c; unfold where_; simpl; lra. Qed.

(** Cauchy-Schwarz, for any three numbers that behave like |a|^2, |b|^2 and <a, b>. *)

Lemma cauchy_schwarz_numbers (a2 b2 ab : R) :
  0 <= a2 -> 0 <= b2 -> (forall t, 0 <= a2 - 2 * t * ab + t * t * b2) -> ab <= sqrt a2 * sqrt b2.
Proof.
  intros a_nonneg b_nonneg form. rewrite <- sqrt_mult by assumption.
  assert (square : ab * ab <= a2 * b2).
  { destruct (Req_dec b2 0) as [-> | nonzero].
    - destruct (Req_dec ab 0) as [-> | other]; [lra|].
      specialize (form ((a2 + 1) / (2 * ab))).
      replace (a2 - 2 * ((a2 + 1) / (2 * ab)) * ab + (a2 + 1) / (2 * ab) * ((a2 + 1) / (2 * ab)) * 0)
        with (-1) in form by (now field). lra.
    - specialize (form (ab / b2)).
      replace (a2 - 2 * (ab / b2) * ab + ab / b2 * (ab / b2) * b2) with ((a2 * b2 - ab * ab) / b2) in form
        by (now field).
      assert (0 < b2) by lra.
      assert (0 <= (a2 * b2 - ab * ab) / b2 * b2) by (apply Rmult_le_pos; lra).
      replace ((a2 * b2 - ab * ab) / b2 * b2) with (a2 * b2 - ab * ab) in * by (now field). lra. }
  destruct (Rle_dec ab 0) as [negative | positive].
  - eapply Rle_trans; [exact negative | apply sqrt_pos].
  - rewrite <- (sqrt_square ab) by lra. apply sqrt_le_1_alt. exact square.
Qed.

Definition dot (A : Type) (l : list A) (v w : A -> R) : R := sum l (fun a => v a * w a).

Definition norm (A : Type) (l : list A) (v : A -> R) : R := sqrt (dot l v v).

Lemma dot_self_nonneg (A : Type) (l : list A) (v : A -> R) : 0 <= dot l v v.
Proof. apply sum_nonneg. intros a _. nra. Qed.

Lemma cauchy_schwarz (A : Type) (l : list A) (v w : A -> R) : dot l v w <= norm l v * norm l w.
Proof.
  apply cauchy_schwarz_numbers; try apply dot_self_nonneg. intros t.
  replace (dot l v v - 2 * t * dot l v w + t * t * dot l w w)
    with (dot l (fun a => v a - t * w a) (fun a => v a - t * w a)).
  - apply dot_self_nonneg.
  - unfold dot. rewrite <- !sum_scal, <- sum_minus, <- sum_plus.
    apply sum_ext. intros a _. ring.
Qed.

Lemma norm_nonneg (A : Type) (l : list A) (v : A -> R) : 0 <= norm l v.
Proof. apply sqrt_pos. Qed.

Lemma norm_squared (A : Type) (l : list A) (v : A -> R) : norm l v * norm l v = dot l v v.
Proof. apply sqrt_sqrt, dot_self_nonneg. Qed.

Lemma norm_ext (A : Type) (l : list A) (v w : A -> R) :
  (forall a, In a l -> v a = w a) -> norm l v = norm l w.
Proof.
  intros same. unfold norm, dot. f_equal. apply sum_ext. intros a inside. now rewrite same.
Qed.

Lemma norm_triangle (A : Type) (l : list A) (v w : A -> R) :
  norm l (fun a => v a + w a) <= norm l v + norm l w.
Proof.
  pose proof (norm_nonneg l v). pose proof (norm_nonneg l w).
  unfold norm at 1. rewrite <- (sqrt_square (norm l v + norm l w)) by lra. apply sqrt_le_1_alt.
  replace (dot l (fun a => v a + w a) (fun a => v a + w a))
    with (dot l v v + 2 * dot l v w + dot l w w).
  - pose proof (cauchy_schwarz l v w). pose proof (norm_squared l v). pose proof (norm_squared l w). nra.
  - unfold dot. rewrite <- sum_scal, <- !sum_plus. apply sum_ext. intros a _. ring.
Qed.

Lemma Rabs_le_norm (A : Type) (l : list A) (v : A -> R) (a : A) : In a l -> Rabs (v a) <= norm l v.
Proof.
  intros inside. rewrite <- sqrt_Rsqr_abs. apply sqrt_le_1_alt. unfold Rsqr, dot.
  apply (sum_term_le l (fun b => v b * v b)); [intros b _; nra | exact inside].
Qed.

Lemma sum_app (A : Type) (l k : list A) (f : A -> R) : sum (l ++ k) f = sum l f + sum k f.
Proof. induction l; simpl; lra. Qed.

Lemma sum_concat (A : Type) (groups : list (list A)) (f : A -> R) :
  sum (concat groups) f = sum groups (fun group => sum group f).
Proof. induction groups as [|group groups IH]; simpl; [reflexivity|]. now rewrite sum_app, IH. Qed.

Lemma sum_map (A B : Type) (h : A -> B) (l : list A) (f : B -> R) : sum (map h l) f = sum l (fun a => f (h a)).
Proof. induction l; simpl; lra. Qed.

Lemma sum_permutation (A : Type) (l k : list A) (f : A -> R) : Permutation l k -> sum l f = sum k f.
Proof. induction 1; simpl; lra. Qed.

(** Entries of a matrix, and entries in a set and outside of it. *)

Definition entry (A B : Type) (f : A -> B -> R) (ab : A * B) : R := f (fst ab) (snd ab).

Lemma sum_pairs (A B : Type) (l : list A) (k : list B) (f : A * B -> R) :
  sum (list_prod l k) f = sum l (fun a => sum k (fun b => f (a, b))).
Proof.
  induction l as [|a l IH]; simpl; [reflexivity|]. now rewrite sum_app, sum_map, IH.
Qed.

Lemma sum_filter (A : Type) (c : A -> bool) (l : list A) (f : A -> R) :
  sum (filter c l) f = sum l (fun a => where_ (c a) (f a)).
Proof. induction l as [|a l IH]; simpl; [reflexivity|]. unfold where_ in *. destruct (c a); simpl; lra. Qed.

Lemma sum_partition (A : Type) (c : A -> bool) (l : list A) (f : A -> R) :
  sum l f = sum (filter c l) f + sum (filter (fun a => negb (c a)) l) f.
Proof.
  rewrite !sum_filter, <- sum_plus. apply sum_ext. intros a _. apply where_split.
Qed.

(** How many indices of a list are in a set. *)
Definition count (A : Type) (l : list A) (S : A -> bool) : R := sum l (fun a => where_ (S a) 1).

(** Products, and the recursion that every bound of a network solves. *)

Fixpoint prod_of (A : Type) (l : list A) (f : A -> R) : R :=
  match l with
  | [] => 1
  | a :: rest => f a * prod_of rest f
  end.

Lemma prod_of_app (A : Type) (l k : list A) (f : A -> R) : prod_of (l ++ k) f = prod_of l f * prod_of k f.
Proof. induction l; simpl; [lra|]. rewrite IHl. ring. Qed.

Lemma prod_of_nonneg (A : Type) (l : list A) (f : A -> R) : (forall a, In a l -> 0 <= f a) -> 0 <= prod_of l f.
Proof.
  induction l as [|a l IH]; intros above; simpl; [lra|].
  apply Rmult_le_pos; [apply above; now left | apply IH; intros b inside; apply above; now right].
Qed.

(** The sum over l < n of e l times the product of c k over l < k < n. *)
Definition accumulated (n : nat) (e c : nat -> R) : R :=
  sum (seq 0 n) (fun l => e l * prod_of (seq (S l) (n - S l)) c).

Lemma accumulated_step n e c : accumulated (S n) e c = c n * accumulated n e c + e n.
Proof.
  unfold accumulated. rewrite seq_S, sum_app. simpl sum. rewrite Nat.sub_diag. simpl prod_of.
  rewrite <- sum_scal, (sum_ext (seq 0 n) _ (fun l => c n * (e l * prod_of (seq (S l) (n - S l)) c))); [lra|].
  intros l inside. apply in_seq in inside. replace (n - l)%nat with (S (n - S l)) by lia.
  rewrite seq_S, prod_of_app. simpl prod_of. replace (S (l + (n - S l))) with n by lia. ring.
Qed.

Lemma recursion n (D e c : nat -> R) :
  D O <= 0 -> (forall l, (l < n)%nat -> 0 <= c l) -> (forall l, (l < n)%nat -> D (S l) <= c l * D l + e l) ->
  D n <= accumulated n e c.
Proof.
  intros start nonneg step.
  assert (forall l, (l <= n)%nat -> D l <= accumulated l e c) as all; [|now apply all].
  induction l as [|l IH]; intros within; [exact start|].
  rewrite accumulated_step. eapply Rle_trans; [apply step; lia|].
  apply Rplus_le_compat_r, Rmult_le_compat_l; [apply nonneg; lia | apply IH; lia].
Qed.
