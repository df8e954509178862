(** T22: step sizes of surrogate Lagrangian relaxation. The steps named in comments are those of
    T22-surrogate-step-sizes.md. *)

From Coq Require Import Reals List Arith Lia Lra Psatz.
From Coquelicot Require Import Coquelicot.
From OptPrune Require Import Sums.
Open Scope R_scope.

Section Steps.

Variables M r : R.
Hypothesis M_large : 1 < M.
Hypothesis r_range : 0 < r < 1.

(** p, a and alpha of the page at update k, and the product of the first n factors. *)
Definition p (k : nat) : R := 1 - Rpower (INR k) (- r).
Definition a (k : nat) : R := Rpower (INR k) (- p k).
Definition alpha (k : nat) : R := 1 - a k / M.
Definition step_product (n : nat) : R := prod_of (seq 1 n) alpha.

Lemma INR_at_least_one k : (1 <= k)%nat -> 1 <= INR k.
Proof. intros some. apply (le_INR 1) in some. exact some. Qed.

Lemma ln_nonneg x : 1 <= x -> 0 <= ln x.
Proof.
  intros [large | <-]; [|rewrite ln_1; lra]. left. rewrite <- ln_1. apply ln_increasing; lra.
Qed.

(** (a), step 1. *)
Lemma p_range k : (1 <= k)%nat -> 0 <= p k < 1.
Proof.
  intros some. pose proof (ln_nonneg _ (INR_at_least_one k some)) as log. unfold p, Rpower.
  pose proof (exp_pos (- r * ln (INR k))). split; [|lra].
  assert (exp (- r * ln (INR k)) <= exp 0) as below by (apply exp_monotone; nra). rewrite exp_0 in below. lra.
Qed.

Lemma a_range k : (1 <= k)%nat -> / INR k <= a k <= 1.
Proof.
  intros some. pose proof (INR_at_least_one k some) as large. pose proof (ln_nonneg _ large) as log.
  pose proof (p_range k some). unfold a, Rpower. split.
  - rewrite <- (exp_ln (/ INR k)) by (apply Rinv_0_lt_compat; lra). apply exp_monotone. rewrite ln_Rinv by lra. nra.
  - rewrite <- exp_0. apply exp_monotone. nra.
Qed.

Theorem factors_range k : (1 <= k)%nat -> 0 < 1 - / M <= alpha k /\ alpha k <= 1 - / (M * INR k) < 1.
Proof.
  intros some. pose proof (a_range k some) as [above below]. pose proof (INR_at_least_one k some).
  assert (0 < / M < 1) as small.
  { split; [apply Rinv_0_lt_compat; lra|]. rewrite <- Rinv_1. apply Rinv_lt_contravar; lra. }
  unfold alpha, Rdiv. rewrite Rinv_mult. assert (0 < / INR k) by (apply Rinv_0_lt_compat; lra).
  assert (0 < / M * / INR k) by now apply Rmult_lt_0_compat.
  repeat split; nra.
Qed.

(** (b), step 2. *)
Theorem product_upper n : step_product n <= Rpower (INR n + 1) (- / M).
Proof.
  assert (0 < / M) by (apply Rinv_0_lt_compat; lra).
  induction n as [|n IH].
  - unfold step_product, Rpower. simpl. rewrite Rplus_0_l, ln_1, Rmult_0_r, exp_0. lra.
  - unfold step_product in *. rewrite seq_S, prod_of_app. simpl prod_of. rewrite Rmult_1_r.
    destruct (factors_range (S n)) as [[_ low] [high _]]; [lia|]. pose proof (factors_range (S n) ltac:(lia)).
    pose proof (pos_INR n). rewrite S_INR in *.
    apply Rle_trans with (Rpower (INR n + 1) (- / M) * exp (- (/ M * / (INR n + 1)))).
    + apply Rmult_le_compat; [| lra | exact IH |].
      * apply prod_of_nonneg. intros k inside. apply in_seq in inside.
        pose proof (factors_range k ltac:(lia)). lra.
      * eapply Rle_trans; [exact high|]. rewrite Rinv_mult.
        pose proof (exp_ineq1_le (- (/ M * / (INR n + 1)))). lra.
    + unfold Rpower. rewrite <- exp_plus. apply exp_monotone.
      assert (ln (INR n + 1 + 1) - ln (INR n + 1) <= / (INR n + 1)) as growth.
      { rewrite <- ln_div by lra. apply Rle_trans with ((INR n + 1 + 1) / (INR n + 1) - 1).
        - set (x := (INR n + 1 + 1) / (INR n + 1)). assert (0 < x) by (apply Rdiv_lt_0_compat; lra).
          pose proof (exp_ineq1_le (ln x)) as below. rewrite exp_ln in below by assumption. lra.
        - right. field. lra. }
      nra.
Qed.

(** (c), step 3: the logarithm of one factor from below. *)
Lemma log_factor x : 0 <= x < 1 -> - ln (1 - x) <= x + x * x / (2 * (1 - x)).
Proof.
  intros range.
  assert (forall y, 0 <= y <= x -> 0 <= y + y * y / (2 * (1 - y)) + ln (1 - y)) as all; [|specialize (all x); lra].
  intros y inside. set (f := fun y => y + y * y / (2 * (1 - y)) + ln (1 - y)).
  set (f' := fun y => y * y / (2 * ((1 - y) * (1 - y)))).
  destruct (MVT_gen f 0 y f') as [c [between step]].
  - intros z range_z. rewrite Rmin_left, Rmax_right in range_z by lra. unfold f, f'. auto_derive.
    + repeat split; lra.
    + field. lra.
  - intros z range_z. rewrite Rmin_left, Rmax_right in range_z by lra.
    apply continuity_pt_filterlim, (ex_derive_continuous f). unfold f. auto_derive. repeat split; lra.
  - rewrite Rmin_left, Rmax_right in between by lra.
    assert (f 0 = 0) as start by (unfold f; rewrite Rminus_0_r, ln_1; field).
    rewrite start in step. fold (f y).
    assert (0 <= f' c) by (unfold f'; apply Rmult_le_pos; [apply Rle_0_sqr | left; apply Rinv_0_lt_compat; nra]).
    assert (0 <= f' c * (y - 0)) by (apply Rmult_le_pos; lra). lra.
Qed.

Theorem product_lower n :
  exp (- (sum (seq 1 n) a / M) - sum (seq 1 n) (fun k => a k * a k) / (2 * M * (M - 1))) <= step_product n.
Proof.
  unfold step_product. induction n as [|n IH].
  - simpl. replace (- (0 / M) - 0 / (2 * M * (M - 1))) with 0 by (field; lra). rewrite exp_0. lra.
  - rewrite !seq_S, !sum_app, prod_of_app. simpl sum. simpl prod_of. rewrite Rmult_1_r, !Rplus_0_r.
    pose proof (a_range (S n) ltac:(lia)) as [above below]. destruct (factors_range (S n) ltac:(lia)) as [[edge low] _].
    assert (0 < / INR (S n)) by (apply Rinv_0_lt_compat, lt_0_INR; lia).
    set (x := a (S n)) in *.
    assert (ratio : 0 <= x / M < 1).
    { unfold alpha in low. fold x in low. split; [apply Rmult_le_pos; [lra | left; apply Rinv_0_lt_compat; lra] | lra]. }
    replace (- ((sum (seq 1 n) a + x) / M) - (sum (seq 1 n) (fun k => a k * a k) + x * x) / (2 * M * (M - 1)))
      with (- (sum (seq 1 n) a / M) - sum (seq 1 n) (fun k => a k * a k) / (2 * M * (M - 1))
            + - (x / M + x * x / (2 * M * (M - 1)))) by (field; lra).
    rewrite exp_plus. apply Rmult_le_compat; [left; apply exp_pos | left; apply exp_pos | exact IH |].
    unfold alpha. change (1 + n)%nat with (S n). fold x. rewrite <- (exp_ln (1 - x / M)) by lra. apply exp_monotone.
    pose proof (log_factor (x / M) ratio) as one.
    assert (x / M * (x / M) / (2 * (1 - x / M)) <= x * x / (2 * M * (M - 1))); [|lra].
    replace (x * x / (2 * M * (M - 1))) with (x / M * (x / M) / (2 * (1 - / M))) by (field; lra).
    unfold Rdiv at 1 4. apply Rmult_le_compat_l; [apply Rle_0_sqr|].
    assert (x / M <= / M) by (unfold Rdiv; rewrite <- (Rmult_1_l (/ M)) at 2; apply Rmult_le_compat_r; [left; apply Rinv_0_lt_compat|]; lra).
    apply Rinv_le_contravar; lra.
Qed.

(** (d), step 6: the rule for the steps s and the violations h, applied n times. *)
Theorem steps_follow_the_product (s h : nat -> R) n :
  (forall k, (k < n)%nat -> s (S k) * h (S k) = alpha (S k) * (s k * h k)) -> s n * h n = step_product n * (s O * h O).
Proof.
  unfold step_product. induction n as [|n IH]; intros rule.
  - simpl. ring.
  - rewrite rule by lia. rewrite IH by (intros; apply rule; lia). rewrite seq_S, prod_of_app. simpl. ring.
Qed.

End Steps.

(** (e), step 7: [Point] is x, [I] the index of a multiplier, q is any number that the Lagrangian does not go below. *)
Theorem closer_to_every_maximiser {Point I : Type} (l : list I) (phi : Point -> R) (h : Point -> I -> R)
    (best now : I -> R) (q s : R) (x : Point) :
  let L y multipliers := phi y + dot l multipliers (h y) in
  (forall y, q <= L y best) -> L x now < q ->
  q - L x now <= dot l (fun i => best i - now i) (h x)
  /\ (0 < s -> s * dot l (h x) (h x) < 2 * (q - L x now) ->
      norm l (fun i => now i + s * h x i - best i) < norm l (fun i => now i - best i)).
Proof.
  intros L least less.
  assert (gain : q - L x now <= dot l (fun i => best i - now i) (h x)).
  { pose proof (least x) as bound. unfold L, dot in *.
    rewrite (sum_ext l (fun i => (best i - now i) * h x i) (fun i => best i * h x i - now i * h x i)) by (intros; ring).
    rewrite sum_minus. lra. }
  split; [exact gain|]. intros positive short.
  apply sqrt_lt_1_alt. split; [apply dot_self_nonneg|].
  replace (dot l (fun i => now i + s * h x i - best i) (fun i => now i + s * h x i - best i))
    with (dot l (fun i => now i - best i) (fun i => now i - best i)
          - 2 * s * dot l (fun i => best i - now i) (h x) + s * (s * dot l (h x) (h x))).
  - assert (s * (s * dot l (h x) (h x)) < s * (2 * (q - L x now))) by now apply Rmult_lt_compat_l.
    assert (s * (q - L x now) <= s * dot l (fun i => best i - now i) (h x)) by (apply Rmult_le_compat_l; lra). lra.
  - unfold dot. rewrite <- !sum_scal, <- sum_minus, <- sum_plus. apply sum_ext. intros; ring.
Qed.
