(** T03: lower bound for least squares over a family of supports. The steps named in comments are those of
    T03-minorant-lower-bound.md; the selections of (a) are in T03_selection.v. *)

From Coq Require Import Reals List Bool Permutation Lra Psatz.
From OptPrune Require Import Sums T03_selection.
Open Scope R_scope.

Section Minorant.

(** Rows m of the weight and inputs j. *)
Variables Row Input : Type.
Variables (rows : list Row) (inputs : list Input).

(** H, the dense weight R0, cross products C^T by rows, energies, and the diagonal minorant of each row. *)
Variable H : Input -> Input -> R.
Variables R0 C : Row -> Input -> R.
Variable E : Row -> R.
Variable delta : Row -> Input -> R.

Definition over (f : Row -> Input -> R) := sum rows (fun m => sum inputs (fun j => f m j)).

(** Row m of V H, and of V A with A = H - Diag (delta m). *)
Definition times_H (V : Row -> Input -> R) m j := sum inputs (fun i => V m i * H i j).
Definition times_A (V : Row -> Input -> R) m j := times_H V m j - V m j * delta m j.

Definition twice_objective U :=
  over (fun m j => (U m j - R0 m j) * times_H (fun m j => U m j - R0 m j) m j)
  - 2 * over (fun m j => (U m j - R0 m j) * C m j) + sum rows E.

(** The hypotheses. *)
Hypothesis symmetric : forall i j, In i inputs -> In j inputs -> H i j = H j i.
Hypothesis minorant : forall m, In m rows -> forall v : Input -> R,
  0 <= sum inputs (fun j => v j * (sum inputs (fun i => v i * H i j) - v j * delta m j)).
Hypothesis delta_nonneg : forall m j, In m rows -> In j inputs -> 0 <= delta m j.

(** The point of linearisation and what the bound is made of. Where delta and g are both zero so is s, as x / 0 * 0 = 0
    for the real numbers of Coq; where only delta is zero the page's s is infinite, which [finite] excludes. *)
Variable Q : Row -> Input -> R.
Definition P m j := Q m j - R0 m j.
Definition g m j := C m j - times_A P m j.
Definition t m j := delta m j * (R0 m j * R0 m j) + 2 * g m j * R0 m j.
Definition s m j := (g m j + delta m j * R0 m j) * (g m j + delta m j * R0 m j) / delta m j.
Definition finite := forall m j, In m rows -> In j inputs -> delta m j = 0 -> g m j = 0.

Definition over_support (S : Row -> Input -> bool) f := over (fun m j => where_ (S m j) (f m j)).
Definition supported U (S : Row -> Input -> bool) := forall m j, In m rows -> In j inputs -> S m j = false -> U m j = 0.
Definition LB largest := sum rows E - over (fun m j => P m j * times_A P m j) + over t - largest.

Lemma over_le f h : (forall m j, In m rows -> In j inputs -> f m j <= h m j) -> over f <= over h.
Proof. intros below. apply sum_le. intros m in_m. apply sum_le. intros j in_j. now apply below. Qed.

Lemma over_ext f h : (forall m j, In m rows -> In j inputs -> f m j = h m j) -> over f = over h.
Proof. intros same. apply sum_ext. intros m in_m. apply sum_ext. intros j in_j. now apply same. Qed.

Lemma over_plus f h : over (fun m j => f m j + h m j) = over f + over h.
Proof. unfold over. rewrite <- sum_plus. apply sum_ext. intros m _. apply sum_plus. Qed.

Lemma over_scal c f : over (fun m j => c * f m j) = c * over f.
Proof. unfold over. rewrite <- sum_scal. apply sum_ext. intros m _. apply sum_scal. Qed.

Lemma times_A_linear V W a m j :
  times_A (fun m j => V m j + a * W m j) m j = times_A V m j + a * times_A W m j.
Proof.
  unfold times_A, times_H.
  rewrite (sum_ext inputs _ (fun i => V m i * H i j + a * (W m i * H i j))) by (intros; ring).
  rewrite sum_plus, sum_scal. ring.
Qed.

Lemma times_A_symmetric V W : over (fun m j => V m j * times_A W m j) = over (fun m j => W m j * times_A V m j).
Proof.
  apply sum_ext. intros m _. unfold times_A, times_H.
  rewrite (sum_ext inputs _ (fun j => sum inputs (fun i => V m j * (W m i * H i j)) - V m j * W m j * delta m j))
    by (intros j _; rewrite sum_scal; ring).
  rewrite (sum_ext inputs (fun j => W m j * _)
             (fun j => sum inputs (fun i => W m j * (V m i * H i j)) - V m j * W m j * delta m j))
    by (intros j _; rewrite sum_scal; ring).
  rewrite !sum_minus. f_equal. rewrite sum_swap. apply sum_ext. intros i in_i. apply sum_ext. intros j in_j.
  rewrite (symmetric i j) by assumption. ring.
Qed.

(** Step 2: the part that is positive semidefinite lies above its linearisation. *)
Lemma linearised V : over (fun m j => V m j * times_A V m j)
  >= 2 * over (fun m j => V m j * times_A P m j) - over (fun m j => P m j * times_A P m j).
Proof.
  assert (0 <= over (fun m j => (V m j + -1 * P m j) * times_A (fun m j => V m j + -1 * P m j) m j)) as square.
  { apply sum_nonneg. intros m in_m. apply (minorant m in_m (fun j => V m j + -1 * P m j)). }
  rewrite (over_ext _ (fun m j => V m j * times_A V m j + -1 * (V m j * times_A P m j)
                                  + (-1 * (P m j * times_A V m j) + P m j * times_A P m j))) in square
    by (intros m j _ _; rewrite times_A_linear; ring).
  rewrite !over_plus, !over_scal, (times_A_symmetric P V) in square. lra.
Qed.

(** Steps 1 to 3. *)
Lemma separated U :
  twice_objective U >= sum rows E - over (fun m j => P m j * times_A P m j)
    + over (fun m j => delta m j * ((U m j - R0 m j) * (U m j - R0 m j)) - 2 * g m j * (U m j - R0 m j)).
Proof.
  pose proof (linearised (fun m j => U m j - R0 m j)) as below. cbv beta in below.
  unfold twice_objective.
  rewrite (over_ext (fun m j => _ * times_H _ m j)
             (fun m j => (U m j - R0 m j) * times_A (fun m j => U m j - R0 m j) m j
                         + delta m j * ((U m j - R0 m j) * (U m j - R0 m j))))
    by (intros m j _ _; unfold times_A; ring).
  rewrite (over_ext (fun m j => delta m j * _ - _)
             (fun m j => delta m j * ((U m j - R0 m j) * (U m j - R0 m j))
                         + (-2 * ((U m j - R0 m j) * C m j) + 2 * ((U m j - R0 m j) * times_A P m j))))
    by (intros m j _ _; unfold g; ring).
  rewrite !over_plus, !over_scal. lra.
Qed.

(** Steps 4 and 5: one entry, pruned or kept. *)
Lemma one_entry d gr r0 u (kept : bool) :
  0 <= d -> (d = 0 -> gr = 0) -> (kept = false -> u = 0) ->
  d * (r0 * r0) + 2 * gr * r0 - where_ kept ((gr + d * r0) * (gr + d * r0) / d)
  <= d * ((u - r0) * (u - r0)) - 2 * gr * (u - r0).
Proof.
  intros nonneg flat pruned. destruct kept; unfold where_.
  - destruct (Req_dec d 0) as [zero | positive].
    + specialize (flat zero). subst d gr. unfold Rdiv. replace ((0 + 0 * r0) * (0 + 0 * r0) * / 0) with 0 by ring. lra.
    + replace (d * ((u - r0) * (u - r0)) - 2 * gr * (u - r0))
        with (d * (r0 * r0) + 2 * gr * r0 - (gr + d * r0) * (gr + d * r0) / d + (d * u - (gr + d * r0)) * (d * u - (gr + d * r0)) / d)
        by (now field).
      assert (0 <= (d * u - (gr + d * r0)) * (d * u - (gr + d * r0)) / d).
      { apply Rmult_le_pos; [apply Rle_0_sqr | left; apply Rinv_0_lt_compat; lra]. }
      lra.
  - rewrite pruned by reflexivity. lra.
Qed.

(** Step 6 for one support. *)
Lemma bound_on_support U S : finite -> supported U S -> LB (over_support S s) <= twice_objective U.
Proof.
  intros flat inside. pose proof (separated U) as below.
  assert (over (fun m j => t m j + -1 * where_ (S m j) (s m j))
          <= over (fun m j => delta m j * ((U m j - R0 m j) * (U m j - R0 m j)) - 2 * g m j * (U m j - R0 m j))).
  { apply over_le. intros m j in_m in_j.
    pose proof (one_entry (delta m j) (g m j) (R0 m j) (U m j) (S m j)
                  (delta_nonneg m j in_m in_j) (flat m j in_m in_j) (inside m j in_m in_j)).
    unfold t, s. lra. }
  rewrite over_plus, over_scal in H0. unfold LB, over_support. lra.
Qed.

(** The statement: any number that no support of the family exceeds will do for the maximum. *)
Theorem minorant_lower_bound (F : (Row -> Input -> bool) -> Prop) largest U S :
  finite -> (forall S', F S' -> over_support S' s <= largest) ->
  F S -> supported U S -> LB largest <= twice_objective U.
Proof.
  intros flat maximum admissible inside. pose proof (bound_on_support U S flat inside).
  pose proof (maximum S admissible). unfold LB in *. lra.
Qed.

(** (a): the scores are nonnegative, and the maximum is the sum over a selection. *)
Definition cells := list_prod rows inputs.

Lemma scores_nonneg : finite -> forall c, In c cells -> 0 <= entry s c.
Proof.
  intros flat [m j] inside. apply in_prod_iff in inside. destruct inside as [in_m in_j].
  specialize (flat m j in_m in_j). pose proof (delta_nonneg m j in_m in_j). unfold entry, s. cbn [fst snd].
  destruct (Req_dec (delta m j) 0) as [zero | positive].
  - rewrite zero, (flat zero). unfold Rdiv. replace ((0 + 0 * R0 m j) * (0 + 0 * R0 m j) * / 0) with 0 by ring. lra.
  - apply Rmult_le_pos; [apply Rle_0_sqr | left; apply Rinv_0_lt_compat; lra].
Qed.

Lemma over_support_kept S : over_support S s = kept cells (entry s) (fun c => S (fst c) (snd c)).
Proof. unfold kept, cells. now rewrite sum_pairs. Qed.

Theorem bound_of_groups (groups : list (nat * list (Row * Input))) (K S : Row -> Input -> bool) U :
  finite -> Permutation cells (concat (map snd groups)) ->
  (forall group, In group groups -> top (snd group) (fst group) (entry s) (fun c => K (fst c) (snd c))) ->
  (forall group, In group groups -> count (snd group) (fun c => S (fst c) (snd c)) <= INR (fst group)) ->
  supported U S -> LB (over_support K s) <= twice_objective U.
Proof.
  intros flat cover best admissible inside. pose proof (bound_on_support U S flat inside) as bound.
  pose proof (top_of_each_group _ cells groups (entry s) (fun c => S (fst c) (snd c)) (fun c => K (fst c) (snd c))
                cover (scores_nonneg flat) best admissible) as maximal.
  rewrite over_support_kept in bound. rewrite over_support_kept. unfold LB in *. lra.
Qed.

Theorem bound_of_units (units : list (list (Row * Input))) k (K S : Row -> Input -> bool) unit_K unit_S U :
  finite -> Permutation cells (concat units) ->
  (forall u c, In u units -> In c u -> S (fst c) (snd c) = unit_S u) ->
  (forall u c, In u units -> In c u -> K (fst c) (snd c) = unit_K u) ->
  top units k (fun u => sum u (entry s)) unit_K -> count units unit_S <= INR k ->
  supported U S -> LB (over_support K s) <= twice_objective U.
Proof.
  intros flat cover whole_S whole_K best admissible inside. pose proof (bound_on_support U S flat inside) as bound.
  pose proof (top_units _ cells units k (entry s) (fun c => S (fst c) (snd c)) (fun c => K (fst c) (snd c))
                unit_S unit_K cover (scores_nonneg flat) whole_S whole_K best admissible) as maximal.
  rewrite over_support_kept in bound. rewrite over_support_kept. unfold LB in *. lra.
Qed.

(** (b): budgets that are independent across rows give one maximum per row. *)
Theorem independent_rows (F : Row -> (Input -> bool) -> Prop) (largest : Row -> R) U S :
  finite -> (forall m S', In m rows -> F m S' -> sum inputs (fun j => where_ (S' j) (s m j)) <= largest m) ->
  (forall m, In m rows -> F m (S m)) -> supported U S -> LB (sum rows largest) <= twice_objective U.
Proof.
  intros flat maximum admissible inside.
  apply (minorant_lower_bound (fun S' => forall m, In m rows -> F m (S' m)) _ U S); try assumption.
  intros S' all. apply sum_le. intros m in_m. apply maximum; [exact in_m | now apply all].
Qed.

(** The rounding of the selection: computed scores within theta, and the support K that is best for their upper ends. *)
Theorem rounded_selection (F : (Row -> Input -> bool) -> Prop) (near theta : Row -> Input -> R) K U S :
  finite -> (forall m j, In m rows -> In j inputs -> Rabs (near m j - s m j) <= theta m j) ->
  (forall S', F S' -> over_support S' (fun m j => near m j + theta m j) <= over_support K (fun m j => near m j + theta m j)) ->
  F S -> supported U S -> LB (over_support K s + 2 * over_support K theta) <= twice_objective U.
Proof.
  intros flat close best admissible inside. apply (minorant_lower_bound F _ U S); try assumption.
  intros S' member. specialize (best S' member). unfold over_support in *.
  assert (within : forall m j, In m rows -> In j inputs ->
            s m j <= near m j + theta m j /\ near m j + theta m j <= s m j + 2 * theta m j).
  { intros m j in_m in_j. specialize (close m j in_m in_j). apply Rabs_between in close. lra. }
  rewrite <- over_scal, <- over_plus.
  eapply Rle_trans; [|eapply Rle_trans; [exact best|]].
  - apply over_le. intros m j in_m in_j. specialize (within m j in_m in_j). destruct (S' m j); simpl; lra.
  - apply over_le. intros m j in_m in_j. specialize (within m j in_m in_j). destruct (K m j); simpl; lra.
Qed.

(** (d): the same number around Q. [gradient] is P H - C^T. *)
Definition gradient m j := times_H P m j - C m j.

Theorem around_any_point largest :
  LB largest = twice_objective Q + over (fun m j => delta m j * (Q m j * Q m j) - 2 * gradient m j * Q m j) - largest
  /\ forall m j, s m j = (delta m j * Q m j - gradient m j) * (delta m j * Q m j - gradient m j) / delta m j.
Proof.
  split.
  - unfold LB, twice_objective, t, g, gradient. change (fun m j => Q m j - R0 m j) with P.
    rewrite (over_ext (fun m j => P m j * times_A P m j) (fun m j => P m j * times_H P m j + -1 * (delta m j * (P m j * P m j))))
      by (intros; unfold times_A; ring).
    rewrite (over_ext (fun m j => (Q m j - R0 m j) * times_H P m j) (fun m j => P m j * times_H P m j)) by reflexivity.
    rewrite (over_ext (fun m j => delta m j * (R0 m j * R0 m j) + _)
               (fun m j => delta m j * (Q m j * Q m j) - 2 * (times_H P m j - C m j) * Q m j
                  + (-1 * (delta m j * (P m j * P m j)) + (2 * (P m j * times_H P m j) + -2 * ((Q m j - R0 m j) * C m j)))))
      by (intros; unfold times_A, P; ring).
    rewrite !over_plus, !over_scal. ring.
  - intros m j. unfold s, g, gradient, times_A, P. f_equal; ring.
Qed.

End Minorant.
