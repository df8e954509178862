(** T14 (b) and (c): the exact inverses of Bernstein's bound. The steps named in comments are those of
    T14-bernstein-half-neuron.md. *)

From Coq Require Import Reals List Lra Psatz.
From OptPrune Require Import Sums.
Open Scope R_scope.

(** The right-hand side of (a), and the radius of (b). *)
Definition tail (V b t : R) : R := 2 * exp (- (t * t / (2 * (V + b * t / 3)))).
Definition level (delta : R) : R := ln (2 / delta).
Definition radius (V b delta : R) : R :=
  b * level delta / 3 + sqrt (b * level delta / 3 * (b * level delta / 3) + 2 * V * level delta).

Lemma level_positive delta : 0 < delta < 1 -> 0 < level delta.
Proof.
  intros range. unfold level. rewrite <- ln_1. apply ln_increasing; [lra|].
  apply Rmult_lt_reg_r with delta; [lra|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l by lra. lra.
Qed.

Lemma delta_of_level delta : 0 < delta -> 2 * exp (- level delta) = delta.
Proof.
  intros positive. unfold level. rewrite <- ln_Rinv by (apply Rdiv_lt_0_compat; lra).
  rewrite exp_ln by (apply Rinv_0_lt_compat, Rdiv_lt_0_compat; lra). field. lra.
Qed.

(** Step 3: the radius is the positive root of t^2 = 2 l (V + b t / 3). *)
Lemma radius_root V b delta : 0 < delta < 1 -> 0 <= V -> 0 <= b -> 0 < V + b ->
  0 < radius V b delta /\
  radius V b delta * radius V b delta = 2 * level delta * (V + b * radius V b delta / 3).
Proof.
  intros range V_nonneg b_nonneg some. pose proof (level_positive delta range) as positive.
  unfold radius. set (l := level delta) in *. set (h := b * l / 3).
  assert (0 <= h) by (unfold h; apply Rmult_le_pos; [now apply Rmult_le_pos; lra | lra]).
  assert (0 <= h * h + 2 * V * l) as inside by (pose proof (Rmult_le_pos V l V_nonneg (Rlt_le _ _ positive)); nra).
  pose proof (sqrt_pos (h * h + 2 * V * l)) as root_nonneg.
  pose proof (sqrt_sqrt _ inside) as square. set (root := sqrt (h * h + 2 * V * l)) in *.
  assert (b * l = 3 * h) as scale by (unfold h; field). split.
  - destruct (Rle_lt_or_eq_dec 0 b b_nonneg) as [b_positive | b_zero].
    + assert (0 < h) by (unfold h; apply Rmult_lt_0_compat; [now apply Rmult_lt_0_compat | lra]). lra.
    + assert (0 < 2 * V * l) by (apply Rmult_lt_0_compat; lra).
      destruct root_nonneg as [root_positive | root_zero]; [lra|]. rewrite <- root_zero in square. nra.
  - replace (2 * l * (V + b * (h + root) / 3)) with (2 * V * l + 2 * (b * l / 3) * (h + root)) by field.
    fold h. lra.
Qed.

(** (b), the equality. *)
Theorem tail_at_radius V b delta : 0 < delta < 1 -> 0 <= V -> 0 <= b -> 0 < V + b ->
  tail V b (radius V b delta) = delta.
Proof.
  intros range V_nonneg b_nonneg some.
  destruct (radius_root V b delta range V_nonneg b_nonneg some) as [positive root].
  rewrite <- (delta_of_level delta) at 2 by lra. unfold tail. do 2 f_equal.
  set (t := radius V b delta) in *. pose proof (level_positive delta range).
  assert (0 < t * t) by now apply Rmult_lt_0_compat.
  assert (0 < V + b * t / 3) by (apply Rmult_lt_reg_l with (2 * level delta); lra).
  rewrite root. field. lra.
Qed.

(** (b), the order: t^2 / (V + b t / 3) grows with t. *)
Lemma exponent_grows V b t u : 0 <= V -> 0 <= b -> 0 < V + b -> 0 < t < u ->
  t * t / (2 * (V + b * t / 3)) < u * u / (2 * (V + b * u / 3)).
Proof.
  intros V_nonneg b_nonneg some [positive less].
  assert (denominator : forall x, 0 < x -> 0 < V + b * x / 3).
  { intros x x_positive. assert (0 <= b * x) by (apply Rmult_le_pos; lra).
    destruct (Rle_lt_or_eq_dec 0 V V_nonneg) as [V_positive | V_zero]; [lra|].
    assert (0 < b * x) by (apply Rmult_lt_0_compat; lra). lra. }
  pose proof (denominator t positive). pose proof (denominator u (Rlt_trans _ _ _ positive less)).
  apply Rminus_gt_0_lt.
  replace (u * u / (2 * (V + b * u / 3)) - t * t / (2 * (V + b * t / 3)))
    with ((u - t) * (V * (u + t) + b * (u * t) / 3) / (2 * (V + b * u / 3) * (V + b * t / 3))) by (field; lra).
  assert (0 < u * t) by (apply Rmult_lt_0_compat; lra).
  assert (0 < V * (u + t) + b * (u * t) / 3).
  { assert (0 <= V * (u + t)) by (apply Rmult_le_pos; lra). assert (0 <= b * (u * t)) by (apply Rmult_le_pos; lra).
    destruct (Rle_lt_or_eq_dec 0 V V_nonneg) as [V_positive | V_zero].
    - assert (0 < V * (u + t)) by (apply Rmult_lt_0_compat; lra). lra.
    - assert (0 < b * (u * t)) by (apply Rmult_lt_0_compat; lra). lra. }
  apply Rdiv_lt_0_compat; apply Rmult_lt_0_compat; lra.
Qed.

Theorem tail_beyond_radius V b delta t : 0 < delta < 1 -> 0 <= V -> 0 <= b -> 0 < V + b ->
  radius V b delta < t -> tail V b t < delta.
Proof.
  intros range V_nonneg b_nonneg some beyond.
  rewrite <- (tail_at_radius V b delta) by assumption.
  destruct (radius_root V b delta range V_nonneg b_nonneg some) as [positive _].
  apply Rmult_lt_compat_l; [lra|]. apply exp_increasing, Ropp_lt_contravar. now apply exponent_grows.
Qed.

Theorem tail_before_radius V b delta t : 0 < delta < 1 -> 0 <= V -> 0 <= b -> 0 < V + b ->
  0 < t < radius V b delta -> delta < tail V b t.
Proof.
  intros range V_nonneg b_nonneg some before.
  rewrite <- (tail_at_radius V b delta) at 1 by assumption.
  apply Rmult_lt_compat_l; [lra|]. apply exp_increasing, Ropp_lt_contravar. now apply exponent_grows.
Qed.

(** (c), the bound for relative errors, its sample size and its error; c stands for C S. *)
Definition relative_tail (m c eps : R) : R := 2 * exp (- (m * (eps * eps) / (2 * c * (1 + eps / 3)))).
Definition draws (c eps delta : R) : R := c * (6 + 2 * eps) * level delta / (3 * (eps * eps)).
Definition relative_error (m c delta : R) : R :=
  let alpha := 2 * c * level delta in
  / 2 * (alpha / (3 * m) + sqrt (alpha / (3 * m) * (alpha / (3 * m)) + 4 * alpha / m)).

Theorem draws_suffice m c eps delta : 0 < delta < 1 -> 0 < c -> 0 < eps ->
  draws c eps delta <= m -> relative_tail m c eps <= delta.
Proof.
  intros range c_positive eps_positive enough. rewrite <- (delta_of_level delta) by lra.
  unfold relative_tail. apply Rmult_le_compat_l; [lra|].
  assert (level delta <= m * (eps * eps) / (2 * c * (1 + eps / 3))) as deep.
  { assert (0 < eps * eps) by now apply Rmult_lt_0_compat. unfold draws in enough.
    assert (0 < c * (6 + 2 * eps)) by (apply Rmult_lt_0_compat; lra).
    replace (m * (eps * eps) / (2 * c * (1 + eps / 3))) with (m * (3 * (eps * eps) / (c * (6 + 2 * eps)))) by (field; lra).
    replace (level delta)
      with (c * (6 + 2 * eps) * level delta / (3 * (eps * eps)) * (3 * (eps * eps) / (c * (6 + 2 * eps)))) by (field; lra).
    apply Rmult_le_compat_r; [|exact enough]. left. apply Rdiv_lt_0_compat; lra. }
  apply exp_monotone. lra.
Qed.

Theorem draws_are_exact c eps delta : 0 < delta < 1 -> 0 < c -> 0 < eps ->
  relative_tail (draws c eps delta) c eps = delta.
Proof.
  intros range c_positive eps_positive. rewrite <- (delta_of_level delta) at 2 by lra.
  unfold relative_tail, draws. do 2 f_equal. field. lra.
Qed.

Theorem relative_error_is_exact m c delta : 0 < delta < 1 -> 0 < c -> 0 < m ->
  relative_tail m c (relative_error m c delta) = delta.
Proof.
  intros range c_positive m_positive.
  assert (0 < c / m) as ratio by now apply Rdiv_lt_0_compat.
  assert (relative_error m c delta = radius (c / m) (c / m) delta) as same.
  { pose proof (level_positive delta range) as l_positive. unfold relative_error, radius. cbv zeta. set (l := level delta) in *.
    assert (0 < c / m * l) by now apply Rmult_lt_0_compat.
    replace (2 * c * l / (3 * m)) with (2 * (c / m * l / 3)) by (field; lra).
    replace (2 * (c / m * l / 3) * (2 * (c / m * l / 3)) + 4 * (2 * c * l) / m)
      with (2 * 2 * (c / m * l / 3 * (c / m * l / 3) + 2 * (c / m) * l)) by (field; lra).
    rewrite sqrt_mult by (try nra; assert (0 <= c / m * l / 3 * (c / m * l / 3)) by apply Rle_0_sqr; lra).
    rewrite sqrt_square by lra. field. lra. }
  rewrite same. transitivity (tail (c / m) (c / m) (radius (c / m) (c / m) delta)).
  - destruct (radius_root (c / m) (c / m) delta range) as [positive _]; [lra | lra | lra |].
    unfold relative_tail, tail. do 2 f_equal. set (t := radius (c / m) (c / m) delta) in *. field. repeat split; nra.
  - apply tail_at_radius; lra.
Qed.
