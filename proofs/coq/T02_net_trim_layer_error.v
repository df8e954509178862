(** T02: error of one ReLU layer after Net-Trim. The steps named in comments are those of T02-net-trim-layer-error.md. *)

From Coq Require Import Reals List Bool Lra Psatz.
From OptPrune Require Import Sums.
Open Scope R_scope.

Section Layer.

(** Entries of the layer's output, those where the target is positive, the target, and the pre-activations. *)
Variable Cell : Type.
Variable cells : list Cell.
Variable active : Cell -> bool.
Variables Y Z : Cell -> R.
Hypothesis active_is_positive : forall c, In c cells -> active c = true -> 0 < Y c.
Hypothesis inactive_is_zero : forall c, In c cells -> active c = false -> Y c = 0.

Definition relu (x : R) := Rmax x 0.
Definition squares_on (S : Cell -> bool) (f : Cell -> R) := sum cells (fun c => where_ (S c) (f c * f c)).
Definition squares (f : Cell -> R) := sum cells (fun c => f c * f c).
Definition inactive c := negb (active c).

Lemma relu_nonneg x : 0 <= relu x.
Proof. apply Rmax_r. Qed.

(** (a), steps 1 to 4. *)
Theorem error_of_any_weight :
  squares (fun c => relu (Z c) - Y c)
  <= squares_on active (fun c => Z c - Y c) + squares_on inactive (fun c => relu (Z c)).
Proof.
  unfold squares, squares_on. rewrite <- sum_plus. apply sum_le. intros c inside. unfold inactive.
  destruct (active c) eqn:which; simpl.
  - pose proof (active_is_positive c inside which). unfold relu. destruct (Rle_dec 0 (Z c)) as [up | down].
    + rewrite Rmax_left by lra. lra.
    + rewrite Rmax_right by lra. nra.
  - rewrite (inactive_is_zero c inside which). right. ring.
Qed.

(** (c), step 5; with a ceiling of 0 it is (b). *)
Theorem error_below_a_ceiling (V : Cell -> R) (eps2 : R) :
  squares_on active (fun c => Z c - Y c) <= eps2 ->
  (forall c, In c cells -> active c = false -> Z c <= V c) ->
  squares (fun c => relu (Z c) - Y c) <= eps2 + squares_on inactive (fun c => relu (V c)).
Proof.
  intros ball ceiling. eapply Rle_trans; [apply error_of_any_weight|]. apply Rplus_le_compat; [exact ball|].
  apply sum_le. intros c inside. unfold inactive. destruct (active c) eqn:which; simpl; [lra|].
  pose proof (ceiling c inside which). assert (relu (Z c) <= relu (V c)) by (unfold relu; now apply Rle_max_compat_r).
  pose proof (relu_nonneg (Z c)). now apply Rmult_le_compat.
Qed.

Theorem error_of_a_feasible_point (eps : R) :
  sqrt (squares_on active (fun c => Z c - Y c)) <= eps -> (forall c, In c cells -> active c = false -> Z c <= 0) ->
  sqrt (squares (fun c => relu (Z c) - Y c)) <= eps.
Proof.
  intros ball below. eapply Rle_trans; [|exact ball]. apply sqrt_le_1_alt.
  pose proof (error_below_a_ceiling (fun _ => 0) _ (Rle_refl _) below) as bound. cbv beta in bound.
  assert (squares_on inactive (fun _ => relu 0) = 0) as zero.
  { unfold squares_on. transitivity (sum cells (fun _ => 0)); [|apply sum_zero]. apply sum_ext. intros c _.
    unfold relu. rewrite Rmax_left by lra. unfold where_. destruct (inactive c); ring. }
  rewrite zero in bound. lra.
Qed.

(** (d), step 7: Z0 are the dense pre-activations and V those of the dense weight on the pruned inputs. *)
Theorem error_of_a_cascade (Z0 V : Cell -> R) (gamma : R) :
  1 <= gamma -> (forall c, In c cells -> Y c = relu (Z0 c)) ->
  squares_on active (fun c => Z c - Y c) <= gamma * squares_on active (fun c => V c - Z0 c) ->
  (forall c, In c cells -> active c = false -> Z c <= V c) ->
  squares (fun c => relu (Z c) - Y c) <= gamma * squares (fun c => V c - Z0 c).
Proof.
  intros factor dense ball ceiling. eapply Rle_trans; [apply (error_below_a_ceiling V _ ball ceiling)|].
  assert (split : squares (fun c => V c - Z0 c)
                  = squares_on active (fun c => V c - Z0 c) + squares_on inactive (fun c => V c - Z0 c)).
  { unfold squares, squares_on, inactive. rewrite <- sum_plus. apply sum_ext. intros c _. apply where_split. }
  rewrite split, Rmult_plus_distr_l. apply Rplus_le_compat_l.
  apply Rle_trans with (1 * squares_on inactive (fun c => V c - Z0 c)).
  - rewrite Rmult_1_l. apply sum_le. intros c inside. unfold inactive. destruct (active c) eqn:which; simpl; [lra|].
    pose proof (dense c inside) as target. rewrite (inactive_is_zero c inside which) in target.
    assert (Z0 c <= 0) by (unfold relu in target; pose proof (Rmax_l (Z0 c) 0); lra).
    unfold relu. destruct (Rle_dec 0 (V c)) as [up | down].
    + rewrite Rmax_left by lra. nra.
    + rewrite Rmax_right by lra. pose proof (Rle_0_sqr (V c - Z0 c)) as nonneg. unfold Rsqr in nonneg. lra.
  - apply Rmult_le_compat_r; [|exact factor]. apply sum_nonneg. intros c _. unfold where_.
    destruct (inactive c); [apply Rle_0_sqr | lra].
Qed.

End Layer.
