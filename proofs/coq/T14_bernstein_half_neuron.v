(** T14: Bernstein's inequality for drawn edges. The steps named in comments are those of T14-bernstein-half-neuron.md;
    the inverses of the bound are in T14_bernstein_inverse.v. Random variables have finitely many values, as drawn edges do. *)

From Coq Require Import Reals List Lra Psatz.
From Coquelicot Require Import Coquelicot.
From OptPrune Require Import Sums T14_bernstein_inverse.
Open Scope R_scope.

(** A function that starts at 0 and does not fall is nonnegative. *)
Lemma nonneg_by_derivative (f f' : R -> R) :
  f 0 = 0 -> (forall x, 0 <= x -> is_derive f x (f' x)) -> (forall x, 0 <= x -> 0 <= f' x) ->
  forall x, 0 <= x -> 0 <= f x.
Proof.
  intros start derivative slope x x_nonneg.
  destruct (MVT_gen f 0 x f') as [c [between step]].
  - intros y range. apply derivative. rewrite Rmin_left in range by exact x_nonneg. lra.
  - intros y range. rewrite Rmin_left in range by exact x_nonneg.
    apply continuity_pt_filterlim. apply (ex_derive_continuous f). exists (f' y). apply derivative. lra.
  - rewrite Rmin_left in between by exact x_nonneg. rewrite start in step.
    assert (0 <= f' c * (x - 0)) by (apply Rmult_le_pos; [apply slope; lra | lra]). lra.
Qed.

(** Step 1, point by point: the exponential series up to its second term, the rest as a geometric series. On the right
    of 0 by three derivatives, on the left by two. *)
Lemma exp_right y : 0 <= y -> (1 - y / 3) * (exp y - 1 - y) <= y * y / 2.
Proof.
  intros nonneg.
  assert (third : forall x, 0 <= x -> 0 <= 1 + (x - 1) * exp x).
  { apply (nonneg_by_derivative _ (fun x => x * exp x)).
    - rewrite exp_0. ring.
    - intros x _. auto_derive; [exact I | ring].
    - intros x positive. apply Rmult_le_pos; [exact positive | left; apply exp_pos]. }
  assert (second : forall x, 0 <= x -> 0 <= 2 * x / 3 + (exp x - 1) * (x - 2) / 3).
  { apply (nonneg_by_derivative _ (fun x => (1 + (x - 1) * exp x) / 3)).
    - rewrite exp_0. field.
    - intros x _. auto_derive; [exact I | field].
    - intros x positive. specialize (third x positive). lra. }
  assert (0 <= y * y / 2 - (1 - y / 3) * (exp y - 1 - y)); [|lra]. revert y nonneg.
  apply (nonneg_by_derivative _ (fun x => 2 * x / 3 + (exp x - 1) * (x - 2) / 3)).
  - rewrite exp_0. field.
  - intros x _. auto_derive; [exact I | field].
  - exact second.
Qed.

Lemma exp_left y : y <= 0 -> exp y - 1 - y <= y * y / 2.
Proof.
  intros negative.
  assert (forall x, 0 <= x -> 0 <= 1 - x + x * x / 2 - exp (- x)) as all.
  { apply (nonneg_by_derivative _ (fun x => - 1 + x + exp (- x))).
    - rewrite Ropp_0, exp_0. field.
    - intros x _. auto_derive; [exact I | field].
    - intros x _. pose proof (exp_ineq1_le (- x)). lra. }
  specialize (all (- y)). rewrite Ropp_involutive in all. lra.
Qed.

Lemma exp_bound y c : Rabs y <= c -> c < 3 -> exp y <= 1 + y + y * y / (2 * (1 - c / 3)).
Proof.
  intros small below. apply Rabs_between in small.
  assert (y * y / 2 <= y * y / (2 * (1 - c / 3)) \/ 0 <= y) as left_side.
  { destruct (Rle_dec 0 y) as [right_ | left_]; [now right | left]. unfold Rdiv. apply Rmult_le_compat_l; [apply Rle_0_sqr|].
    apply Rinv_le_contravar; lra. }
  destruct (Rle_dec 0 y) as [nonneg | negative].
  - pose proof (exp_right y nonneg) as bound.
    assert (exp y - 1 - y <= y * y / (2 * (1 - c / 3))); [|lra].
    apply Rle_trans with (y * y / (2 * (1 - y / 3))).
    + apply Rmult_le_reg_r with (1 - y / 3); [lra|].
      replace (y * y / (2 * (1 - y / 3)) * (1 - y / 3)) with (y * y / 2) by (field; lra). lra.
    + unfold Rdiv. apply Rmult_le_compat_l; [apply Rle_0_sqr | apply Rinv_le_contravar; lra].
  - pose proof (exp_left y ltac:(lra)). destruct left_side; lra.
Qed.

(** A sum of m independent variables: variable i takes the value [Y i j] with probability [q i j], j in a finite list.
    [mean m h] is the expectation of h at the sum of the first m of them, one variable after the other. *)
Section Sums_of_variables.

Variable J : Type.
Variable values : list J.

Fixpoint mean (q Y : nat -> J -> R) (m : nat) (h : R -> R) : R :=
  match m with
  | O => h 0
  | S i => sum values (fun j => q i j * mean q Y i (fun s => h (s + Y i j)))
  end.

Definition at_least (t s : R) : R := if Rle_dec t s then 1 else 0.

Variables q Y : nat -> J -> R.
Hypothesis q_nonneg : forall i j, In j values -> 0 <= q i j.
Hypothesis q_total : forall i, sum values (q i) = 1.

Lemma mean_ext m h k : (forall s, h s = k s) -> mean q Y m h = mean q Y m k.
Proof.
  revert h k. induction m as [|m IH]; intros h k same; simpl; [apply same|].
  apply sum_ext. intros j _. f_equal. apply IH. intros s. apply same.
Qed.

Lemma mean_le m h k : (forall s, h s <= k s) -> mean q Y m h <= mean q Y m k.
Proof.
  revert h k. induction m as [|m IH]; intros h k below; simpl; [apply below|].
  apply sum_le. intros j inside. apply Rmult_le_compat_l; [now apply q_nonneg|]. apply IH. intros s. apply below.
Qed.

Lemma mean_plus m h k : mean q Y m (fun s => h s + k s) = mean q Y m h + mean q Y m k.
Proof.
  revert h k. induction m as [|m IH]; intros h k; simpl; [reflexivity|].
  rewrite <- sum_plus. apply sum_ext. intros j _. rewrite IH. ring.
Qed.

Lemma mean_scal m c h : mean q Y m (fun s => c * h s) = c * mean q Y m h.
Proof.
  revert h. induction m as [|m IH]; intros h; simpl; [reflexivity|].
  rewrite <- sum_scal. apply sum_ext. intros j _. rewrite IH. ring.
Qed.

(** The expectation of an exponential of the sum is a product, by independence. *)
Lemma mean_exp m lambda (factor : nat -> R) :
  (forall i, sum values (fun j => q i j * exp (lambda * Y i j)) <= exp (factor i)) ->
  mean q Y m (fun s => exp (lambda * s)) <= exp (sum (seq 0 m) factor).
Proof.
  intros each. induction m as [|m IH].
  - simpl. rewrite Rmult_0_r. lra.
  - rewrite seq_S, sum_app. simpl sum. rewrite Rplus_0_r, exp_plus. simpl mean.
    rewrite (sum_ext values _ (fun j => q m j * exp (lambda * Y m j) * mean q Y m (fun s => exp (lambda * s)))).
    + rewrite sum_scal_r, Rmult_comm. apply Rmult_le_compat; [|apply sum_nonneg|exact IH|apply each].
      * clear - q_nonneg. assert (forall h, (forall s, 0 <= h s) -> 0 <= mean q Y m h) as nonneg.
        { induction m as [|m IH]; intros h above; simpl; [apply above|]. apply sum_nonneg. intros j inside.
          apply Rmult_le_pos; [now apply q_nonneg | apply IH; intros s; apply above]. }
        apply nonneg. intros s. left. apply exp_pos.
      * intros j inside. apply Rmult_le_pos; [now apply q_nonneg | left; apply exp_pos].
    + intros j _. rewrite (mean_ext m _ (fun s => exp (lambda * Y m j) * exp (lambda * s))).
      * rewrite mean_scal. ring.
      * intros s. rewrite <- exp_plus. f_equal. ring.
Qed.

Hypothesis centred : forall i, sum values (fun j => q i j * Y i j) = 0.
Variable b : R.
Hypothesis bounded : forall i j, In j values -> 0 < q i j -> Rabs (Y i j) <= b.
Definition variance i := sum values (fun j => q i j * (Y i j * Y i j)).

(** Step 1, in expectation. *)
Lemma one_variable i lambda : 0 <= lambda -> lambda * b < 3 ->
  sum values (fun j => q i j * exp (lambda * Y i j)) <= exp (lambda * lambda / (2 * (1 - lambda * b / 3)) * variance i).
Proof.
  intros lambda_nonneg small. eapply Rle_trans; [|apply exp_ineq1_le].
  rewrite <- (q_total i) at 1. unfold variance. rewrite <- sum_scal.
  apply Rle_trans with (sum values (fun j => q i j + (lambda * (q i j * Y i j)
                          + lambda * lambda / (2 * (1 - lambda * b / 3)) * (q i j * (Y i j * Y i j))))).
  - apply sum_le. intros j inside. destruct (Rle_lt_or_eq_dec 0 (q i j) (q_nonneg i j inside)) as [positive | zero].
    + assert (exp (lambda * Y i j) <= 1 + lambda * Y i j
                + lambda * Y i j * (lambda * Y i j) / (2 * (1 - lambda * b / 3))) as bound.
      { apply exp_bound; [|exact small]. rewrite Rabs_mult, Rabs_pos_eq by exact lambda_nonneg.
        apply Rmult_le_compat_l; [exact lambda_nonneg | now apply bounded]. }
      apply Rle_trans with (q i j * (1 + lambda * Y i j + lambda * Y i j * (lambda * Y i j) / (2 * (1 - lambda * b / 3))));
        [now apply Rmult_le_compat_l; [left|]|].
      right. unfold Rdiv. ring.
    + rewrite <- zero. right. ring.
  - rewrite !sum_plus, sum_scal, centred. lra.
Qed.

(** Step 2: Markov's inequality. *)
Lemma one_sided m V lambda t : 0 <= lambda -> lambda * b < 3 -> sum (seq 0 m) variance <= V ->
  mean q Y m (at_least t) <= exp (- (lambda * t) + lambda * lambda / (2 * (1 - lambda * b / 3)) * V).
Proof.
  intros lambda_nonneg small total.
  apply Rle_trans with (mean q Y m (fun s => exp (- (lambda * t)) * exp (lambda * s))).
  - apply mean_le. intros s. rewrite <- exp_plus. unfold at_least. destruct (Rle_dec t s) as [above | below]; [|left; apply exp_pos].
    eapply Rle_trans; [|apply exp_ineq1_le]. assert (lambda * t <= lambda * s) by now apply Rmult_le_compat_l. lra.
  - rewrite mean_scal, exp_plus. apply Rmult_le_compat_l; [left; apply exp_pos|].
    eapply Rle_trans; [apply (mean_exp m lambda (fun i => lambda * lambda / (2 * (1 - lambda * b / 3)) * variance i));
                       intros i; now apply one_variable|].
    rewrite sum_scal. apply exp_monotone. apply Rmult_le_compat_l; [|exact total].
    apply Rmult_le_pos; [apply Rle_0_sqr | left; apply Rinv_0_lt_compat; lra].
Qed.

End Sums_of_variables.

Section Tools.

Variable J : Type.
Variable values : list J.

Lemma mean_mirrored (q Y : nat -> J -> R) m h :
  mean J values q (fun i j => - Y i j) m h = mean J values q Y m (fun s => h (- s)).
Proof.
  revert h. induction m as [|m IH]; intros h; simpl; [now rewrite Ropp_0|].
  apply sum_ext. intros j _. f_equal. rewrite IH. apply mean_ext. intros s. f_equal. ring.
Qed.

Lemma mean_shifted (q Y : nat -> J -> R) a m h :
  mean J values q (fun i j => Y i j - a) m h = mean J values q Y m (fun s => h (s - INR m * a)).
Proof.
  revert h. induction m as [|m IH]; intros h.
  - simpl. f_equal. ring.
  - cbn [mean]. apply sum_ext. intros j _. f_equal. rewrite IH. apply mean_ext. intros s. f_equal. rewrite S_INR. ring.
Qed.

Lemma mean_of_constant (q Y : nat -> J -> R) m h : (forall i, sum values (q i) = 1) ->
  (forall i j, (i < m)%nat -> In j values -> q i j * (Y i j * Y i j) = 0) -> mean J values q Y m h = h 0.
Proof.
  intros total. revert h. induction m as [|m IH]; intros h still; simpl; [reflexivity|].
  rewrite (sum_ext values _ (fun j => q m j * h 0)); [rewrite sum_scal_r, total; ring|].
  intros j inside. destruct (Req_dec (q m j) 0) as [-> | possible]; [ring|].
  assert (Y m j = 0) as zero.
  { specialize (still m j (Nat.lt_succ_diag_r m) inside). apply Rmult_integral in still.
    destruct still as [|square]; [contradiction|]. now apply Rmult_integral in square; destruct square. }
  rewrite IH by (intros; apply still; [now apply Nat.lt_lt_succ_r | assumption]). rewrite zero. f_equal. f_equal. ring.
Qed.

Lemma mean_of_sum (q Y : nat -> J -> R) m : (forall i, sum values (q i) = 1) ->
  mean J values q Y m (fun s => s) = sum (seq 0 m) (fun i => sum values (fun j => q i j * Y i j)).
Proof.
  intros total.
  assert (forall k c, mean J values q Y k (fun s => s + c) = mean J values q Y k (fun s => s) + c) as moved.
  { induction k as [|k IH]; intros c; simpl; [ring|].
    transitivity (sum values (fun j => q k j * mean J values q Y k (fun s => s + Y k j) + c * q k j)).
    - apply sum_ext. intros j _. rewrite (mean_ext J values q Y k _ (fun s => s + (Y k j + c))) by (intros; ring).
      rewrite !IH. ring.
    - rewrite sum_plus, sum_scal, total. ring. }
  induction m as [|m IH]; [reflexivity|].
  rewrite seq_S, sum_app. simpl sum at 3. rewrite <- IH. simpl mean.
  rewrite (sum_ext values _ (fun j => mean J values q Y m (fun s => s) * q m j + q m j * Y m j))
    by (intros j _; rewrite moved; ring).
  rewrite sum_plus, sum_scal, total. simpl. ring.
Qed.

End Tools.

(** (a), for variables with finitely many values. *)
Theorem bernstein (J : Type) (values : list J) (q Y : nat -> J -> R) (b V t : R) (m : nat) :
  (forall i j, In j values -> 0 <= q i j) -> (forall i, sum values (q i) = 1) ->
  (forall i, sum values (fun j => q i j * Y i j) = 0) ->
  0 <= b -> (forall i j, In j values -> 0 < q i j -> Rabs (Y i j) <= b) ->
  sum (seq 0 m) (variance J values q Y) <= V -> 0 < t ->
  mean J values q Y m (fun s => at_least t (Rabs s)) <= tail V b t.
Proof.
  intros nonneg total centred b_nonneg bounded spread t_positive.
  assert (variance_nonneg : forall i, 0 <= variance J values q Y i)
    by (intros i; apply sum_nonneg; intros j inside; apply Rmult_le_pos; [now apply nonneg | apply Rle_0_sqr]).
  assert (0 <= V) as V_nonneg by (eapply Rle_trans; [|exact spread]; apply sum_nonneg; intros; apply variance_nonneg).
  destruct (Rle_lt_or_eq_dec 0 V V_nonneg) as [V_positive | V_zero].
  - set (D := V + b * t / 3). assert (0 <= b * t) by (apply Rmult_le_pos; lra). assert (0 < D) by (unfold D; lra).
    set (lambda := t / D). assert (0 < lambda) by now apply Rdiv_lt_0_compat.
    assert (lambda * D = t) as product by (unfold lambda; field; lra).
    assert (lambda * b < 3) as small.
    { apply Rmult_lt_reg_r with D; [assumption|]. replace (lambda * b * D) with (b * t) by (rewrite <- product at 1; ring).
      unfold D. lra. }
    assert (exponent : - (lambda * t) + lambda * lambda / (2 * (1 - lambda * b / 3)) * V = - (t * t / (2 * D))).
    { assert ((1 - lambda * b / 3) * D = V) as rest by (rewrite Rmult_minus_distr_r; unfold Rdiv in *; rewrite Rmult_1_l;
        replace (lambda * b * / 3 * D) with (b * (lambda * D) * / 3) by ring; rewrite product; unfold D; unfold Rdiv; ring).
      rewrite <- rest at 1. rewrite <- product. field. lra. }
    apply Rle_trans with (mean J values q Y m (fun s => at_least t s + at_least t (- s))).
    + apply mean_le; [exact nonneg|]. intros s. unfold at_least, Rabs.
      destruct (Rcase_abs s); repeat destruct Rle_dec; lra.
    + rewrite mean_plus. unfold tail. fold D. replace (2 * exp (- (t * t / (2 * D))))
        with (exp (- (t * t / (2 * D))) + exp (- (t * t / (2 * D)))) by ring.
      rewrite <- exponent. apply Rplus_le_compat.
      * apply (one_sided J values q Y nonneg total centred b bounded m V lambda t); lra.
      * rewrite <- (mean_mirrored J values q Y m (at_least t)).
        apply (one_sided J values q (fun i j => - Y i j) nonneg total) with (b := b); try lra.
        -- intros i. rewrite <- Ropp_0, <- (centred i), <- sum_opp. apply sum_ext. intros; ring.
        -- intros i j inside possible. rewrite Rabs_Ropp. now apply bounded.
        -- eapply Rle_trans; [|exact spread]. right. apply sum_ext. intros i _. apply sum_ext. intros; ring.
  - rewrite mean_of_constant.
    + unfold at_least. rewrite Rabs_R0. destruct (Rle_dec t 0); [lra|].
      unfold tail. pose proof (exp_pos (- (t * t / (2 * (V + b * t / 3))))). lra.
    + exact total.
    + intros i j before inside. apply Rle_antisym; [|apply Rmult_le_pos; [now apply nonneg | apply Rle_0_sqr]].
      rewrite V_zero. eapply Rle_trans; [|exact spread].
      apply Rle_trans with (variance J values q Y i).
      * apply (sum_term_le values (fun j => q i j * (Y i j * Y i j))); [|exact inside].
        intros k in_k. apply Rmult_le_pos; [now apply nonneg | apply Rle_0_sqr].
      * apply (sum_term_le (seq 0 m) (variance J values q Y)); [intros; apply variance_nonneg|].
        apply in_seq. split; [apply Nat.le_0_l | exact before].
Qed.

(** Drawn edges: [edges] with terms c and probabilities q; m of them are drawn and reweighted. *)
Section Drawn.

Variable Edge : Type.
Variable edges : list Edge.
Variables c q : Edge -> R.
Hypothesis q_nonneg : forall j, In j edges -> 0 <= q j.
Hypothesis q_total : sum edges q = 1.
Hypothesis covered : forall j, In j edges -> q j = 0 -> c j = 0.

Definition z := sum edges c.

(** The expectation of h at the reweighted sum of m draws. *)
Definition drawn (m : nat) (h : R -> R) : R := mean Edge edges (fun _ => q) (fun _ j => c j / (INR m * q j)) m h.

Lemma reweighted m j : (0 < m)%nat -> In j edges -> q j * (c j / (INR m * q j)) = c j / INR m.
Proof.
  intros some inside. assert (0 < INR m) by now apply lt_0_INR. destruct (Req_dec (q j) 0) as [zero | possible].
  - rewrite zero, (covered j inside zero). unfold Rdiv. ring.
  - field. lra.
Qed.

Theorem unbiased m : (0 < m)%nat -> drawn m (fun s => s) = z.
Proof.
  intros some. assert (0 < INR m) by now apply lt_0_INR. unfold drawn. rewrite mean_of_sum by (intros; exact q_total).
  rewrite (sum_ext (seq 0 m) _ (fun _ => z * / INR m)).
  - assert (forall n k, sum (seq k n) (fun _ => z * / INR m) = INR n * (z * / INR m)) as times.
    { induction n as [|n IH]; intros k; [simpl; ring|]. cbn [seq sum]. rewrite IH, S_INR. ring. }
    rewrite times. field. lra.
  - intros i _. unfold z. rewrite <- sum_scal_r. apply sum_ext. intros j inside. now rewrite reweighted.
Qed.

(** (d), with any bounds V and b of the variance and of the largest deviation of one draw. *)
Theorem drawn_tail V b t m : (0 < m)%nat -> 0 <= b ->
  sum edges (fun j => c j * c j / q j) - z * z <= V ->
  (forall j, In j edges -> 0 < q j -> Rabs (c j / q j - z) <= b) -> 0 < t ->
  drawn m (fun s => at_least t (Rabs (s - z))) <= tail (V / INR m) (b / INR m) t.
Proof.
  intros some b_nonneg spread bounded t_positive. assert (0 < INR m) as m_positive by now apply lt_0_INR.
  unfold drawn. rewrite (mean_ext _ _ _ _ m _ (fun s => at_least t (Rabs (s - INR m * (z / INR m)))))
    by (intros s; do 3 f_equal; field; lra).
  rewrite <- (mean_shifted Edge edges (fun _ => q) (fun _ j => c j / (INR m * q j)) (z / INR m) m (fun s => at_least t (Rabs s))).
  apply bernstein; try assumption.
  - intros _. exact q_nonneg.
  - intros _. exact q_total.
  - intros _. rewrite (sum_ext edges _ (fun j => c j * / INR m - z / INR m * q j)).
    + rewrite sum_minus, sum_scal, sum_scal_r, q_total. fold z. unfold Rdiv. ring.
    + intros j inside. rewrite Rmult_minus_distr_l, reweighted by assumption. unfold Rdiv. ring.
  - apply Rmult_le_pos; [exact b_nonneg | left; now apply Rinv_0_lt_compat].
  - intros _ j inside possible.
    replace (c j / (INR m * q j) - z / INR m) with ((c j / q j - z) * / INR m) by (field; lra).
    rewrite Rabs_mult, (Rabs_pos_eq (/ INR m)) by (left; now apply Rinv_0_lt_compat).
    apply Rmult_le_compat_r; [left; now apply Rinv_0_lt_compat | now apply bounded].
  - assert (forall n k x, sum (seq k n) (fun _ => x) = INR n * x) as times.
    { induction n as [|n IH]; intros k x; [simpl; ring|]. cbn [seq sum]. rewrite IH, S_INR. ring. }
    unfold variance. rewrite times.
    rewrite (sum_ext edges _ (fun j => / (INR m * INR m) * (c j * c j / q j - 2 * z * c j + z * z * q j))).
    + rewrite sum_scal, sum_plus, sum_minus, !sum_scal, q_total. fold z.
      replace (INR m * (/ (INR m * INR m) * (sum edges (fun a => c a * c a / q a) - 2 * z * z + z * z * 1)))
        with ((sum edges (fun a => c a * c a / q a) - z * z) / INR m) by (field; lra).
      apply Rmult_le_compat_r; [left; now apply Rinv_0_lt_compat | exact spread].
    + intros j inside. destruct (Req_dec (q j) 0) as [zero | possible].
      * rewrite zero, (covered j inside zero). unfold Rdiv. ring.
      * field. lra.
Qed.

(** (d) at the radius of (b). *)
Theorem drawn_radius V b delta m : (0 < m)%nat -> 0 < delta < 1 -> 0 <= b ->
  sum edges (fun j => c j * c j / q j) - z * z <= V -> 0 <= V -> 0 < V + b ->
  (forall j, In j edges -> 0 < q j -> Rabs (c j / q j - z) <= b) ->
  drawn m (fun s => at_least (radius (V / INR m) (b / INR m) delta) (Rabs (s - z))) <= delta.
Proof.
  intros some range b_nonneg spread V_nonneg positive bounded. assert (0 < / INR m) by now apply Rinv_0_lt_compat, lt_0_INR.
  assert (0 <= V / INR m) by (apply Rmult_le_pos; lra). assert (0 <= b / INR m) by (apply Rmult_le_pos; lra).
  assert (0 < V / INR m + b / INR m) by (unfold Rdiv; rewrite <- Rmult_plus_distr_r; now apply Rmult_lt_0_compat).
  eapply Rle_trans; [|right; apply (tail_at_radius (V / INR m) (b / INR m) delta); assumption].
  apply drawn_tail; try assumption. now apply radius_root.
Qed.

(** (c): nonnegative terms, probabilities proportional to sensitivities. *)
Variable s : Edge -> R.
Variables C eps : R.
Definition S := sum edges s.

Theorem half_neuron m : (0 < m)%nat -> 0 < eps -> 0 < z -> 0 < S -> 0 <= C ->
  (forall j, In j edges -> 0 <= c j) -> (forall j, In j edges -> q j = s j / S) ->
  (forall j, In j edges -> c j <= C * s j * z) ->
  drawn m (fun zhat => at_least (eps * z) (Rabs (zhat - z))) <= relative_tail (INR m) (C * S) eps.
Proof.
  intros some eps_positive z_positive S_positive C_nonneg c_nonneg proportional limit.
  assert (0 < INR m) as m_positive by now apply lt_0_INR.
  assert (ratio : forall j, In j edges -> 0 < q j -> c j / q j <= C * S * z).
  { intros j inside possible. apply Rmult_le_reg_r with (q j); [exact possible|].
    unfold Rdiv. rewrite Rmult_assoc, Rinv_l, Rmult_1_r by lra.
    rewrite (proportional j inside). replace (C * S * z * (s j / S)) with (C * s j * z) by (field; lra). now apply limit. }
  assert (weighted : forall j, In j edges -> c j <= C * S * z * q j).
  { intros j inside. rewrite (proportional j inside). replace (C * S * z * (s j / S)) with (C * s j * z) by (field; lra).
    now apply limit. }
  assert (mean_below : z <= C * S * z).
  { apply Rle_trans with (sum edges (fun j => C * S * z * q j)); [now apply sum_le|]. rewrite sum_scal, q_total. lra. }
  assert (1 <= C * S) by (apply Rmult_le_reg_r with z; lra).
  replace (relative_tail (INR m) (C * S) eps) with (tail (C * S * (z * z) / INR m) (C * S * z / INR m) (eps * z)).
  - apply drawn_tail; try assumption.
    + apply Rmult_le_pos; lra.
    + assert (sum edges (fun j => c j * c j / q j) <= C * S * z * z).
      { unfold z at 2. rewrite <- sum_scal. apply sum_le. intros j inside.
        destruct (Rle_lt_or_eq_dec 0 (q j) (q_nonneg j inside)) as [possible | never].
        - replace (c j * c j / q j) with (c j / q j * c j) by (field; lra).
          apply Rmult_le_compat_r; [now apply c_nonneg | now apply ratio].
        - rewrite (covered j inside) by now symmetry. unfold Rdiv. lra. }
      assert (0 <= z * z) by apply Rle_0_sqr. lra.
    + intros j inside possible. pose proof (ratio j inside possible).
      assert (0 <= c j / q j) by (apply Rmult_le_pos; [now apply c_nonneg | left; now apply Rinv_0_lt_compat]).
      apply Rabs_le. lra.
    + now apply Rmult_lt_0_compat.
  - assert (0 < C * S * (3 + eps)) by (apply Rmult_lt_0_compat; lra).
    assert (0 < z * z * (C * S * (3 + eps))) by (apply Rmult_lt_0_compat; [now apply Rmult_lt_0_compat | assumption]).
    unfold tail, relative_tail. do 2 f_equal. field. repeat split; nra.
Qed.

End Drawn.
