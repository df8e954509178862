(** T07: Net-Trim's network bounds. The steps named in comments are those of T07-net-trim-networks.md. *)

From Coq Require Import Reals List Arith Lia Lra Psatz.
From OptPrune Require Import Sums T04_error_propagation.
Open Scope R_scope.

(** (a), step 3, from the inequality of steps 1 and 2; layers are counted from 0, and distance l stands before layer l. *)
Theorem parallel (L : nat) (d G e : nat -> R) :
  d O = 0 -> (forall l, (l < L)%nat -> 0 <= G l) -> (forall l, (l < L)%nat -> d (S l) <= G l * d l + e l) ->
  d L <= sum (seq 0 L) (fun l => e l * prod_of (seq (S l) (L - S l)) G).
Proof. intros start nonneg step. apply (@recursion L d e G); [lra | exact nonneg | exact step]. Qed.

(** Steps 1 and 2: one layer with a map of constant 1 behind it. *)
Theorem parallel_layer {A B : Type} (inputs : list A) (outputs : list B) (W W' : (A -> R) -> B -> R) (b b' : B -> R)
    (sigma : (B -> R) -> B -> R) (y y' : A -> R) (G : R) :
  linear outputs W' -> gain_at_most inputs outputs W' G -> 0 <= G -> lipschitz outputs outputs sigma 1 ->
  norm outputs (minus (sigma (layer _ _ W' b' y')) (sigma (layer _ _ W b y)))
  <= G * norm inputs (minus y' y)
     + norm outputs (minus (sigma (layer _ _ W' b' y)) (sigma (layer _ _ W b y))).
Proof.
  intros additive bounded nonneg constant.
  rewrite <- (Rmult_1_l G) at 1.
  apply (layer_and_what_follows _ _ _ inputs outputs outputs W W' b b' y y' _ G (Rle_refl _)); auto; lra.
Qed.

(** Step 4: the Frobenius norm bounds the gain, and the sum of absolute entries bounds the Frobenius norm. *)
Definition product {A B : Type} (inputs : list A) (M : B -> A -> R) : (A -> R) -> B -> R :=
  fun x m => sum inputs (fun j => M m j * x j).

Theorem frobenius_gain {A B : Type} (inputs : list A) (outputs : list B) (M : B -> A -> R) :
  gain_at_most inputs outputs (product inputs M) (norm (list_prod outputs inputs) (entry M)).
Proof.
  intros x. apply norm_le_of_squares; [apply norm_nonneg|]. rewrite norm_squared.
  unfold dot at 1 2. rewrite sum_pairs, <- sum_scal_r. apply sum_le. intros m _. unfold entry. cbn [fst snd].
  fold (dot inputs (M m) (M m)). fold (product inputs M x m).
  pose proof (cauchy_schwarz inputs (M m) x) as above. pose proof (cauchy_schwarz inputs (M m) (fun j => - x j)) as below.
  assert (dot inputs (M m) (fun j => - x j) = - dot inputs (M m) x) as mirrored
    by (unfold dot; rewrite <- sum_opp; apply sum_ext; intros; ring).
  assert (norm inputs (fun j => - x j) = norm inputs x) as same
    by (unfold norm, dot; f_equal; apply sum_ext; intros; ring).
  rewrite mirrored, same in below. unfold product. fold (dot inputs (M m) x).
  rewrite <- (norm_squared inputs (M m)), <- (norm_squared inputs x).
  pose proof (norm_nonneg inputs (M m)). pose proof (norm_nonneg inputs x).
  assert (0 <= norm inputs (M m) * norm inputs x) by now apply Rmult_le_pos.
  replace (norm inputs (M m) * norm inputs (M m) * (norm inputs x * norm inputs x))
    with ((norm inputs (M m) * norm inputs x) * (norm inputs (M m) * norm inputs x)) by ring.
  set (u := dot inputs (M m) x) in *. set (v := norm inputs (M m) * norm inputs x) in *. nra.
Qed.

Theorem frobenius_below_entries {A : Type} (l : list A) (x : A -> R) : norm l x <= sum l (fun a => Rabs (x a)).
Proof.
  assert (0 <= sum l (fun a => Rabs (x a))) as nonneg by (apply sum_nonneg; intros; apply Rabs_pos).
  rewrite <- (sqrt_square (sum l (fun a => Rabs (x a)))) by exact nonneg. apply sqrt_le_1_alt. clear nonneg. unfold dot.
  induction l as [|a l IH]; simpl; [lra|].
  assert (0 <= sum l (fun a => Rabs (x a))) by (apply sum_nonneg; intros; apply Rabs_pos).
  assert (x a * x a = Rabs (x a) * Rabs (x a)) as -> by (rewrite <- Rabs_mult; symmetry; apply Rabs_pos_eq, Rle_0_sqr).
  pose proof (Rabs_pos (x a)). nra.
Qed.

(** (b), step 5, from d_l^2 <= gamma_l ||W_l||^2 d_{l-1}^2. *)
Theorem cascade (L : nat) (d gamma W : nat -> R) (e1 : R) :
  0 <= d O <= e1 -> (forall l, 0 <= d l) -> (forall l, 0 <= gamma l) -> (forall l, 0 <= W l) ->
  (forall l, (l < L)%nat -> d (S l) * d (S l) <= gamma l * (W l * W l) * (d l * d l)) ->
  d L <= e1 * prod_of (seq 0 L) (fun l => sqrt (gamma l) * W l).
Proof.
  intros start d_nonneg gamma_nonneg W_nonneg step. induction L as [|L IH].
  - simpl. lra.
  - rewrite seq_S, prod_of_app. simpl prod_of.
    assert (d L <= e1 * prod_of (seq 0 L) (fun l => sqrt (gamma l) * W l)) as before by (apply IH; intros; apply step; lia).
    apply Rle_trans with (sqrt (gamma L) * W L * d L).
    + rewrite <- (sqrt_square (d (S L))) by apply d_nonneg. rewrite <- (sqrt_square (W L)) by apply W_nonneg.
      rewrite <- (sqrt_square (d L)) by apply d_nonneg.
      assert (forall x, 0 <= x * x) as square by (intros x; apply Rle_0_sqr).
      rewrite <- sqrt_mult by auto. rewrite <- sqrt_mult by (try apply Rmult_le_pos; auto).
      apply sqrt_le_1_alt. apply step. lia.
    + assert (0 <= sqrt (gamma L) * W L) by (apply Rmult_le_pos; [apply sqrt_pos | apply W_nonneg]).
      replace (e1 * (prod_of (seq 0 L) (fun l => sqrt (gamma l) * W l) * (sqrt (gamma L) * W L * 1)))
        with (sqrt (gamma L) * W L * (e1 * prod_of (seq 0 L) (fun l => sqrt (gamma l) * W l))) by ring.
      now apply Rmult_le_compat_l.
Qed.
