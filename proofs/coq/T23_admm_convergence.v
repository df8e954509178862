(** T23: convergence of ADMM with a growing penalty. The steps named in comments are those of T23-admm-convergence.md. *)

From Coq Require Import Reals List Arith Lia Lra Psatz.
From OptPrune Require Import Sums.
Open Scope R_scope.

Section Admm.

(** The entries of the weight; H acts on rows, which the proof need not know. *)
Variable I : Type.
Variable l : list I.
Variable H : (I -> R) -> I -> R.
Variable eta : R.
Hypothesis additive : forall x y i, In i l -> H x i - H y i = H (fun j => x j - y j) i.
Hypothesis semidefinite : forall x, 0 <= dot l x (H x).
Hypothesis bounded : forall x, norm l (H x) <= eta * norm l x.
Hypothesis eta_positive : 0 < eta.

(** The linear term, an unrestricted minimiser, and the admissible matrices. *)
Variables B best : I -> R.
Hypothesis stationary : forall i, In i l -> H best i = B i.
Variable admissible : (I -> R) -> Prop.

(** The iterates: W (t + 1), D and V of the page, and the penalties. *)
Variables W D V : nat -> I -> R.
Variable rho : nat -> R.
Hypothesis rho_positive : forall t, 0 < rho t.
Hypothesis W_step : forall t i, In i l -> H (W (S t)) i + rho t * W (S t) i = B i - V t i + rho t * D t i.
Hypothesis D_step : forall t Z, admissible Z ->
  norm l (fun i => D (S t) i - (W (S t) i + V t i / rho t)) <= norm l (fun i => Z i - (W (S t) i + V t i / rho t)).
Hypothesis V_step : forall t i, In i l -> V (S t) i = V t i + rho t * (W (S t) i - D (S t) i).
Hypothesis D_admissible : forall t, admissible (D t).

Definition w t := norm l (fun i => W t i - best i).
Definition e t := norm l (fun i => D t i - best i).
Definition v t := norm l (V t).
Definition m t := Rmax (e t) (v t / eta).

Lemma norm_scaled c (x : I -> R) : 0 <= c -> norm l (fun i => c * x i) = c * norm l x.
Proof.
  intros nonneg. unfold norm. transitivity (sqrt (c * c) * sqrt (dot l x x)); [|now rewrite sqrt_square].
  rewrite <- sqrt_mult by (try apply Rle_0_sqr; apply dot_self_nonneg). f_equal.
  unfold dot. rewrite <- sum_scal. apply sum_ext. intros; ring.
Qed.

Lemma norm_opposite (x : I -> R) : norm l (fun i => - x i) = norm l x.
Proof. unfold norm, dot. f_equal. apply sum_ext. intros; ring. Qed.

(** Step 1. *)
Lemma W_near t : w (S t) <= e t + v t / rho t.
Proof.
  pose proof (rho_positive t) as positive. set (u := fun i => W (S t) i - best i).
  set (rhs := fun i => rho t * (D t i - best i) + - V t i).
  assert (equation : forall i, In i l -> H u i + rho t * u i = rhs i).
  { intros i inside. unfold u, rhs. rewrite <- additive by exact inside. rewrite stationary by exact inside.
    pose proof (W_step t i inside). lra. }
  assert (below : rho t * (norm l u * norm l u) <= norm l u * norm l rhs).
  { rewrite norm_squared. eapply Rle_trans; [|apply cauchy_schwarz].
    replace (dot l u rhs) with (dot l u (H u) + rho t * dot l u u); [pose proof (semidefinite u); lra|].
    unfold dot. rewrite <- sum_scal, <- sum_plus. apply sum_ext. intros i inside. rewrite <- (equation i inside). ring. }
  assert (sides : norm l rhs <= rho t * e t + v t).
  { eapply Rle_trans; [apply norm_triangle|]. rewrite norm_opposite, norm_scaled by lra. unfold e, v. lra. }
  pose proof (norm_nonneg l u). fold u. change (w (S t)) with (norm l u).
  apply Rmult_le_reg_l with (rho t); [exact positive|].
  replace (rho t * (e t + v t / rho t)) with (rho t * e t + v t) by (field; lra).
  destruct (Req_dec (norm l u) 0) as [zero | nonzero].
  - rewrite zero. pose proof (norm_nonneg l rhs). lra.
  - apply Rmult_le_reg_l with (norm l u); [lra|].
    apply Rle_trans with (norm l u * norm l rhs); [lra|]. now apply Rmult_le_compat_l.
Qed.

(** Step 2: how far W + V / rho is from the old D, and so from its projection. *)
Lemma gradient_step t i : In i l ->
  D t i - (W (S t) i + V t i / rho t) = / rho t * H (fun j => W (S t) j - best j) i.
Proof.
  intros inside. pose proof (rho_positive t). rewrite <- additive by exact inside. rewrite stationary by exact inside.
  apply Rmult_eq_reg_l with (rho t); [|lra].
  replace (rho t * (D t i - (W (S t) i + V t i / rho t))) with (rho t * D t i - rho t * W (S t) i - V t i) by (field; lra).
  replace (rho t * (/ rho t * (H (W (S t)) i - B i))) with (H (W (S t)) i - B i) by (field; lra).
  pose proof (W_step t i inside). lra.
Qed.

Lemma old_distance t : norm l (fun i => D t i - (W (S t) i + V t i / rho t)) <= eta * w (S t) / rho t.
Proof.
  pose proof (rho_positive t).
  rewrite (norm_ext l _ (fun i => / rho t * H (fun j => W (S t) j - best j) i)) by (intros; now apply gradient_step).
  rewrite norm_scaled by (left; now apply Rinv_0_lt_compat). unfold Rdiv. rewrite (Rmult_comm (eta * w (S t))).
  apply Rmult_le_compat_l; [left; now apply Rinv_0_lt_compat | apply bounded].
Qed.

Lemma V_near t : v (S t) <= eta * w (S t).
Proof.
  pose proof (rho_positive t). unfold v.
  rewrite (norm_ext l _ (fun i => - (rho t * (D (S t) i - (W (S t) i + V t i / rho t)))))
    by (intros i inside; rewrite V_step by exact inside; field; lra).
  rewrite norm_opposite, norm_scaled by lra.
  apply Rle_trans with (rho t * (eta * w (S t) / rho t)); [|right; field; lra].
  apply Rmult_le_compat_l; [lra|]. eapply Rle_trans; [apply (D_step t (D t)), D_admissible | apply old_distance].
Qed.

(** Step 3. *)
Lemma apart_by_multipliers t : norm l (fun i => W (S t) i - D (S t) i) <= (v t + v (S t)) / rho t.
Proof.
  pose proof (rho_positive t).
  rewrite (norm_ext l _ (fun i => / rho t * (V (S t) i + - V t i)))
    by (intros i inside; rewrite V_step by exact inside; field; lra).
  rewrite norm_scaled by (left; now apply Rinv_0_lt_compat). unfold Rdiv. rewrite Rmult_comm.
  apply Rmult_le_compat_r; [left; now apply Rinv_0_lt_compat|].
  eapply Rle_trans; [apply norm_triangle|]. rewrite norm_opposite. unfold v. lra.
Qed.

Lemma D_near t : e (S t) <= w (S t) + (v t + v (S t)) / rho t.
Proof.
  eapply Rle_trans; [|apply Rplus_le_compat_l, apart_by_multipliers].
  unfold e. rewrite <- (norm_opposite (fun i => W (S t) i - D (S t) i)).
  eapply Rle_trans; [|apply norm_triangle]. right. apply norm_ext. intros; ring.
Qed.

(** Step 4. *)
Lemma e_below t : e t <= m t. Proof. apply Rmax_l. Qed.
Lemma v_below t : v t <= eta * m t.
Proof.
  apply Rle_trans with (eta * (v t / eta)); [right; field; lra|]. apply Rmult_le_compat_l; [lra | apply Rmax_r].
Qed.
Lemma m_nonneg t : 0 <= m t.
Proof. eapply Rle_trans; [apply norm_nonneg | apply e_below]. Qed.

Lemma w_below t : w (S t) <= (1 + eta / rho t) * m t.
Proof.
  pose proof (rho_positive t). pose proof (W_near t). pose proof (e_below t). pose proof (v_below t).
  assert (v t / rho t <= eta * m t / rho t) by (apply Rmult_le_compat_r; [left; now apply Rinv_0_lt_compat | assumption]).
  replace ((1 + eta / rho t) * m t) with (m t + eta * m t / rho t) by (field; lra). lra.
Qed.

Lemma m_step t : m (S t) <= (1 + eta / rho t) * (1 + eta / rho t) * (1 + eta / rho t) * m t.
Proof.
  pose proof (rho_positive t) as positive. set (x := eta / rho t).
  assert (0 < x) by now apply Rdiv_lt_0_compat. pose proof (m_nonneg t). pose proof (w_below t) as near. fold x in near.
  pose proof (V_near t). pose proof (D_near t). pose proof (v_below t).
  assert (0 <= x * m t) by (apply Rmult_le_pos; lra). assert (0 <= x * (x * m t)) by (apply Rmult_le_pos; lra).
  assert (0 <= x * (x * (x * m t))) by (apply Rmult_le_pos; lra).
  apply Rmax_lub.
  - assert ((v t + v (S t)) / rho t <= x * (m t + (1 + x) * m t)).
    { replace (x * (m t + (1 + x) * m t)) with ((eta * m t + eta * ((1 + x) * m t)) / rho t) by (unfold x; field; lra).
      apply Rmult_le_compat_r; [left; now apply Rinv_0_lt_compat|].
      assert (eta * w (S t) <= eta * ((1 + x) * m t)) by (apply Rmult_le_compat_l; lra). lra. }
    lra.
  - apply Rmult_le_reg_l with eta; [exact eta_positive|]. replace (eta * (v (S t) / eta)) with (v (S t)) by (field; lra).
    assert (eta * w (S t) <= eta * ((1 + x) * (1 + x) * (1 + x) * m t)) by (apply Rmult_le_compat_l; lra). lra.
Qed.

(** Step 5: everything stays within a constant. *)
Definition inverse_sum n := sum (seq 0 n) (fun t => / rho t).

Lemma growth t : 1 + eta / rho t <= exp (eta * / rho t).
Proof. apply exp_ineq1_le. Qed.

Lemma m_bounded n : m n <= m O * exp (3 * eta * inverse_sum n).
Proof.
  unfold inverse_sum. induction n as [|n IH].
  - simpl. rewrite Rmult_0_r, exp_0. lra.
  - rewrite seq_S, sum_app. simpl sum. rewrite Rplus_0_r, Rmult_plus_distr_l, exp_plus.
    pose proof (growth n) as grows. pose proof (m_step n) as step. pose proof (m_nonneg n).
    assert (0 < eta / rho n) by (apply Rdiv_lt_0_compat; [exact eta_positive | apply rho_positive]).
    set (x := 1 + eta / rho n) in *. set (y := exp (eta * / rho n)) in *.
    assert (1 <= x) by (unfold x; lra).
    replace (exp (3 * eta * / rho n)) with (y * y * y) by (unfold y; rewrite <- !exp_plus; f_equal; ring).
    assert (x * x * x <= y * y * y).
    { apply Rmult_le_compat; [apply Rmult_le_pos | | apply Rmult_le_compat |]; lra. }
    apply Rle_trans with (x * x * x * m n); [exact step|]. rewrite <- Rmult_assoc, (Rmult_comm _ (y * y * y)).
    apply Rmult_le_compat; [apply Rmult_le_pos; [apply Rmult_le_pos|] | | |]; lra.
Qed.

Variable total : R.
Hypothesis summable : forall n, inverse_sum n <= total.
Definition constant := 2 * eta * m O * exp (3 * eta * total).

Lemma inverse_sum_step n : inverse_sum (S n) = inverse_sum n + / rho n.
Proof. unfold inverse_sum. rewrite seq_S, sum_app. simpl. ring. Qed.

Lemma m_total n : m n <= m O * exp (3 * eta * total).
Proof.
  eapply Rle_trans; [apply m_bounded|]. apply Rmult_le_compat_l; [apply m_nonneg|]. apply exp_monotone.
  apply Rmult_le_compat_l; [lra | apply summable].
Qed.

Lemma w_total n : w (S n) <= m O * exp (3 * eta * total).
Proof.
  eapply Rle_trans; [apply w_below|]. pose proof (m_bounded n) as before. pose proof (rho_positive n).
  assert (0 < eta / rho n) by now apply Rdiv_lt_0_compat. pose proof (m_nonneg n). pose proof (m_nonneg O).
  apply Rle_trans with (exp (3 * eta * / rho n) * (m O * exp (3 * eta * inverse_sum n))).
  - apply Rmult_le_compat; [lra | assumption | | exact before].
    eapply Rle_trans; [apply growth|]. apply exp_monotone. assert (0 < eta * / rho n) by assumption. lra.
  - replace (exp (3 * eta * / rho n) * (m O * exp (3 * eta * inverse_sum n))) with (m O * exp (3 * eta * inverse_sum (S n))).
    + apply Rmult_le_compat_l; [assumption|]. apply exp_monotone, Rmult_le_compat_l; [lra | apply summable].
    + rewrite inverse_sum_step, Rmult_plus_distr_l, exp_plus. ring.
Qed.

(** (a): the copies approach each other, and D moves less and less. *)
Theorem copies_meet t : norm l (fun i => W (S t) i - D (S t) i) <= constant / rho t.
Proof.
  eapply Rle_trans; [apply apart_by_multipliers|].
  apply Rmult_le_compat_r; [left; apply Rinv_0_lt_compat, rho_positive|]. unfold constant.
  assert (forall n, v n <= eta * (m O * exp (3 * eta * total))) as each.
  { intros n. eapply Rle_trans; [apply v_below|]. apply Rmult_le_compat_l; [lra | apply m_total]. }
  pose proof (each t). pose proof (each (S t)). lra.
Qed.

Theorem steps_shrink t : norm l (fun i => D (S t) i - D t i) <= constant / rho t.
Proof.
  pose proof (rho_positive t) as positive.
  apply Rle_trans with (eta * w (S t) / rho t + eta * w (S t) / rho t).
  - rewrite (norm_ext l _ (fun i => (D (S t) i - (W (S t) i + V t i / rho t)) + - (D t i - (W (S t) i + V t i / rho t))))
      by (intros; ring).
    eapply Rle_trans; [apply norm_triangle|]. rewrite norm_opposite. apply Rplus_le_compat; [|apply old_distance].
    eapply Rle_trans; [apply (D_step t (D t)), D_admissible | apply old_distance].
  - replace (eta * w (S t) / rho t + eta * w (S t) / rho t) with (2 * eta * w (S t) / rho t) by (field; lra).
    apply Rmult_le_compat_r; [left; now apply Rinv_0_lt_compat|]. unfold constant.
    apply Rle_trans with (2 * eta * (m O * exp (3 * eta * total))); [|right; ring].
    apply Rmult_le_compat_l; [lra | apply w_total].
Qed.

(** (b): what is left of the way to the limit after t steps, for every later step. *)
Theorem steps_are_summable t k :
  norm l (fun i => D (t + k)%nat i - D t i) <= constant * (inverse_sum (t + k) - inverse_sum t).
Proof.
  induction k as [|k IH].
  - rewrite Nat.add_0_r. rewrite (norm_ext l _ (fun i => 0 * D t i)) by (intros; ring).
    rewrite norm_scaled by lra. right. ring.
  - rewrite Nat.add_succ_r, inverse_sum_step. pose proof (steps_shrink (t + k)) as step. unfold Rdiv in step.
    rewrite (norm_ext l _ (fun i => (D (S (t + k)) i - D (t + k)%nat i) + (D (t + k)%nat i - D t i))) by (intros; ring).
    eapply Rle_trans; [apply norm_triangle|]. lra.
Qed.

End Admm.
