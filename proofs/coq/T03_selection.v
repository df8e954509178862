(** T03 (a): the selections that maximise the sum of nonnegative scores over the supports of a pattern. *)

From Coq Require Import Reals List Bool Permutation Lra Psatz.
From OptPrune Require Import Sums.
Import ListNotations.
Open Scope R_scope.

(** The sum of the scores that a support keeps. *)
Definition kept {A : Type} (l : list A) (s : A -> R) (S : A -> bool) : R := sum l (fun a => where_ (S a) (s a)).

(** K keeps none of the scores that are smaller than one it leaves. *)
Definition keeps_the_largest {A : Type} (l : list A) (s : A -> R) (K : A -> bool) : Prop :=
  forall a b, In a l -> In b l -> K a = true -> K b = false -> s b <= s a.

(** K keeps k indices of l, or all where l has fewer. *)
Definition exhausts {A : Type} (l : list A) (k : nat) (K : A -> bool) : Prop :=
  count l K = INR k \/ ((length l <= k)%nat /\ forall a, In a l -> K a = true).

Definition top {A : Type} (l : list A) (k : nat) (s : A -> R) (K : A -> bool) : Prop :=
  keeps_the_largest l s K /\ exhausts l k K.


(** A number between the scores that K keeps and those that it leaves. *)
Lemma threshold (A : Type) (l : list A) (s : A -> R) (K : A -> bool) :
  (forall a, In a l -> 0 <= s a) -> keeps_the_largest l s K ->
  exists tau, 0 <= tau /\ forall a, In a l -> if K a then tau <= s a else s a <= tau.
Proof.
  intros nonneg largest.
  exists (fold_right (fun a best => if K a then best else Rmax (s a) best) 0 l).
  assert (forall part, incl part l ->
    let tau := fold_right (fun a best => if K a then best else Rmax (s a) best) 0 part in
    0 <= tau /\ (forall a, In a part -> K a = false -> s a <= tau)
             /\ (forall a, In a l -> K a = true -> tau <= s a)) as invariant.
  { induction part as [|b part IH]; intros inside.
    - simpl. repeat split; [lra | intros a [] | intros a in_l _; now apply nonneg].
    - destruct IH as [positive [above below]]; [intros c in_c; apply inside; now right|].
      simpl. destruct (K b) eqn:in_K.
      + repeat split; [exact positive | | exact below].
        intros a [<- | in_a] out; [congruence | now apply above].
      + pose proof (Rmax_l (s b)) as left_. pose proof (Rmax_r (s b)) as right_.
        repeat split.
        * eapply Rle_trans; [exact positive | apply right_].
        * intros a [<- | in_a] out; [apply left_|]. eapply Rle_trans; [now apply above | apply right_].
        * intros a in_a in_Ka. apply Rmax_lub; [|now apply below].
          apply largest; [exact in_a | apply inside; now left | exact in_Ka | exact in_K]. }
  destruct (invariant l (incl_refl l)) as [positive [above below]]. split; [exact positive|].
  intros a in_a. destruct (K a) eqn:in_K; [now apply below | now apply above].
Qed.

(** The k largest scores have the largest sum of all supports of at most k. *)
Theorem top_k (A : Type) (l : list A) (k : nat) (s : A -> R) (S K : A -> bool) :
  (forall a, In a l -> 0 <= s a) -> top l k s K -> count l S <= INR k -> kept l s S <= kept l s K.
Proof.
  intros nonneg [largest full] admissible. destruct full as [full | [_ all]].
  - destruct (threshold A l s K nonneg largest) as [tau [positive between]].
    assert (kept l s S <= sum l (fun a => tau * where_ (S a) 1 + (where_ (K a) (s a) - tau * where_ (K a) 1))).
    { apply sum_le. intros a in_a. specialize (between a in_a). unfold where_.
      destruct (S a), (K a); lra. }
    rewrite sum_plus, sum_minus, !sum_scal in H. fold (count l S) in H. fold (count l K) in H.
    fold (kept l s K) in H. assert (tau * count l S <= tau * count l K) by (apply Rmult_le_compat_l; lra). lra.
  - apply sum_le. intros a in_a. rewrite all by exact in_a. simpl. destruct (S a); simpl; [lra | now apply nonneg].
Qed.

(** The same for what is left out: no support of at most k loses less. *)
Theorem pruned_least (A : Type) (l : list A) (k : nat) (s : A -> R) (S K : A -> bool) :
  (forall a, In a l -> 0 <= s a) -> top l k s K -> count l S <= INR k ->
  kept l s (fun a => negb (K a)) <= kept l s (fun a => negb (S a)).
Proof.
  intros nonneg best admissible. pose proof (top_k A l k s S K nonneg best admissible) as more.
  assert (split : forall T, sum l s = kept l s T + kept l s (fun a => negb (T a))).
  { intros T. unfold kept. rewrite <- sum_plus. apply sum_ext. intros a _. apply where_split. }
  pose proof (split S). pose proof (split K). lra.
Qed.

(** Such a selection exists, so that the maximum is attained. *)
Lemma largest_left (A : Type) (l : list A) (s : A -> R) (K : A -> bool) :
  (forall a, In a l -> K a = true) \/
  exists b, In b l /\ K b = false /\ forall a, In a l -> K a = false -> s a <= s b.
Proof.
  induction l as [|c l IH]; [left; intros a [] |]. destruct IH as [all | [b [in_b [out_b best]]]].
  - destruct (K c) eqn:in_K; [left; intros a [<- | in_a]; [exact in_K | now apply all]|].
    right. exists c. repeat split; [now left | exact in_K|].
    intros a [<- | in_a] out; [lra | rewrite all in out by exact in_a; discriminate].
  - right. destruct (K c) eqn:in_K.
    + exists b. repeat split; [now right | exact out_b|]. intros a [<- | in_a] out; [congruence | now apply best].
    + destruct (Rle_dec (s c) (s b)) as [less | more].
      * exists b. repeat split; [now right | exact out_b|]. intros a [<- | in_a] out; [exact less | now apply best].
      * exists c. repeat split; [now left | exact in_K|].
        intros a [<- | in_a] out; [lra|]. specialize (best a in_a out). lra.
Qed.

Theorem top_k_exists (A : Type) (same : forall a b : A, {a = b} + {a <> b}) (l : list A) (k : nat) (s : A -> R) :
  NoDup l -> exists K, top l k s K /\ count l K <= INR k.
Proof.
  intros distinct. induction k as [|k [K [[largest full] within]]].
  - exists (fun _ => false). unfold top, exhausts, keeps_the_largest, count. simpl. rewrite sum_zero.
    repeat split; [intros; discriminate | now left | lra].
  - destruct (largest_left A l s K) as [all | [b [in_b [out_b best]]]].
    + exists K. assert (few : count l K = INR (length l)).
      { clear - all. unfold count. induction l as [|a l IH]; [reflexivity|].
        cbn [sum length]. rewrite IH by (intros b inside; apply all; now right).
        rewrite all by now left. rewrite S_INR. simpl. lra. }
      rewrite few in within. apply INR_le in within. repeat split; [exact largest | |].
      * right. split; [now apply le_S | exact all].
      * rewrite few. apply le_INR. now apply le_S.
    + exists (fun a => if same a b then true else K a).
      assert (one_more : count l (fun a => if same a b then true else K a) = count l K + 1).
      { clear - distinct in_b out_b. unfold count. induction l as [|c l IH]; [destruct in_b|].
        inversion distinct as [|? ? fresh rest]. subst. cbn [sum]. destruct in_b as [-> | in_b].
        - destruct (same b b) as [_ | wrong]; [|congruence]. rewrite out_b. simpl.
          rewrite (sum_ext l _ (fun a => where_ (K a) 1)); [lra|].
          intros a in_a. destruct (same a b) as [-> | _]; [contradiction | reflexivity].
        - rewrite IH by assumption. destruct (same c b) as [-> | _]; [contradiction | lra]. }
      repeat split.
      * intros a c in_a in_c on off. destruct (same a b) as [-> | other].
        -- destruct (same c b); [discriminate | now apply best].
        -- destruct (same c b); [discriminate | now apply largest].
      * left. rewrite one_more, S_INR. destruct full as [full | [_ all]]; [lra|].
        rewrite all in out_b by exact in_b. discriminate.
      * rewrite one_more, S_INR. lra.
Qed.

(** Budgets of disjoint groups, each met by itself: k of each row (PerRow), n of each group of m (NOfM), all of them
    in one group (PerLayer). A group comes with its budget. *)
Theorem top_of_each_group (A : Type) (l : list A) (groups : list (nat * list A)) (s : A -> R) (S K : A -> bool) :
  Permutation l (concat (map snd groups)) -> (forall a, In a l -> 0 <= s a) ->
  (forall group, In group groups -> top (snd group) (fst group) s K) ->
  (forall group, In group groups -> count (snd group) S <= INR (fst group)) ->
  kept l s S <= kept l s K.
Proof.
  intros cover nonneg best admissible. unfold kept.
  rewrite !(sum_permutation _ cover), !sum_concat, !sum_map. apply sum_le. intros group in_groups.
  apply (top_k A (snd group) (fst group)); [| now apply best | now apply admissible].
  intros a in_a. apply nonneg. apply (Permutation_in _ (Permutation_sym cover)).
  apply in_concat. exists (snd group). split; [now apply in_map | exact in_a].
Qed.

(** Units that are kept whole (Rows, Columns, Blocks): the selection is among the units, by their summed scores. *)
Theorem top_units (A : Type) (l : list A) (units : list (list A)) (k : nat) (s : A -> R) (S K : A -> bool)
    (unit_S unit_K : list A -> bool) :
  Permutation l (concat units) -> (forall a, In a l -> 0 <= s a) ->
  (forall u a, In u units -> In a u -> S a = unit_S u) -> (forall u a, In u units -> In a u -> K a = unit_K u) ->
  top units k (fun u => sum u s) unit_K -> count units unit_S <= INR k -> kept l s S <= kept l s K.
Proof.
  intros cover nonneg whole_S whole_K best admissible. unfold kept.
  rewrite !(sum_permutation _ cover), !sum_concat.
  assert (by_unit : forall T unit_T, (forall u a, In u units -> In a u -> T a = unit_T u) ->
            sum units (fun u => sum u (fun a => where_ (T a) (s a))) = kept units (fun u => sum u s) unit_T).
  { intros T unit_T whole. apply sum_ext. intros u in_u. destruct (unit_T u) eqn:chosen; simpl.
    - apply sum_ext. intros a in_a. rewrite (whole u a in_u in_a), chosen. reflexivity.
    - rewrite <- (sum_zero u). apply sum_ext. intros a in_a. rewrite (whole u a in_u in_a), chosen. reflexivity. }
  rewrite (by_unit S unit_S whole_S), (by_unit K unit_K whole_K).
  apply (top_k (list A) units k); [| exact best | exact admissible].
  intros u in_u. apply sum_nonneg. intros a in_a. apply nonneg. apply (Permutation_in _ (Permutation_sym cover)).
  apply in_concat. now exists u.
Qed.
