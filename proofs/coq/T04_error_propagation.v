(** T04: propagation of layer errors through a network. The steps named in comments are those of
    T04-error-propagation.md. A vector is a function on the entries of a list; the samples are part of the entry. *)

From Coq Require Import Reals List Arith Lia Lra Psatz.
From OptPrune Require Import Sums.
Import ListNotations.
Open Scope R_scope.

Definition minus {A : Type} (x y : A -> R) : A -> R := fun a => x a - y a.

Lemma norm_insert {A : Type} (l : list A) (x y z : A -> R) :
  norm l (minus x z) <= norm l (minus x y) + norm l (minus y z).
Proof.
  eapply Rle_trans; [|apply norm_triangle]. right. apply norm_ext. intros a _. unfold minus. ring.
Qed.

(** A linear map, where it matters: differences go through it, and [gain] is at least its operator norm. *)
Definition linear {A B : Type} (k : list B) (W : (A -> R) -> B -> R) :=
  forall x y b, In b k -> W x b - W y b = W (minus x y) b.
Definition gain_at_most {A B : Type} (l : list A) (k : list B) (W : (A -> R) -> B -> R) (gain : R) :=
  forall x, norm k (W x) <= gain * norm l x.
Definition lipschitz {A B : Type} (l : list A) (k : list B) (f : (A -> R) -> B -> R) (K : R) :=
  forall x y, norm k (minus (f x) (f y)) <= K * norm l (minus x y).

Section Rules.

Variables A B Z : Type.
Variables (entries : list A) (outputs : list B) (behind : list Z).

(** The dense and the pruned layer, their inputs, and a bound on the difference of the inputs. *)
Variables W W' : (A -> R) -> B -> R.
Variables b b' : B -> R.
Variables a a' : A -> R.
Variables D gain : R.
Hypothesis close : norm entries (minus a' a) <= D.

Definition layer (V : (A -> R) -> B -> R) (c : B -> R) (x : A -> R) : B -> R := fun j => V x j + c j.

(** (a), step 2: the error e is measured on dense inputs. *)
Theorem affine_on_dense_inputs :
  linear outputs W' -> gain_at_most entries outputs W' gain -> 0 <= gain ->
  norm outputs (minus (layer W' b' a') (layer W b a))
  <= gain * D + norm outputs (fun j => (W' a j - W a j) + (b' j - b j)).
Proof.
  intros additive bounded nonneg.
  eapply Rle_trans; [apply (norm_insert _ _ (layer W' b' a))|]. apply Rplus_le_compat.
  - apply Rle_trans with (norm outputs (W' (minus a' a))).
    + right. apply norm_ext. intros j inside. unfold layer, minus at 1. rewrite <- additive by exact inside. ring.
    + eapply Rle_trans; [apply bounded|]. now apply Rmult_le_compat_l.
  - right. apply norm_ext. intros j _. unfold layer, minus. ring.
Qed.

(** (b), step 3: the error e' is measured on pruned inputs. *)
Theorem affine_on_pruned_inputs :
  linear outputs W -> gain_at_most entries outputs W gain -> 0 <= gain ->
  norm outputs (minus (layer W' b' a') (layer W b a))
  <= gain * D + norm outputs (fun j => (W' a' j - W a' j) + (b' j - b j)).
Proof.
  intros additive bounded nonneg.
  eapply Rle_trans; [apply (norm_insert _ _ (layer W b a'))|]. rewrite Rplus_comm. apply Rplus_le_compat.
  - apply Rle_trans with (norm outputs (W (minus a' a))).
    + right. apply norm_ext. intros j inside. unfold layer, minus at 1. rewrite <- additive by exact inside. ring.
    + eapply Rle_trans; [apply bounded|]. now apply Rmult_le_compat_l.
  - right. apply norm_ext. intros j _. unfold layer, minus. ring.
Qed.

(** (g), step 12: a map of constant K behind the layer, and the error behind it. *)
Theorem layer_and_what_follows (f : (B -> R) -> Z -> R) K :
  linear outputs W' -> gain_at_most entries outputs W' gain -> 0 <= gain -> lipschitz outputs behind f K -> 0 <= K ->
  norm behind (minus (f (layer W' b' a')) (f (layer W b a)))
  <= K * gain * D + norm behind (minus (f (layer W' b' a)) (f (layer W b a))).
Proof.
  intros additive bounded nonneg constant K_nonneg.
  eapply Rle_trans; [apply (norm_insert _ _ (f (layer W' b' a)))|]. apply Rplus_le_compat_r.
  eapply Rle_trans; [apply constant|]. rewrite Rmult_assoc. apply Rmult_le_compat_l; [exact K_nonneg|].
  apply Rle_trans with (norm outputs (W' (minus a' a))).
  - right. apply norm_ext. intros j inside. unfold layer, minus at 1. rewrite <- additive by exact inside. ring.
  - eapply Rle_trans; [apply bounded|]. now apply Rmult_le_compat_l.
Qed.

End Rules.

Lemma norm_le_of_squares {A B : Type} (l : list A) (k : list B) (x : A -> R) (y : B -> R) (c : R) :
  0 <= c -> dot l x x <= c * c * dot k y y -> norm l x <= c * norm k y.
Proof.
  intros nonneg squares. unfold norm. rewrite <- (sqrt_square c), <- sqrt_mult by (try apply dot_self_nonneg; nra).
  now apply sqrt_le_1_alt.
Qed.

Lemma squares_of_norm_le {A B : Type} (l : list A) (k : list B) (x : A -> R) (y : B -> R) (c : R) :
  0 <= c -> norm l x <= c * norm k y -> dot l x x <= c * c * dot k y y.
Proof.
  intros nonneg below. rewrite <- (norm_squared l x), <- (norm_squared k y).
  pose proof (norm_nonneg l x). replace (c * c * (norm k y * norm k y)) with ((c * norm k y) * (c * norm k y)) by ring.
  now apply Rmult_le_compat.
Qed.

(** (d), step 1: a map that acts on each sample with constant K has it on all of them. *)
Theorem stacked {P A B : Type} (samples : list P) (l : list A) (k : list B) (f : (A -> R) -> B -> R) K (x y : P -> A -> R) :
  0 <= K -> lipschitz l k f K ->
  norm (list_prod samples k) (entry (fun p => minus (f (x p)) (f (y p))))
  <= K * norm (list_prod samples l) (entry (fun p => minus (x p) (y p))).
Proof.
  intros nonneg constant. apply norm_le_of_squares; [exact nonneg|]. unfold dot at 1 2. rewrite !sum_pairs, <- sum_scal.
  apply sum_le. intros p _. apply (squares_of_norm_le k l); [exact nonneg | exact (constant (x p) (y p))].
Qed.

(** (e), step 5: sums and concatenations. *)
Theorem added {I A : Type} (terms : list I) (l : list A) (x y : I -> A -> R) (D : I -> R) :
  (forall i, In i terms -> norm l (minus (x i) (y i)) <= D i) ->
  norm l (minus (fun a => sum terms (fun i => x i a)) (fun a => sum terms (fun i => y i a))) <= sum terms D.
Proof.
  induction terms as [|i terms IH]; intros each; simpl.
  - right. unfold norm, dot, minus. rewrite <- sqrt_0. f_equal. rewrite <- (sum_zero l).
    apply sum_ext. intros; ring.
  - eapply Rle_trans; [|apply Rplus_le_compat; [apply each; now left | apply IH; intros j inside; apply each; now right]].
    eapply Rle_trans; [|apply norm_triangle]. right. apply norm_ext. intros a _. unfold minus. ring.
Qed.

Theorem concatenated {A : Type} (parts : list (list A)) (x : A -> R) (D : list A -> R) :
  (forall part, In part parts -> norm part x <= D part) ->
  norm (concat parts) x <= sqrt (sum parts (fun part => D part * D part)).
Proof.
  intros each. apply sqrt_le_1_alt. unfold dot. rewrite sum_concat. apply sum_le. intros part inside.
  fold (dot part x x). rewrite <- norm_squared. pose proof (norm_nonneg part x).
  apply Rmult_le_compat; auto.
Qed.

(** (f), step 6: a chain of pruned layers, counted from 0. Layer l maps the entries of state l to [inner l] and what
    follows it to state l + 1; both networks agree on state 0. *)
Theorem chain (State Inner : nat -> Type) (entries : forall l, list (State l)) (inner : forall l, list (Inner l))
    (W W' : forall l, (State l -> R) -> Inner l -> R) (b b' : forall l, Inner l -> R)
    (f : forall l, (Inner l -> R) -> State (S l) -> R) (gain K e : nat -> R) (a a' : forall l, State l -> R) (L : nat) :
  (forall l, linear (inner l) (W' l)) -> (forall l, gain_at_most (entries l) (inner l) (W' l) (gain l)) ->
  (forall l, lipschitz (inner l) (entries (S l)) (f l) (K l)) -> (forall l, 0 <= gain l) -> (forall l, 0 <= K l) ->
  (forall l i, a (S l) i = f l (layer _ _ (W l) (b l) (a l)) i) ->
  (forall l i, a' (S l) i = f l (layer _ _ (W' l) (b' l) (a' l)) i) ->
  (forall i, In i (entries O) -> a' O i = a O i) ->
  (forall l, norm (inner l) (fun j => (W' l (a l) j - W l (a l) j) + (b' l j - b l j)) <= e l) ->
  norm (entries L) (minus (a' L) (a L))
  <= sum (seq 0 L) (fun l => e l * K l * prod_of (seq (S l) (L - S l)) (fun k => gain k * K k)).
Proof.
  intros additive bounded constant gain_nonneg K_nonneg dense pruned start errors.
  apply Rle_trans with (accumulated L (fun l => e l * K l) (fun k => gain k * K k)); [|now right].
  apply (@recursion L (fun l => norm (entries l) (minus (a' l) (a l)))).
  - right. unfold norm, dot. rewrite <- sqrt_0. f_equal. rewrite <- (sum_zero (entries O)).
    apply sum_ext. intros i inside. unfold minus. rewrite start by exact inside. ring.
  - intros l _. now apply Rmult_le_pos.
  - intros l _.
    apply Rle_trans with (norm (entries (S l)) (minus (f l (layer _ _ (W' l) (b' l) (a' l))) (f l (layer _ _ (W l) (b l) (a l))))).
    { right. apply norm_ext. intros i _. unfold minus. now rewrite dense, pruned. }
    eapply Rle_trans; [apply constant|].
    replace (gain l * K l * norm (entries l) (minus (a' l) (a l)) + e l * K l)
      with (K l * (gain l * norm (entries l) (minus (a' l) (a l)) + e l)) by ring.
    apply Rmult_le_compat_l; [apply K_nonneg|].
    eapply Rle_trans; [apply (affine_on_dense_inputs _ _ (entries l) (inner l) (W l) (W' l) (b l) (b' l) (a l) (a' l) _ (gain l)
                               (Rle_refl _) (additive l) (bounded l) (gain_nonneg l))|].
    apply Rplus_le_compat_l. apply errors.
Qed.

(** Constants. Step 10: entrywise maps, ReLU among them. *)
Theorem entrywise {A : Type} (l : list A) (phi : R -> R) (c : R) :
  0 <= c -> (forall u v, Rabs (phi u - phi v) <= c * Rabs (u - v)) -> lipschitz l l (fun x a => phi (x a)) c.
Proof.
  intros nonneg constant x y. apply norm_le_of_squares; [exact nonneg|]. unfold dot. rewrite <- sum_scal.
  apply sum_le. intros a _. unfold minus. specialize (constant (x a) (y a)).
  assert (squares : forall u, u * u = Rabs u * Rabs u) by (intros u; rewrite <- Rabs_mult; symmetry; apply Rabs_pos_eq, Rle_0_sqr).
  rewrite (squares (phi (x a) - phi (y a))), (squares (x a - y a)). pose proof (Rabs_pos (phi (x a) - phi (y a))).
  replace (c * c * (Rabs (x a - y a) * Rabs (x a - y a))) with ((c * Rabs (x a - y a)) * (c * Rabs (x a - y a))) by ring.
  now apply Rmult_le_compat.
Qed.

Theorem relu {A : Type} (l : list A) : lipschitz l l (fun x a => Rmax (x a) 0) 1.
Proof.
  apply (entrywise l (fun u => Rmax u 0)); [lra|]. intros u v.
  unfold Rmax, Rabs. repeat destruct Rle_dec; repeat destruct Rcase_abs; lra.
Qed.

(** Step 8: copies. [source] says which entry of x stands at each place, and no entry stands at more than kappa. *)
Theorem copies {A B : Type} (same : A -> A -> bool) (l : list A) (k : list B) (source : B -> A) (kappa : R) (x : A -> R) :
  (forall i j, same i j = true <-> i = j) -> NoDup l -> (forall q, In q k -> In (source q) l) ->
  (forall i, In i l -> count k (fun q => same (source q) i) <= kappa) ->
  dot k (fun q => x (source q)) (fun q => x (source q)) <= kappa * dot l x x.
Proof.
  intros decides distinct inside few. unfold dot.
  rewrite (sum_ext k _ (fun q => sum l (fun i => x i * x i * where_ (same (source q) i) 1))).
  - rewrite sum_swap, <- sum_scal. apply sum_le. intros i in_l. rewrite sum_scal.
    specialize (few i in_l). unfold count in few. rewrite Rmult_comm. apply Rmult_le_compat_r; [apply Rle_0_sqr | exact few].
  - intros q in_k. specialize (inside q in_k). clear few k in_k. induction l as [|i l IH]; [destruct inside|].
    inversion distinct as [|? ? fresh rest]. subst. simpl. destruct inside as [here | inside].
    + rewrite here. assert (same (source q) (source q) = true) as -> by now apply decides. simpl.
      rewrite (sum_ext l _ (fun _ => 0)), sum_zero; [lra|]. intros j in_l.
      assert (same (source q) j = false) as ->; [|simpl; lra].
      destruct (same (source q) j) eqn:equal; [|reflexivity]. apply decides in equal. subst. contradiction.
    + rewrite <- IH by assumption. assert (same (source q) i = false) as ->; [|simpl; lra].
      destruct (same (source q) i) eqn:equal; [|reflexivity]. apply decides in equal. subst. contradiction.
Qed.

(** Step 11: the square of a mean, and the difference of two maxima. *)
Theorem mean_squared {A : Type} (l : list A) (x : A -> R) :
  l <> [] -> (sum l x / INR (length l)) * (sum l x / INR (length l)) <= sum l (fun a => x a * x a) / INR (length l).
Proof.
  intros some. assert (0 < INR (length l)) as positive by (apply lt_0_INR; destruct l; [congruence | simpl; lia]).
  assert (ones : sum l (fun _ => 1) = INR (length l)).
  { clear. induction l as [|a l IH]; [reflexivity|]. cbn [sum length]. rewrite IH, S_INR. lra. }
  set (mean := sum l x / INR (length l)).
  assert (0 <= sum l (fun a => (x a - mean) * (x a - mean))) as squares by (apply sum_nonneg; intros; apply Rle_0_sqr).
  rewrite (sum_ext l _ (fun a => x a * x a + (-2 * mean * x a + mean * mean * 1))) in squares by (intros; ring).
  rewrite !sum_plus, !sum_scal, ones in squares.
  assert (sum l x = mean * INR (length l)) as total by (unfold mean; field; lra). rewrite total in squares.
  apply Rmult_le_reg_r with (INR (length l)); [exact positive|].
  replace (sum l (fun a => x a * x a) / INR (length l) * INR (length l)) with (sum l (fun a => x a * x a)) by (field; lra).
  lra.
Qed.

Lemma Rmax_difference u v u' v' c : Rabs (u - u') <= c -> Rabs (v - v') <= c -> Rabs (Rmax u v - Rmax u' v') <= c.
Proof.
  intros one other. apply Rabs_between in one. apply Rabs_between in other.
  apply Rabs_le. unfold Rmax. repeat destruct Rle_dec; lra.
Qed.

Definition maximum {A : Type} (first : A) (l : list A) (x : A -> R) : R := fold_right (fun a best => Rmax (x a) best) (x first) l.

Theorem maximum_difference {A : Type} (first : A) (l : list A) (x y : A -> R) :
  Rabs (maximum first l x - maximum first l y) <= norm (first :: l) (minus x y).
Proof.
  assert (forall c, (forall a, In a (first :: l) -> Rabs (x a - y a) <= c) -> Rabs (maximum first l x - maximum first l y) <= c) as below.
  { intros c each. induction l as [|a l IH]; simpl; [apply each; now left|].
    assert (Rabs (maximum first l x - maximum first l y) <= c) as rest.
    { apply IH. intros i [<- | inside]; apply each; [now left | now right; right]. }
    assert (Rabs (x a - y a) <= c) as this by (apply each; now right; left).
    now apply Rmax_difference. }
  apply below. intros a inside. now apply (Rabs_le_norm (first :: l) (minus x y)).
Qed.
