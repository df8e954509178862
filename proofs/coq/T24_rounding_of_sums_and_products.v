(** T24: rounding of sums and inner products. The steps named in comments are those of
    T24-rounding-of-sums-and-products.md. The last section shows that float64 without overflow obeys the model. *)

From Coq Require Import Reals List Arith ZArith Lia Lra Psatz.
From Flocq Require Import Core Relative Plus_error.
From OptPrune Require Import Sums.
Open Scope R_scope.

(** (a): gamma. *)
Definition gamma (u : R) (n : nat) : R := INR n * u / (1 - INR n * u).

Lemma power_times (u : R) (n : nat) : 0 <= u -> INR n * u < 1 -> (1 + u) ^ n * (1 - INR n * u) <= 1.
Proof.
  intros nonneg. induction n as [|n IH]; intros small; [simpl; lra|].
  rewrite S_INR in *. specialize (IH ltac:(nra)). pose proof (pos_INR n).
  assert (0 <= (1 + u) ^ n) by (apply pow_le; lra).
  replace ((1 + u) ^ S n * (1 - (INR n + 1) * u)) with ((1 + u) ^ n * ((1 + u) * (1 - (INR n + 1) * u))) by (simpl; ring).
  apply Rle_trans with ((1 + u) ^ n * (1 - INR n * u)); [|exact IH]. apply Rmult_le_compat_l; [assumption|].
  assert (0 <= (INR n + 1) * (u * u)) by (apply Rmult_le_pos; [lra | apply Rle_0_sqr]). lra.
Qed.

Theorem power_below_gamma (u : R) (n : nat) : 0 <= u -> INR n * u < 1 -> (1 + u) ^ n - 1 <= gamma u n.
Proof.
  intros nonneg small. pose proof (power_times u n nonneg small). unfold gamma.
  apply Rmult_le_reg_r with (1 - INR n * u); [lra|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l by lra. lra.
Qed.

Theorem gamma_adds (u : R) (n m : nat) : 0 <= u -> INR (n + m) * u < 1 ->
  gamma u n + gamma u m + gamma u n * gamma u m <= gamma u (n + m).
Proof.
  intros nonneg small. rewrite plus_INR in small. pose proof (pos_INR n). pose proof (pos_INR m).
  assert (0 <= INR n * u) by now apply Rmult_le_pos. assert (0 <= INR m * u) by now apply Rmult_le_pos.
  unfold gamma. rewrite plus_INR.
  assert (forall x, x < 1 -> x / (1 - x) = / (1 - x) - 1) as shifted by (intros x below; field; lra).
  rewrite !shifted by lra.
  replace (/ (1 - INR n * u) - 1 + (/ (1 - INR m * u) - 1) + (/ (1 - INR n * u) - 1) * (/ (1 - INR m * u) - 1))
    with (/ ((1 - INR n * u) * (1 - INR m * u)) - 1) by (field; lra).
  assert (0 <= INR n * u * (INR m * u)) by now apply Rmult_le_pos.
  apply Rplus_le_compat_r, Rinv_le_contravar; [lra | nra].
Qed.

Section Model.

(** Rounding [fl] to [stored] numbers: relative to a sum of two stored numbers, and up to eta for any other number. *)
Variable fl : R -> R.
Variable stored : R -> Prop.
Variables u eta : R.
Hypothesis u_nonneg : 0 <= u.
Hypothesis eta_nonneg : 0 <= eta.
Hypothesis stores : forall x, stored (fl x).
Hypothesis adds : forall x y, stored x -> stored y -> Rabs (fl (x + y) - (x + y)) <= u * Rabs (x + y).
Hypothesis rounds : forall x, Rabs (fl x - x) <= u * Rabs x + eta.

Variable I : Type.

(** In which order terms are added: a term, two parts, or a product that is added to a part with one rounding. *)
Inductive order : Type :=
  | Term (i : I)
  | Parts (s t : order)
  | Fused (i : I) (t : order).

Fixpoint terms (o : order) : list I :=
  match o with
  | Term i => i :: nil
  | Parts s t => terms s ++ terms t
  | Fused i t => i :: terms t
  end.

Lemma some_terms o : (1 <= length (terms o))%nat.
Proof. induction o; simpl; [lia | rewrite app_length; lia | lia]. Qed.

Lemma power_grows (n m : nat) : (n <= m)%nat -> (1 + u) ^ n <= (1 + u) ^ m.
Proof. intros less. apply Rle_pow; [lra | exact less]. Qed.

(** One more rounding of a number that is near another. *)
Lemma once_more r e A c extra : Rabs (r - e) <= c * A + extra -> Rabs e <= A -> 0 <= c -> 0 <= extra ->
  u * Rabs r + Rabs (r - e) <= ((1 + u) * (1 + c) - 1) * A + (1 + u) * extra.
Proof.
  intros near size c_nonneg extra_nonneg. pose proof (Rabs_pos e).
  assert (Rabs r <= Rabs e + Rabs (r - e)) by (replace r with (e + (r - e)) at 1 by ring; apply Rabs_triang).
  assert (u * Rabs r <= u * (A + (c * A + extra))) by (apply Rmult_le_compat_l; lra). nra.
Qed.

(** (b): sums of stored numbers. *)
Fixpoint is_sum (o : order) : Prop :=
  match o with
  | Term _ => True
  | Parts s t => is_sum s /\ is_sum t
  | Fused _ _ => False
  end.

Fixpoint sum_in (x : I -> R) (o : order) : R :=
  match o with
  | Term i => x i
  | Parts s t => fl (sum_in x s + sum_in x t)
  | Fused i t => sum_in x t
  end.

Lemma sum_stored x o : (forall i, stored (x i)) -> is_sum o -> stored (sum_in x o).
Proof. intros all form. destruct o; simpl; [apply all | apply stores | destruct form]. Qed.

Lemma sum_powers x o : (forall i, stored (x i)) -> is_sum o ->
  Rabs (sum_in x o - sum (terms o) x) <= ((1 + u) ^ (length (terms o) - 1) - 1) * sum (terms o) (fun i => Rabs (x i)).
Proof.
  intros all form. induction o as [i | s IHs t IHt | i t IHt]; [| |destruct form].
  - simpl. rewrite Rplus_0_r, Rminus_diag_eq, Rabs_R0 by reflexivity. lra.
  - destruct form as [form_s form_t]. specialize (IHs form_s). specialize (IHt form_t). cbn [sum_in terms].
    rewrite !sum_app, app_length. pose proof (some_terms s). pose proof (some_terms t).
    set (ns := length (terms s)) in *. set (nt := length (terms t)) in *.
    set (es := sum (terms s) x) in *. set (et := sum (terms t) x) in *.
    set (As := sum (terms s) (fun i => Rabs (x i))) in *. set (At := sum (terms t) (fun i => Rabs (x i))) in *.
    assert (Rabs es <= As) by apply sum_Rabs. assert (Rabs et <= At) by apply sum_Rabs.
    pose proof (Rabs_pos es). pose proof (Rabs_pos et).
    set (r := sum_in x s + sum_in x t).
    assert (stored (sum_in x s)) by now apply sum_stored. assert (stored (sum_in x t)) by now apply sum_stored.
    pose proof (adds (sum_in x s) (sum_in x t) ltac:(assumption) ltac:(assumption)) as last. fold r in last.
    set (c := (1 + u) ^ (ns + nt - 2) - 1).
    assert (0 <= c) by (unfold c; pose proof (power_grows 0 (ns + nt - 2) ltac:(lia)); simpl in *; lra).
    assert (Rabs (r - (es + et)) <= c * (As + At) + 0) as near.
    { replace (r - (es + et)) with ((sum_in x s - es) + (sum_in x t - et)) by (unfold r; ring).
      eapply Rle_trans; [apply Rabs_triang|].
      assert (((1 + u) ^ (ns - 1) - 1) * As <= c * As).
      { apply Rmult_le_compat_r; [lra|]. unfold c. pose proof (power_grows (ns - 1) (ns + nt - 2) ltac:(lia)). lra. }
      assert (((1 + u) ^ (nt - 1) - 1) * At <= c * At).
      { apply Rmult_le_compat_r; [lra|]. unfold c. pose proof (power_grows (nt - 1) (ns + nt - 2) ltac:(lia)). lra. }
      lra. }
    assert (Rabs (es + et) <= As + At) as size by (eapply Rle_trans; [apply Rabs_triang | lra]).
    pose proof (once_more r (es + et) (As + At) c 0 near size ltac:(assumption) (Rle_refl 0)) as total.
    replace (ns + nt - 1)%nat with (S (ns + nt - 2)) by lia. cbn [pow].
    replace ((1 + u) * (1 + c) - 1) with ((1 + u) * (1 + u) ^ (ns + nt - 2) - 1) in total by (unfold c; ring).
    replace (fl r - (es + et)) with ((fl r - r) + (r - (es + et))) by ring.
    eapply Rle_trans; [apply Rabs_triang|]. lra.
Qed.

(** (c): inner products of stored numbers. *)
Fixpoint product_in (x y : I -> R) (o : order) : R :=
  match o with
  | Term i => fl (x i * y i)
  | Parts s t => fl (product_in x y s + product_in x y t)
  | Fused i t => fl (x i * y i + product_in x y t)
  end.

Lemma product_stored x y o : stored (product_in x y o).
Proof. destruct o; apply stores. Qed.

Lemma product_powers x y o :
  Rabs (product_in x y o - sum (terms o) (fun i => x i * y i))
  <= ((1 + u) ^ length (terms o) - 1) * sum (terms o) (fun i => Rabs (x i * y i))
     + INR (length (terms o)) * (1 + u) ^ length (terms o) * eta.
Proof.
  set (f := fun i => x i * y i). change (fun i => Rabs (x i * y i)) with (fun i => Rabs (f i)). induction o as [i | s IHs t IHt | i t IHt].
  - simpl. rewrite !Rplus_0_r, !Rmult_1_r. fold (f i). pose proof (rounds (f i)).
    assert (0 <= u * eta) by now apply Rmult_le_pos. lra.
  - cbn [product_in terms]. rewrite !sum_app, app_length. pose proof (some_terms s). pose proof (some_terms t).
    set (ns := length (terms s)) in *. set (nt := length (terms t)) in *.
    set (es := sum (terms s) f) in *. set (et := sum (terms t) f) in *.
    set (As := sum (terms s) (fun i => Rabs (f i))) in *. set (At := sum (terms t) (fun i => Rabs (f i))) in *.
    assert (Rabs es <= As) by apply sum_Rabs. assert (Rabs et <= At) by apply sum_Rabs.
    pose proof (Rabs_pos es). pose proof (Rabs_pos et).
    set (r := product_in x y s + product_in x y t).
    pose proof (adds _ _ (product_stored x y s) (product_stored x y t)) as last. fold r in last.
    set (c := (1 + u) ^ (ns + nt - 1) - 1). set (extra := INR (ns + nt) * (1 + u) ^ (ns + nt - 1) * eta).
    pose proof (power_grows 0 (ns + nt - 1) ltac:(lia)) as one. cbn [pow] in one.
    pose proof (pos_INR ns). pose proof (pos_INR nt).
    assert (0 <= c) by (unfold c; lra).
    assert (0 <= extra) by (unfold extra; apply Rmult_le_pos; [apply Rmult_le_pos; [apply pos_INR | lra] | assumption]).
    assert (Rabs (r - (es + et)) <= c * (As + At) + extra) as near.
    { replace (r - (es + et)) with ((product_in x y s - es) + (product_in x y t - et)) by (unfold r; ring).
      eapply Rle_trans; [apply Rabs_triang|].
      pose proof (power_grows ns (ns + nt - 1) ltac:(lia)). pose proof (power_grows nt (ns + nt - 1) ltac:(lia)).
      assert (((1 + u) ^ ns - 1) * As <= c * As) by (apply Rmult_le_compat_r; unfold c; lra).
      assert (((1 + u) ^ nt - 1) * At <= c * At) by (apply Rmult_le_compat_r; unfold c; lra).
      assert (INR ns * (1 + u) ^ ns * eta <= INR ns * (1 + u) ^ (ns + nt - 1) * eta)
        by (apply Rmult_le_compat_r; [assumption | now apply Rmult_le_compat_l]).
      assert (INR nt * (1 + u) ^ nt * eta <= INR nt * (1 + u) ^ (ns + nt - 1) * eta)
        by (apply Rmult_le_compat_r; [assumption | now apply Rmult_le_compat_l]).
      unfold extra. rewrite plus_INR. lra. }
    assert (Rabs (es + et) <= As + At) as size by (eapply Rle_trans; [apply Rabs_triang | lra]).
    pose proof (once_more r (es + et) (As + At) c extra near size ltac:(assumption) ltac:(assumption)) as total.
    replace ((1 + u) ^ (ns + nt)) with ((1 + u) * (1 + u) ^ (ns + nt - 1))
      by (replace (ns + nt)%nat with (S (ns + nt - 1)) at 2 by lia; reflexivity).
    replace ((1 + u) * (1 + c) - 1) with ((1 + u) * (1 + u) ^ (ns + nt - 1) - 1) in total by (unfold c; ring).
    replace ((1 + u) * extra) with (INR (ns + nt) * ((1 + u) * (1 + u) ^ (ns + nt - 1)) * eta) in total by (unfold extra; ring).
    replace (fl r - (es + et)) with ((fl r - r) + (r - (es + et))) by ring.
    eapply Rle_trans; [apply Rabs_triang|]. lra.
  - cbn [product_in terms sum length]. fold (f i).
    set (n := length (terms t)) in *. set (et := sum (terms t) f) in *.
    set (At := sum (terms t) (fun i => Rabs (f i))) in *.
    assert (Rabs et <= At) by apply sum_Rabs. pose proof (Rabs_pos et). pose proof (Rabs_pos (f i)).
    set (r := f i + product_in x y t). pose proof (rounds r) as last.
    set (c := (1 + u) ^ n - 1). set (extra := INR n * (1 + u) ^ n * eta).
    pose proof (power_grows 0 n ltac:(lia)) as one. cbn [pow] in one. pose proof (pos_INR n).
    assert (0 <= c) by (unfold c; lra).
    assert (0 <= extra) by (unfold extra; apply Rmult_le_pos; [apply Rmult_le_pos; lra | assumption]).
    assert (Rabs (r - (f i + et)) <= c * (Rabs (f i) + At) + extra) as near.
    { replace (r - (f i + et)) with (product_in x y t - et) by (unfold r; ring).
      assert (0 <= c * Rabs (f i)) by now apply Rmult_le_pos. fold c extra in IHt. lra. }
    assert (Rabs (f i + et) <= Rabs (f i) + At) as size by (eapply Rle_trans; [apply Rabs_triang | lra]).
    pose proof (once_more r (f i + et) (Rabs (f i) + At) c extra near size ltac:(assumption) ltac:(assumption)) as total.
    cbn [pow]. rewrite S_INR.
    replace ((1 + u) * (1 + c) - 1) with ((1 + u) * (1 + u) ^ n - 1) in total by (unfold c; ring).
    replace ((1 + u) * extra) with (INR n * ((1 + u) * (1 + u) ^ n) * eta) in total by (unfold extra; ring).
    assert (1 * eta <= (1 + u) * (1 + u) ^ n * eta) by (apply Rmult_le_compat_r; [assumption | nra]).
    replace (fl r - (f i + et)) with ((fl r - r) + (r - (f i + et))) by ring.
    eapply Rle_trans; [apply Rabs_triang|]. lra.
Qed.

(** (b) and (c) with gamma. *)
Theorem sum_rounding x o : (forall i, stored (x i)) -> is_sum o -> INR (length (terms o) - 1) * u < 1 ->
  Rabs (sum_in x o - sum (terms o) x) <= gamma u (length (terms o) - 1) * sum (terms o) (fun i => Rabs (x i)).
Proof.
  intros all form small. eapply Rle_trans; [now apply sum_powers|].
  apply Rmult_le_compat_r; [apply sum_nonneg; intros; apply Rabs_pos | now apply power_below_gamma].
Qed.

Theorem product_rounding x y o : INR (length (terms o)) * u < 1 ->
  Rabs (product_in x y o - sum (terms o) (fun i => x i * y i))
  <= gamma u (length (terms o)) * sum (terms o) (fun i => Rabs (x i * y i))
     + INR (length (terms o)) * (1 + gamma u (length (terms o))) * eta.
Proof.
  intros small. pose proof (power_below_gamma u (length (terms o)) u_nonneg small).
  eapply Rle_trans; [apply product_powers|]. apply Rplus_le_compat.
  - apply Rmult_le_compat_r; [apply sum_nonneg; intros; apply Rabs_pos | assumption].
  - apply Rmult_le_compat_r; [assumption|]. apply Rmult_le_compat_l; [apply pos_INR | lra].
Qed.

End Model.

(** Float64: 53 digits, least exponent -1074, to nearest, ties to even; without overflow. *)
Definition float64 := FLT_exp (-1074) 53.
Definition nearest := round radix2 float64 ZnearestE.
Definition unit_roundoff := / 2 * bpow radix2 (-53 + 1).
Definition half_smallest := / 2 * bpow radix2 (-1074).

Theorem float64_obeys_the_model :
  (forall x, generic_format radix2 float64 (nearest x))
  /\ (forall x y, generic_format radix2 float64 x -> generic_format radix2 float64 y ->
        Rabs (nearest (x + y) - (x + y)) <= unit_roundoff * Rabs (x + y))
  /\ (forall x, Rabs (nearest x - x) <= unit_roundoff * Rabs x + half_smallest).
Proof.
  assert (Prec_gt_0 53) as digits by (unfold Prec_gt_0; lia).
  assert (0 < unit_roundoff) as positive by (unfold unit_roundoff; pose proof (bpow_gt_0 radix2 (-53 + 1)); lra).
  repeat split.
  - intros x. apply generic_format_round; [now apply FLT_exp_valid | apply valid_rnd_N].
  - intros x y stored_x stored_y.
    destruct (FLT_plus_error_N_ex radix2 (-1074) 53 (fun z => negb (Z.even z)) x y stored_x stored_y) as [eps [small equal]].
    unfold nearest, float64. rewrite equal. replace ((x + y) * (1 + eps) - (x + y)) with (eps * (x + y)) by ring.
    rewrite Rabs_mult. apply Rmult_le_compat_r; [apply Rabs_pos|]. eapply Rle_trans; [exact small|].
    change (u_ro radix2 53) with unit_roundoff.
    apply Rmult_le_reg_r with (1 + unit_roundoff); [lra|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l by lra. nra.
  - intros x. destruct (error_N_FLT radix2 (-1074) 53 ltac:(lia) (fun z => negb (Z.even z)) x) as [eps [eta [small [tiny [_ equal]]]]].
    unfold nearest, float64. rewrite equal. replace (x * (1 + eps) + eta - x) with (eps * x + eta) by ring.
    eapply Rle_trans; [apply Rabs_triang|]. apply Rplus_le_compat; [|exact tiny].
    rewrite Rabs_mult. apply Rmult_le_compat_r; [apply Rabs_pos | exact small].
Qed.

Lemma roundoff_nonneg : 0 <= unit_roundoff.
Proof. unfold unit_roundoff. pose proof (bpow_gt_0 radix2 (-53 + 1)). lra. Qed.

Lemma smallest_nonneg : 0 <= half_smallest.
Proof. unfold half_smallest. pose proof (bpow_gt_0 radix2 (-1074)). lra. Qed.

Theorem sum_in_float64 (I : Type) (x : I -> R) (o : order I) :
  (forall i, generic_format radix2 float64 (x i)) -> is_sum I o -> INR (length (terms I o) - 1) * unit_roundoff < 1 ->
  Rabs (sum_in nearest I x o - sum (terms I o) x)
  <= gamma unit_roundoff (length (terms I o) - 1) * sum (terms I o) (fun i => Rabs (x i)).
Proof.
  destruct float64_obeys_the_model as [stores [adds _]]. intros all form small.
  now apply (sum_rounding nearest (generic_format radix2 float64) unit_roundoff roundoff_nonneg stores adds).
Qed.

Theorem inner_product_in_float64 (I : Type) (x y : I -> R) (o : order I) : INR (length (terms I o)) * unit_roundoff < 1 ->
  Rabs (product_in nearest I x y o - sum (terms I o) (fun i => x i * y i))
  <= gamma unit_roundoff (length (terms I o)) * sum (terms I o) (fun i => Rabs (x i * y i))
     + INR (length (terms I o)) * (1 + gamma unit_roundoff (length (terms I o))) * half_smallest.
Proof.
  destruct float64_obeys_the_model as [stores [adds rounds]]. intros small.
  now apply (product_rounding nearest (generic_format radix2 float64) unit_roundoff half_smallest roundoff_nonneg
               smallest_nonneg stores adds rounds).
Qed.
