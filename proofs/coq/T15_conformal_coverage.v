(** T15: distribution-free bounds from held-out points. The steps named in comments are those of
    T15-conformal-coverage.md. Probabilities are over finitely many outcomes. *)

From Coq Require Import Reals List Arith Permutation Lia Lra Psatz.
From OptPrune Require Import Sums.
Open Scope R_scope.

Definition indicator (P : Prop) (decided : {P} + {~ P}) : R := if decided then 1 else 0.
Arguments indicator {P}.

(** How many of the listed scores are smaller than x, and how many are at most x. *)
Definition smaller {I : Type} (l : list I) (e : I -> R) (x : R) : R := sum l (fun j => indicator (Rlt_dec (e j) x)).
Definition at_most {I : Type} (l : list I) (e : I -> R) (x : R) : R := sum l (fun j => indicator (Rle_dec (e j) x)).

(** Whether fewer than k of all scores are smaller than that of i. *)
Definition low {I : Type} (l : list I) (e : I -> R) (k : R) (i : I) : R := indicator (Rlt_dec (smaller l e (e i)) k).

Lemma indicator_range (P : Prop) (decided : {P} + {~ P}) : 0 <= indicator decided <= 1.
Proof. unfold indicator. destruct decided; lra. Qed.

Lemma smallest_with {I : Type} (l : list I) (e : I -> R) (P : I -> Prop) (decide : forall i, {P i} + {~ P i}) :
  (forall i, In i l -> ~ P i) \/ exists i, In i l /\ P i /\ forall j, In j l -> P j -> e i <= e j.
Proof.
  induction l as [|i l IH]; [left; intros i []|]. destruct IH as [none | [b [in_b [P_b best]]]].
  - destruct (decide i) as [yes | no].
    + right. exists i. repeat split; [now left | exact yes|].
      intros j [<- | inside] P_j; [lra | exfalso; now apply (none j)].
    + left. intros j [<- | inside]; [exact no | now apply none].
  - right. destruct (decide i) as [yes | no].
    + destruct (Rle_dec (e i) (e b)) as [less | more].
      * exists i. repeat split; [now left | exact yes|]. intros j [<- | inside] P_j; [lra|].
        eapply Rle_trans; [exact less | now apply best].
      * exists b. repeat split; [now right | exact P_b|]. intros j [<- | inside] P_j; [lra | now apply best].
    + exists b. repeat split; [now right | exact P_b|]. intros j [<- | inside] P_j; [contradiction | now apply best].
Qed.

(** Step 1, the count: at least k of n + 1 scores have fewer than k smaller ones, ties or not. *)
Theorem low_ranks {I : Type} (l : list I) (e : I -> R) (k : nat) :
  (k <= length l)%nat -> INR k <= sum l (low l e (INR k)).
Proof.
  intros enough.
  destruct (smallest_with l e (fun i => ~ smaller l e (e i) < INR k)) as [all | [i [inside [high best]]]].
  - intros i. destruct (Rlt_dec (smaller l e (e i)) (INR k)) as [yes | no]; [right; tauto | left; exact no].
  - apply Rle_trans with (INR (length l)); [now apply le_INR|]. right.
    rewrite (sum_ext l _ (fun _ => 1)).
    + clear. induction l as [|i l IH]; [reflexivity|]. cbn [sum length]. rewrite S_INR, <- IH. ring.
    + intros i inside. unfold low, indicator. destruct Rlt_dec as [yes | no]; [reflexivity|]. exfalso. now apply (all i).
  - apply Rnot_lt_le in high. eapply Rle_trans; [exact high|]. unfold smaller at 1. apply sum_le. intros j in_j.
    unfold low, indicator. destruct (Rlt_dec (e j) (e i)) as [less | _]; destruct (Rlt_dec (smaller l e (e j)) (INR k)) as [yes | no]; try lra.
    exfalso. pose proof (best j in_j no). lra.
Qed.

(** Scores 0, ..., n - 1 are held out and score n is new; q is e_(k), as every k-th smallest value is: at least k of the
    held-out scores are at most q. *)
Lemma low_is_covered (n : nat) (e : nat -> R) (k : nat) (q : R) :
  INR k <= at_most (seq 0 n) e q -> low (seq 0 (S n)) e (INR k) n <= indicator (Rle_dec (e n) q).
Proof.
  intros order. unfold low, indicator. destruct (Rle_dec (e n) q) as [|above]; [destruct Rlt_dec; lra|].
  destruct Rlt_dec as [few | _]; [|lra]. exfalso.
  assert (at_most (seq 0 n) e q <= smaller (seq 0 (S n)) e (e n)); [|lra].
  unfold smaller, at_most. rewrite seq_S, sum_app. simpl.
  apply Rle_trans with (sum (seq 0 n) (fun j => indicator (Rlt_dec (e j) (e n)))).
  - apply sum_le. intros j _. unfold indicator. destruct Rle_dec; destruct Rlt_dec; lra.
  - pose proof (indicator_range _ (Rlt_dec (e n) (e n))). lra.
Qed.

Section Exchangeable.

(** Outcomes with their probabilities, and the scores of each. *)
Variable Outcome : Type.
Variable outcomes : list Outcome.
Variable p : Outcome -> R.
Hypothesis p_nonneg : forall w, In w outcomes -> 0 <= p w.
Hypothesis p_total : sum outcomes p = 1.
Definition expect (f : Outcome -> R) := sum outcomes (fun w => p w * f w).

Variable n : nat.
Variable e : Outcome -> nat -> R.

(** What is used of exchangeability: exchanging the new score with a held-out one leaves the law as it is. *)
Definition exchanged i j := if Nat.eq_dec j i then n else if Nat.eq_dec j n then i else j.
Hypothesis exchangeable : forall i (h : (nat -> R) -> R), (i <= n)%nat ->
  expect (fun w => h (fun j => e w (exchanged i j))) = expect (fun w => h (e w)).

Lemma exchanged_permutes i : (i <= n)%nat -> Permutation (map (exchanged i) (seq 0 (S n))) (seq 0 (S n)).
Proof.
  intros inside. apply NoDup_Permutation.
  - apply FinFun.Injective_map_NoDup; [|apply seq_NoDup]. intros a b. unfold exchanged.
    repeat destruct Nat.eq_dec; lia.
  - apply seq_NoDup.
  - intros x. rewrite in_map_iff. split.
    + intros [y [<- in_y]]. apply in_seq in in_y. apply in_seq. unfold exchanged. repeat destruct Nat.eq_dec; lia.
    + intros in_x. apply in_seq in in_x. exists (exchanged i x). split.
      * unfold exchanged. repeat destruct Nat.eq_dec; lia.
      * apply in_seq. unfold exchanged. repeat destruct Nat.eq_dec; lia.
Qed.

Lemma low_exchanged i k w : (i <= n)%nat ->
  low (seq 0 (S n)) (fun j => e w (exchanged i j)) k n = low (seq 0 (S n)) (e w) k i.
Proof.
  intros inside. unfold low.
  assert (exchanged i n = i) as new by (unfold exchanged; repeat destruct Nat.eq_dec; lia).
  assert (smaller (seq 0 (S n)) (fun j => e w (exchanged i j)) (e w (exchanged i n)) = smaller (seq 0 (S n)) (e w) (e w i)) as ->.
  { rewrite new. unfold smaller.
    transitivity (sum (map (exchanged i) (seq 0 (S n))) (fun j => indicator (Rlt_dec (e w j) (e w i)))).
    - now rewrite sum_map.
    - now apply sum_permutation, exchanged_permutes. }
  reflexivity.
Qed.

Lemma expect_le f h : (forall w, f w <= h w) -> expect f <= expect h.
Proof. intros below. apply sum_le. intros w in_w. apply Rmult_le_compat_l; [now apply p_nonneg | apply below]. Qed.

(** (a). *)
Theorem conformal_coverage (k : nat) (q : Outcome -> R) :
  (k <= S n)%nat -> (forall w, INR k <= at_most (seq 0 n) (e w) (q w)) ->
  INR k / (INR n + 1) <= expect (fun w => indicator (Rle_dec (e w n) (q w))).
Proof.
  intros rank order.
  apply Rle_trans with (expect (fun w => low (seq 0 (S n)) (e w) (INR k) n));
    [|apply expect_le; intros w; now apply low_is_covered].
  assert (INR k <= sum (seq 0 (S n)) (fun i => expect (fun w => low (seq 0 (S n)) (e w) (INR k) i))) as counted.
  { unfold expect. rewrite sum_swap.
    rewrite (sum_ext outcomes _ (fun w => p w * sum (seq 0 (S n)) (low (seq 0 (S n)) (e w) (INR k))))
      by (intros; now rewrite sum_scal).
    apply Rle_trans with (sum outcomes (fun w => p w * INR k)).
    - rewrite sum_scal_r, p_total. lra.
    - apply sum_le. intros w in_w. apply Rmult_le_compat_l; [now apply p_nonneg|]. apply low_ranks.
      now rewrite seq_length. }
  rewrite (sum_ext (seq 0 (S n)) _ (fun _ => expect (fun w => low (seq 0 (S n)) (e w) (INR k) n))) in counted.
  - assert (forall a len x, sum (seq a len) (fun _ => x) = INR len * x) as times.
    { intros a len x. revert a. induction len as [|len IH]; intros a; [simpl; ring|]. cbn [seq sum]. rewrite IH, S_INR. ring. }
    rewrite times, S_INR in counted. pose proof (pos_INR n).
    apply Rmult_le_reg_r with (INR n + 1); [lra|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l by lra. lra.
  - intros i inside. apply in_seq in inside.
    rewrite <- (exchangeable i (fun v => low (seq 0 (S n)) v (INR k) n)) by lia.
    apply sum_ext. intros w _. f_equal. symmetry. apply low_exchanged. lia.
Qed.

(** (d), step 5: [true i] says that hypothesis i is true, [P i w] is its p-value, and the list gives their order. *)
Variable Hypothesis_ : Type.
Variable true_ : Hypothesis_ -> bool.
Variable P : Hypothesis_ -> Outcome -> R.
Variable delta : R.
Hypothesis delta_nonneg : 0 <= delta.

(** Whether a true hypothesis is among those before the first with a p-value above delta. *)
Fixpoint false_rejection (order : list Hypothesis_) (w : Outcome) : R :=
  match order with
  | nil => 0
  | cons i rest => if Rle_dec (P i w) delta then (if true_ i then 1 else false_rejection rest w) else 0
  end.

Lemma expect_zero : expect (fun _ => 0) = 0.
Proof. unfold expect. rewrite sum_scal_r. ring. Qed.

Theorem fixed_sequence (order : list Hypothesis_) :
  (forall i, In i order -> true_ i = true -> expect (fun w => indicator (Rle_dec (P i w) delta)) <= delta) ->
  expect (false_rejection order) <= delta.
Proof.
  induction order as [|i order IH]; intros valid.
  - simpl. rewrite expect_zero. exact delta_nonneg.
  - destruct (true_ i) eqn:which.
    + eapply Rle_trans; [|apply (valid i); [now left | exact which]]. apply expect_le. intros w. simpl. rewrite which.
      unfold indicator. destruct Rle_dec; lra.
    + eapply Rle_trans; [|apply IH; intros j inside; apply valid; now right]. apply expect_le. intros w. simpl. rewrite which.
      destruct Rle_dec; [lra|]. clear. induction order as [|j order IH]; simpl; [lra|].
      destruct Rle_dec; [destruct (true_ j); lra | lra].
Qed.

(** (d), the second claim: every p-value is compared with delta / K. *)
Theorem bonferroni (hypotheses : list Hypothesis_) (K : R) : 0 < K -> INR (length hypotheses) <= K ->
  (forall i, In i hypotheses -> true_ i = true -> expect (fun w => indicator (Rle_dec (P i w) (delta / K))) <= delta / K) ->
  expect (fun w => Rmin 1 (sum hypotheses (fun i => where_ (true_ i) (indicator (Rle_dec (P i w) (delta / K)))))) <= delta.
Proof.
  intros positive many valid.
  apply Rle_trans with (expect (fun w => sum hypotheses (fun i => where_ (true_ i) (indicator (Rle_dec (P i w) (delta / K))))));
    [apply expect_le; intros; apply Rmin_r|].
  unfold expect. rewrite (sum_ext outcomes _ (fun w => sum hypotheses (fun i => p w * where_ (true_ i) (indicator (Rle_dec (P i w) (delta / K))))))
    by (intros; now rewrite sum_scal).
  rewrite sum_swap. assert (0 <= delta / K) as share by (apply Rmult_le_pos; [exact delta_nonneg | left; now apply Rinv_0_lt_compat]).
  apply Rle_trans with (sum hypotheses (fun _ => delta / K)).
  - apply sum_le. intros i inside. specialize (valid i inside). destruct (true_ i); simpl.
    + now apply valid.
    + rewrite sum_scal_r. lra.
  - assert (sum hypotheses (fun _ => delta / K) = INR (length hypotheses) * (delta / K)) as ->.
    { clear. induction hypotheses as [|i rest IH]; [simpl; ring|]. cbn [sum length]. rewrite IH, S_INR. ring. }
    apply Rle_trans with (K * (delta / K)); [now apply Rmult_le_compat_r | right; field; lra].
Qed.

End Exchangeable.
