(** T09: one budget shared among layers. The steps named in comments are those of T09-shared-budget.md. *)

From Coq Require Import Reals List Arith Lia Lra Psatz.
From OptPrune Require Import Sums.
Open Scope R_scope.

Section Budget.

(** Group l < m has the options [first l :: others l], of the given costs and errors; a choice takes one of each. *)
Variable Option : Type.
Variable m : nat.
Variable first : nat -> Option.
Variable others : nat -> list Option.
Variables cost err : Option -> R.
Variable B : R.

Definition options l := first l :: others l.
Definition chosen (o : nat -> Option) := forall l, (l < m)%nat -> In (o l) (options l).
Definition total (f : Option -> R) (o : nat -> Option) l n := sum (seq l n) (fun k => f (o k)).
Definition within (o : nat -> Option) := total cost o 0 m <= B.

(** The least priced error of a group, and L of the page. *)
Definition priced mu o := err o + mu * cost o.
Definition least mu l := fold_right (fun o best => Rmin (priced mu o) best) (priced mu (first l)) (others l).
Definition lagrangian mu := sum (seq 0 m) (least mu) - mu * B.

Lemma least_is_least mu l o : In o (options l) -> least mu l <= priced mu o.
Proof.
  unfold options, least. intros [<- | inside].
  - induction (others l) as [|a rest IH]; simpl; [lra|]. eapply Rle_trans; [apply Rmin_r | exact IH].
  - induction (others l) as [|a rest IH]; [destruct inside|]. simpl. destruct inside as [<- | inside].
    + apply Rmin_l.
    + eapply Rle_trans; [apply Rmin_r | now apply IH].
Qed.

Lemma rest_is_priced mu o l n : chosen o -> (l + n <= m)%nat ->
  sum (seq l n) (least mu) <= total err o l n + mu * total cost o l n.
Proof.
  intros all inside. unfold total. rewrite <- sum_scal, <- sum_plus. apply sum_le. intros k in_k. apply in_seq in in_k.
  apply least_is_least, all. lia.
Qed.

(** (a), step 1. *)
Theorem lagrangian_bound mu o : 0 <= mu -> chosen o -> within o -> lagrangian mu <= total err o 0 m.
Proof.
  intros price all fits. pose proof (rest_is_priced mu o 0 m all (Nat.le_refl _)) as below.
  assert (mu * total cost o 0 m <= mu * B) by now apply Rmult_le_compat_l. unfold lagrangian. lra.
Qed.

Lemma total_step f o l n : total f o l (S n) = f (o l) + total f o (S l) n.
Proof. reflexivity. Qed.

Lemma total_last f o n : total f o 0 (S n) = total f o 0 n + f (o n).
Proof. unfold total. rewrite seq_S, sum_app. simpl. lra. Qed.

Lemma total_split f o l n : total f o 0 (l + n) = total f o 0 l + total f o l n.
Proof. unfold total. rewrite seq_app, sum_app. reflexivity. Qed.

(** (c), step 3: what no choice of error at most z extends. *)
Definition priced_out mu z l c e := z + mu * B < e + mu * c + sum (seq l (m - l)) (least mu).

Theorem pricing_out mu z o l c e : 0 <= mu -> chosen o -> (l <= m)%nat ->
  c + total cost o l (m - l) <= B -> e + total err o l (m - l) <= z -> ~ priced_out mu z l c e.
Proof.
  intros price all inside fits good out. pose proof (rest_is_priced mu o l (m - l) all ltac:(lia)) as below.
  assert (mu * (c + total cost o l (m - l)) <= mu * B) by now apply Rmult_le_compat_l. unfold priced_out in out. lra.
Qed.

(** (b) and (c) together, steps 2 and 4: the programme keeps, after each group, partial choices of which every extension
    is kept, or dominated by one that is kept, or priced out. Then the least error of those kept at the end is least. *)
Theorem programme mu z (kept : nat -> R -> R -> Prop) :
  0 <= mu -> kept O 0 0 ->
  (forall l c e o, (l < m)%nat -> kept l c e -> In o (options l) ->
     (exists c' e', kept (S l) c' e' /\ c' <= c + cost o /\ e' <= e + err o)
     \/ priced_out mu z (S l) (c + cost o) (e + err o)) ->
  forall o, chosen o -> within o -> total err o 0 m <= z ->
  exists c e, kept m c e /\ c <= B /\ e <= total err o 0 m.
Proof.
  intros price start step o all fits good.
  assert (forall l, (l <= m)%nat -> exists c e, kept l c e /\ c <= total cost o 0 l /\ e <= total err o 0 l) as invariant.
  { induction l as [|l IH]; intros inside.
    - exists 0, 0. unfold total. simpl. repeat split; [exact start | lra | lra].
    - destruct IH as [c [e [in_kept [cheaper better]]]]; [lia|].
      destruct (step l c e (o l) ltac:(lia) in_kept (all l ltac:(lia))) as [[c' [e' [in_kept' [c_le e_le]]]] | out].
      + exists c', e'. rewrite !total_last. repeat split; [exact in_kept' | lra | lra].
      + exfalso. revert out. apply (pricing_out mu z o); try assumption.
        * unfold within in fits. replace m with (S l + (m - S l))%nat in fits at 1 by lia.
          rewrite total_split, total_last in fits. lra.
        * replace m with (S l + (m - S l))%nat in good at 1 by lia. rewrite total_split, total_last in good. lra. }
  destruct (invariant m (Nat.le_refl _)) as [c [e [in_kept [cheaper better]]]].
  exists c, e. unfold within in fits. repeat split; [exact in_kept | lra | exact better].
Qed.

(** (e), step 6: a choice that attains every group's least priced error leaves mu times the unused budget. *)
Theorem gap_of_a_corner mu o : (forall l, (l < m)%nat -> priced mu (o l) = least mu l) ->
  total err o 0 m - lagrangian mu = mu * (B - total cost o 0 m).
Proof.
  intros attains. unfold lagrangian.
  rewrite (sum_ext (seq 0 m) (least mu) (fun l => err (o l) + mu * cost (o l)))
    by (intros l inside; apply in_seq in inside; symmetry; apply attains; lia).
  rewrite sum_plus, sum_scal. unfold total. ring.
Qed.

(** (e), step 7: no other price gives more, where one such choice is within the budget and one above it. *)
Theorem best_price mu o above mu' : 0 <= mu' ->
  (forall l, (l < m)%nat -> priced mu (o l) = least mu l) -> chosen o -> total cost o 0 m <= B ->
  (mu = 0 \/ ((forall l, (l < m)%nat -> priced mu (above l) = least mu l) /\ chosen above /\ B <= total cost above 0 m)) ->
  lagrangian mu' <= lagrangian mu.
Proof.
  intros price attains all below over.
  assert (line : forall p, (forall l, (l < m)%nat -> priced mu (p l) = least mu l) -> chosen p ->
            lagrangian mu' <= lagrangian mu + (mu' - mu) * (total cost p 0 m - B)).
  { intros p attains_p all_p. pose proof (gap_of_a_corner mu p attains_p).
    pose proof (rest_is_priced mu' p 0 m all_p (Nat.le_refl _)). unfold lagrangian at 1. lra. }
  destruct (Rle_dec mu mu') as [more | less].
  - pose proof (line o attains all). assert ((mu' - mu) * (total cost o 0 m - B) <= 0) by nra. lra.
  - destruct over as [zero | [attains' [all' over]]]; [lra|].
    pose proof (line above attains' all'). assert ((mu' - mu) * (total cost above 0 m - B) <= 0) by nra. lra.
Qed.

End Budget.
