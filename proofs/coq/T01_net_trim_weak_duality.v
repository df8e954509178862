(** T01: weak duality for Net-Trim. The steps named in comments are those of T01-net-trim-weak-duality.md. *)

From Coq Require Import Reals List Bool Lra Psatz.
From OptPrune Require Import Sums.
Open Scope R_scope.

Section NetTrim.

(** Samples p, inputs j and outputs m are the entries of three lists. *)
Variables Sample Input Output : Type.
Variables (samples : list Sample) (inputs : list Input) (outputs : list Output).

(** The program: inputs X, targets Y, ceilings V, active entries, radius; a bias is an input that is not penalised. *)
Variable X : Sample -> Input -> R.
Variables Y V : Sample -> Output -> R.
Variable active : Sample -> Output -> bool.
Variable penalised : Input -> bool.

Definition cells := list_prod samples outputs.
Definition Omega := filter (fun c => active (fst c) (snd c)) cells.
Definition Omega_c := filter (fun c => negb (active (fst c) (snd c))) cells.

Definition product (U : Output -> Input -> R) p m := sum inputs (fun j => X p j * U m j).
Definition correlation (L : Sample -> Output -> R) j m := sum samples (fun p => X p j * L p m).
Definition residual U p m := product U p m - Y p m.

(** Sum of f over outputs and penalised inputs, and over outputs and the other inputs. *)
Definition over_penalised (f : Output -> Input -> R) :=
  sum outputs (fun m => sum inputs (fun j => where_ (penalised j) (f m j))).
Definition over_others (f : Output -> Input -> R) :=
  sum outputs (fun m => sum inputs (fun j => where_ (negb (penalised j)) (f m j))).

(** F of the page. *)
Definition objective U := over_penalised (fun m j => Rabs (U m j)).

Definition below_ceiling U := forall p m, In p samples -> In m outputs -> active p m = false -> product U p m <= V p m.
Definition in_ball radius U := norm Omega (entry (residual U)) <= radius.

(** Properties 1 to 3 of the multipliers. *)
Definition sign_correct (L : Sample -> Output -> R) :=
  forall p m, In p samples -> In m outputs -> active p m = false -> 0 <= L p m.
Definition small_on_penalised L :=
  forall j m, In j inputs -> In m outputs -> penalised j = true -> Rabs (correlation L j m) <= 1.
Definition zero_on_others L :=
  forall j m, In j inputs -> In m outputs -> penalised j = false -> correlation L j m = 0.

(** The part of g that does not depend on how the residual is limited. *)
Definition linear_part L := - dot Omega (entry L) (entry Y) - dot Omega_c (entry L) (entry V).
Definition g radius L := linear_part L - radius * norm Omega (entry L).

(** Step 1. *)
Lemma adjoint L U :
  sum samples (fun p => sum outputs (fun m => L p m * product U p m))
  = sum outputs (fun m => sum inputs (fun j => correlation L j m * U m j)).
Proof.
  rewrite sum_swap. apply sum_ext. intros m _. unfold product, correlation.
  rewrite (sum_ext inputs _ (fun j => sum samples (fun p => X p j * L p m * U m j)))
    by (intros j _; now rewrite sum_scal_r).
  rewrite <- sum_swap. apply sum_ext. intros p _. rewrite <- sum_scal. apply sum_ext. intros j _. ring.
Qed.

(** Step 3. *)
Lemma split_over_Omega L U :
  sum samples (fun p => sum outputs (fun m => L p m * product U p m))
  = dot Omega (entry L) (entry (residual U)) + dot Omega (entry L) (entry Y)
    + dot Omega_c (entry L) (entry (product U)).
Proof.
  transitivity (sum cells (fun c => entry L c * entry (product U) c)).
  { unfold cells. now rewrite sum_pairs. }
  rewrite (sum_partition (fun c => active (fst c) (snd c))). unfold dot, Omega, Omega_c.
  f_equal. rewrite <- sum_plus. apply sum_ext. intros c _. unfold entry, residual. ring.
Qed.

(** Step 4, the half-spaces. *)
Lemma ceiling_part L U : sign_correct L -> below_ceiling U ->
  dot Omega_c (entry L) (entry (product U)) <= dot Omega_c (entry L) (entry V).
Proof.
  intros signs ceiling. apply sum_le. intros [p m] inside.
  apply filter_In in inside. destruct inside as [inside inactive].
  apply in_prod_iff in inside. destruct inside as [inside_p inside_m]. simpl in inactive.
  apply negb_true_iff in inactive. unfold entry; simpl.
  apply Rmult_le_compat_l; [now apply signs | now apply ceiling].
Qed.

(** Steps 1 to 3 together, with everything kept that step 2 drops (10) or assumes to vanish (8). *)
Lemma core L U : sign_correct L -> below_ceiling U ->
  objective U >= linear_part L - dot Omega (entry L) (entry (residual U))
                 + over_penalised (fun m j => (1 - Rabs (correlation L j m)) * Rabs (U m j))
                 - over_others (fun m j => Rabs (correlation L j m) * Rabs (U m j)).
Proof.
  intros signs ceiling. pose proof (ceiling_part L U signs ceiling) as half_spaces.
  pose proof (adjoint L U) as transposed. rewrite split_over_Omega in transposed.
  set (weights := sum outputs _) in transposed.
  assert (below : - weights <= objective U
                  - over_penalised (fun m j => (1 - Rabs (correlation L j m)) * Rabs (U m j))
                  + over_others (fun m j => Rabs (correlation L j m) * Rabs (U m j))).
  { unfold weights, objective, over_penalised, over_others.
    rewrite <- sum_minus, <- sum_plus, <- sum_opp. apply sum_le. intros m _.
    rewrite <- sum_minus, <- sum_plus, <- sum_opp. apply sum_le. intros j _.
    pose proof (Rle_abs (- (correlation L j m * U m j))) as step.
    rewrite Rabs_Ropp, Rabs_mult in step.
    unfold where_. destruct (penalised j); simpl; lra. }
  unfold linear_part. lra.
Qed.

Lemma others_vanish L f : zero_on_others L ->
  over_others (fun m j => Rabs (correlation L j m) * f m j) = 0.
Proof.
  intros zero. unfold over_others. rewrite <- (sum_zero outputs). apply sum_ext. intros m inside_m.
  rewrite <- (sum_zero inputs). apply sum_ext. intros j inside_j.
  unfold where_. destruct (penalised j) eqn:which; simpl; [reflexivity|].
  rewrite zero by assumption. rewrite Rabs_R0. ring.
Qed.

Lemma penalised_nonneg L U : small_on_penalised L ->
  0 <= over_penalised (fun m j => (1 - Rabs (correlation L j m)) * Rabs (U m j)).
Proof.
  intros small. apply sum_nonneg. intros m inside_m. apply sum_nonneg. intros j inside_j.
  unfold where_. destruct (penalised j) eqn:which; [|lra].
  specialize (small j m inside_j inside_m which). pose proof (Rabs_pos (U m j)).
  apply Rmult_le_pos; lra.
Qed.

Lemma ball_part radius L U : in_ball radius U ->
  dot Omega (entry L) (entry (residual U)) <= radius * norm Omega (entry L).
Proof.
  intros ball. eapply Rle_trans; [apply cauchy_schwarz|].
  rewrite Rmult_comm. apply Rmult_le_compat_r; [apply norm_nonneg | exact ball].
Qed.

(** The statement, and (e): what the optimum leaves to each weight. *)
Theorem weights_near_zero radius L U :
  sign_correct L -> zero_on_others L -> below_ceiling U -> in_ball radius U ->
  over_penalised (fun m j => (1 - Rabs (correlation L j m)) * Rabs (U m j)) <= objective U - g radius L.
Proof.
  intros signs zero ceiling ball. pose proof (core L U signs ceiling) as bound.
  rewrite (others_vanish L (fun m j => Rabs (U m j)) zero) in bound.
  pose proof (ball_part radius L U ball). unfold g. lra.
Qed.

Theorem weak_duality radius L U :
  sign_correct L -> small_on_penalised L -> zero_on_others L ->
  below_ceiling U -> in_ball radius U -> g radius L <= objective U.
Proof.
  intros signs small zero ceiling ball.
  pose proof (weights_near_zero radius L U signs zero ceiling ball).
  pose proof (penalised_nonneg L U small). lra.
Qed.

(** (e), second sentence: a weight of theta or more is in no optimum. *)
Theorem negligible_weight radius L U best theta m j :
  sign_correct L -> small_on_penalised L -> zero_on_others L -> below_ceiling U -> in_ball radius U ->
  objective U <= best -> In m outputs -> In j inputs -> penalised j = true ->
  best - g radius L < (1 - Rabs (correlation L j m)) * theta -> Rabs (U m j) < theta.
Proof.
  intros signs small zero ceiling ball optimal inside_m inside_j which price.
  pose proof (weights_near_zero radius L U signs zero ceiling ball) as total.
  assert (term : (1 - Rabs (correlation L j m)) * Rabs (U m j)
                 <= over_penalised (fun m j => (1 - Rabs (correlation L j m)) * Rabs (U m j))).
  { assert (above : forall m' j', In m' outputs -> In j' inputs ->
              0 <= where_ (penalised j') ((1 - Rabs (correlation L j' m')) * Rabs (U m' j'))).
    { intros m' j' in_m in_j. unfold where_. destruct (penalised j') eqn:on; [|lra].
      pose proof (small j' m' in_j in_m on). pose proof (Rabs_pos (U m' j')). apply Rmult_le_pos; lra. }
    set (term m' j' := where_ (penalised j') ((1 - Rabs (correlation L j' m')) * Rabs (U m' j'))) in above.
    apply Rle_trans with (sum inputs (term m)).
    - apply Rle_trans with (term m j); [unfold term; rewrite which; simpl; lra|].
      apply sum_term_le; [intros j' in_j; now apply above | exact inside_j].
    - apply (sum_term_le outputs (fun m => sum inputs (term m))); [|exact inside_m].
      intros m' in_m. apply sum_nonneg. intros j' in_j. now apply above. }
  pose proof (small j m inside_j inside_m which).
  apply Rnot_le_lt. intros large.
  assert ((1 - Rabs (correlation L j m)) * theta <= (1 - Rabs (correlation L j m)) * Rabs (U m j))
    by (apply Rmult_le_compat_l; lra).
  lra.
Qed.

(** (a): one ball per output. *)
Definition Omega_of m := filter (fun p => active p m) samples.

Lemma dot_by_column f h :
  dot Omega (entry f) (entry h) = sum outputs (fun m => dot (Omega_of m) (fun p => f p m) (fun p => h p m)).
Proof.
  unfold dot, Omega, Omega_of, cells. rewrite sum_filter, sum_pairs, sum_swap.
  apply sum_ext. intros m _. now rewrite sum_filter.
Qed.

Theorem weak_duality_per_neuron (radius : Output -> R) L U :
  sign_correct L -> small_on_penalised L -> zero_on_others L -> below_ceiling U ->
  (forall m, In m outputs -> norm (Omega_of m) (fun p => residual U p m) <= radius m) ->
  linear_part L - sum outputs (fun m => radius m * norm (Omega_of m) (fun p => L p m)) <= objective U.
Proof.
  intros signs small zero ceiling balls. pose proof (core L U signs ceiling) as bound.
  rewrite (others_vanish L (fun m j => Rabs (U m j)) zero) in bound.
  pose proof (penalised_nonneg L U small).
  assert (dot Omega (entry L) (entry (residual U))
          <= sum outputs (fun m => radius m * norm (Omega_of m) (fun p => L p m))).
  { rewrite dot_by_column. apply sum_le. intros m inside.
    eapply Rle_trans; [apply cauchy_schwarz|]. rewrite Rmult_comm.
    apply Rmult_le_compat_r; [apply norm_nonneg | now apply balls]. }
  lra.
Qed.

(** (b): dividing column m by t m makes multipliers admissible that satisfy 1 and 3. *)
Lemma correlation_scaled (t : Output -> R) L j m :
  correlation (fun p m => L p m / t m) j m = correlation L j m / t m.
Proof.
  unfold correlation, Rdiv. rewrite <- sum_scal_r. apply sum_ext. intros p _. ring.
Qed.

Theorem rescaling (t : Output -> R) L :
  sign_correct L -> zero_on_others L -> (forall m, In m outputs -> 1 <= t m) ->
  (forall j m, In j inputs -> In m outputs -> penalised j = true -> Rabs (correlation L j m) <= t m) ->
  let scaled p m := L p m / t m in
  sign_correct scaled /\ small_on_penalised scaled /\ zero_on_others scaled.
Proof.
  intros signs zero one large scaled. repeat split.
  - intros p m inside_p inside_m inactive. specialize (one m inside_m).
    apply Rmult_le_pos; [now apply signs | left; apply Rinv_0_lt_compat; lra].
  - intros j m inside_j inside_m which. specialize (one m inside_m).
    unfold scaled. rewrite correlation_scaled. unfold Rdiv. rewrite Rabs_mult, Rabs_inv, (Rabs_pos_eq (t m)) by lra.
    apply Rmult_le_reg_r with (t m); [lra|]. rewrite Rmult_assoc, Rinv_l, Rmult_1_r, Rmult_1_l by lra.
    now apply large.
  - intros j m inside_j inside_m which. unfold scaled. rewrite correlation_scaled, zero by assumption.
    unfold Rdiv. ring.
Qed.

(** (b) with the t that the code uses: max(1, largest correlation with a penalised input). *)
Fixpoint largest_correlation (list_of : list Input) L m :=
  match list_of with
  | nil => 1
  | cons j rest => Rmax (where_ (penalised j) (Rabs (correlation L j m))) (largest_correlation rest L m)
  end.

Theorem weak_duality_rescaled radius L U :
  sign_correct L -> zero_on_others L -> below_ceiling U -> in_ball radius U ->
  g radius (fun p m => L p m / largest_correlation inputs L m) <= objective U.
Proof.
  intros signs zero ceiling ball.
  destruct (rescaling (fun m => largest_correlation inputs L m) L signs zero) as [signs' [small' zero']].
  - intros m _. induction inputs as [|j rest IH]; simpl; [lra|]. eapply Rle_trans; [apply IH | apply Rmax_r].
  - intros j m inside _ which. induction inputs as [|i rest IH]; [destruct inside|].
    simpl. destruct inside as [<- | inside].
    + rewrite which. simpl. apply Rmax_l.
    + eapply Rle_trans; [now apply IH | apply Rmax_r].
  - now apply weak_duality.
Qed.

(** (c): property 3 holds up to a residual, and the unpenalised weights are bounded. *)
Theorem weak_duality_with_residual radius L U (beta : Output -> Input -> R) :
  sign_correct L -> small_on_penalised L -> below_ceiling U -> in_ball radius U ->
  (forall m j, In m outputs -> In j inputs -> penalised j = false -> Rabs (U m j) <= beta m j) ->
  g radius L - over_others (fun m j => beta m j * Rabs (correlation L j m)) <= objective U.
Proof.
  intros signs small ceiling ball limit. pose proof (core L U signs ceiling) as bound.
  pose proof (penalised_nonneg L U small). pose proof (ball_part radius L U ball).
  assert (over_others (fun m j => Rabs (correlation L j m) * Rabs (U m j))
          <= over_others (fun m j => beta m j * Rabs (correlation L j m))).
  { apply sum_le. intros m inside_m. apply sum_le. intros j inside_j.
    unfold where_. destruct (penalised j) eqn:which; simpl; [lra|].
    rewrite Rmult_comm. apply Rmult_le_compat_r; [apply Rabs_pos | now apply limit]. }
  unfold g. lra.
Qed.

(** (c), second sentence: the bias is the one unpenalised input, written first. *)
Theorem bias_bound radius U best largest bias rest p m :
  inputs = bias :: rest -> (forall j, In j rest -> penalised j = true) -> (forall q, X q bias = 1) ->
  in_ball radius U -> objective U <= best ->
  In p samples -> In m outputs -> active p m = true ->
  0 <= largest -> (forall j, In j rest -> Rabs (X p j) <= largest) ->
  Rabs (U m bias) <= Rabs (Y p m) + radius + best * largest.
Proof.
  intros order all constant ball optimal inside_p inside_m on positive limit.
  assert (near : Rabs (residual U p m) <= radius).
  { eapply Rle_trans; [|exact ball]. apply (Rabs_le_norm Omega (entry (residual U)) (p, m)).
    apply filter_In. split; [now apply in_prod | exact on]. }
  assert (others : Rabs (sum rest (fun j => X p j * U m j)) <= best * largest).
  { apply Rle_trans with (sum rest (fun j => Rabs (U m j) * largest)).
    - eapply Rle_trans; [apply sum_Rabs|]. apply sum_le. intros j inside. rewrite Rabs_mult, Rmult_comm.
      apply Rmult_le_compat_l; [apply Rabs_pos | now apply limit].
    - rewrite sum_scal_r. apply Rmult_le_compat_r; [exact positive|]. eapply Rle_trans; [|exact optimal].
      apply Rle_trans with (sum inputs (fun j => where_ (penalised j) (Rabs (U m j)))).
      + rewrite order. simpl.
        assert (0 <= where_ (penalised bias) (Rabs (U m bias)))
          by (unfold where_; destruct (penalised bias); [apply Rabs_pos | lra]).
        rewrite (sum_ext rest (fun j => Rabs (U m j)) (fun j => where_ (penalised j) (Rabs (U m j))))
          by (intros j inside; now rewrite all). lra.
      + apply (sum_term_le outputs (fun m => sum inputs (fun j => where_ (penalised j) (Rabs (U m j))))); [|exact inside_m].
        intros m' _. apply sum_nonneg. intros j _. unfold where_. destruct (penalised j); [apply Rabs_pos | lra]. }
  unfold residual, product in near. rewrite order in near. simpl in near. rewrite constant in near.
  replace (U m bias) with (1 * U m bias + sum rest (fun j => X p j * U m j) - Y p m
                           + (Y p m + - sum rest (fun j => X p j * U m j))) by ring.
  eapply Rle_trans; [apply Rabs_triang|].
  pose proof (Rabs_triang (Y p m) (- sum rest (fun j => X p j * U m j))) as last. rewrite Rabs_Ropp in last. lra.
Qed.

(** (d): the residual is in the objective instead of a ball. *)
Theorem weak_duality_penalised mu L U :
  0 < mu -> sign_correct L -> small_on_penalised L -> zero_on_others L -> below_ceiling U ->
  linear_part L - mu / 2 * dot Omega (entry L) (entry L)
  <= objective U + / (2 * mu) * dot Omega (entry (residual U)) (entry (residual U)).
Proof.
  intros positive signs small zero ceiling. pose proof (core L U signs ceiling) as bound.
  rewrite (others_vanish L (fun m j => Rabs (U m j)) zero) in bound.
  pose proof (penalised_nonneg L U small).
  assert (0 <= dot Omega (fun c => entry (residual U) c - mu * entry L c) (fun c => entry (residual U) c - mu * entry L c))
    as square by apply dot_self_nonneg.
  replace (dot Omega (fun c => entry (residual U) c - mu * entry L c) (fun c => entry (residual U) c - mu * entry L c))
    with (2 * mu * (/ (2 * mu) * dot Omega (entry (residual U)) (entry (residual U))
                    - dot Omega (entry L) (entry (residual U)) + mu / 2 * dot Omega (entry L) (entry L))) in square.
  - assert (0 <= / (2 * mu) * dot Omega (entry (residual U)) (entry (residual U))
                    - dot Omega (entry L) (entry (residual U)) + mu / 2 * dot Omega (entry L) (entry L)).
    { apply Rmult_le_reg_l with (2 * mu); lra. }
    lra.
  - transitivity (dot Omega (entry (residual U)) (entry (residual U))
                  - 2 * mu * dot Omega (entry L) (entry (residual U)) + mu * mu * dot Omega (entry L) (entry L));
      [field; lra|].
    unfold dot. rewrite <- !sum_scal, <- sum_minus, <- sum_plus. apply sum_ext. intros c _. ring.
Qed.

End NetTrim.
