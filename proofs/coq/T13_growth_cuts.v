(** T13: cuts and lower bounds from the quadratic growth of a convex loss. The steps named in comments are those of
    T13-growth-cuts.md. *)

From Coq Require Import Reals List Bool Lra Psatz.
From OptPrune Require Import Sums.
Open Scope R_scope.

Section Growth.

(** Entries of the weight, the loss, the curvature that it has at least, and the point with its gradient. *)
Variable Cell : Type.
Variable cells : list Cell.
Variable F : (Cell -> R) -> R.
Variables delta Q gamma : Cell -> R.
Hypothesis delta_nonneg : forall c, In c cells -> 0 <= delta c.

(** Step 1: F less half the curvature lies above its tangent at Q. *)
Definition less_curvature (U : Cell -> R) := F U - / 2 * sum cells (fun c => delta c * (U c * U c)).
Hypothesis convex : forall U,
  less_curvature U >= less_curvature Q + sum cells (fun c => (gamma c - delta c * Q c) * (U c - Q c)).

Definition p c := / 2 * (delta c * (Q c * Q c)) - gamma c * Q c.
Definition s c := (delta c * Q c - gamma c) * (delta c * Q c - gamma c) / (2 * delta c).
Definition finite := forall c, In c cells -> delta c = 0 -> gamma c = 0.
Definition kept (S : Cell -> bool) := sum cells (fun c => where_ (S c) (s c)).
Definition supported (U : Cell -> R) (S : Cell -> bool) := forall c, In c cells -> S c = false -> U c = 0.

(** Step 2. *)
Lemma growth U : F U >= F Q + sum cells (fun c => gamma c * (U c - Q c) + / 2 * (delta c * ((U c - Q c) * (U c - Q c)))).
Proof.
  pose proof (convex U) as tangent. unfold less_curvature in tangent.
  rewrite (sum_ext cells (fun c => gamma c * (U c - Q c) + _)
             (fun c => (gamma c - delta c * Q c) * (U c - Q c) + (/ 2 * (delta c * (U c * U c)) - / 2 * (delta c * (Q c * Q c)))))
    by (intros; field).
  rewrite sum_plus, sum_minus, !sum_scal. lra.
Qed.

(** Steps 3 and 4. *)
Lemma one_entry d g q v (on : bool) : 0 <= d -> (d = 0 -> g = 0) -> (on = false -> v = 0) ->
  / 2 * (d * (q * q)) - g * q - where_ on ((d * q - g) * (d * q - g) / (2 * d)) <= g * (v - q) + / 2 * (d * ((v - q) * (v - q))).
Proof.
  intros nonneg flat off. destruct on; unfold where_.
  - destruct (Req_dec d 0) as [zero | positive].
    + specialize (flat zero). subst d g. unfold Rdiv.
      replace ((0 * q - 0) * (0 * q - 0) * / (2 * 0)) with 0 by ring. lra.
    + replace (g * (v - q) + / 2 * (d * ((v - q) * (v - q))))
        with (/ 2 * (d * (q * q)) - g * q - (d * q - g) * (d * q - g) / (2 * d) + (d * v - (d * q - g)) * (d * v - (d * q - g)) / (2 * d))
        by (field; lra).
      assert (0 <= (d * v - (d * q - g)) * (d * v - (d * q - g)) / (2 * d))
        by (apply Rmult_le_pos; [apply Rle_0_sqr | left; apply Rinv_0_lt_compat; lra]).
      lra.
  - rewrite off by reflexivity. lra.
Qed.

(** (a), step 5. *)
Theorem cut U S : finite -> supported U S -> F Q + sum cells p - kept S <= F U.
Proof.
  intros flat inside. pose proof (growth U) as below. unfold kept.
  assert (sum cells (fun c => p c - where_ (S c) (s c))
          <= sum cells (fun c => gamma c * (U c - Q c) + / 2 * (delta c * ((U c - Q c) * (U c - Q c))))) as entries.
  { apply sum_le. intros c in_c.
    exact (one_entry (delta c) (gamma c) (Q c) (U c) (S c) (delta_nonneg c in_c) (flat c in_c) (inside c in_c)). }
  rewrite sum_minus in entries. lra.
Qed.

(** (b). *)
Theorem growth_bound (family : (Cell -> bool) -> Prop) largest U S :
  finite -> (forall S', family S' -> kept S' <= largest) -> family S -> supported U S ->
  F Q + sum cells p - largest <= F U.
Proof. intros flat most member inside. pose proof (cut U S flat inside). pose proof (most S member). lra. Qed.

(** (c), step 6. *)
Theorem cut_is_tight S : finite -> supported Q S -> (forall c, In c cells -> S c = true -> gamma c = 0) ->
  F Q + sum cells p - kept S = F Q.
Proof.
  intros flat inside stationary. unfold kept. assert (sum cells p = sum cells (fun c => where_ (S c) (s c))) as ->; [|ring].
  apply sum_ext. intros c in_c. unfold p, s. destruct (S c) eqn:on; simpl.
  - rewrite (stationary c in_c on). destruct (Req_dec (delta c) 0) as [-> | positive]; [unfold Rdiv; ring | field; exact positive].
  - rewrite (inside c in_c on). ring.
Qed.

(** (d), step 7: the coefficients t of the units of S, one of which may have been reduced to the distance from the bound. *)
Theorem reduced_coefficients {Unit : Type} (units : list Unit) (on : Unit -> bool) (t : Unit -> R) (c low value : R) :
  (forall u, In u units -> 0 <= t u) -> low <= value -> c - sum units (fun u => where_ (on u) (t u)) <= value ->
  c - sum units (fun u => where_ (on u) (Rmin (t u) (Rmax 0 (c - low)))) <= value.
Proof.
  intros nonneg bound whole.
  assert (0 <= Rmax 0 (c - low)) as room by apply Rmax_l.
  assert (above : forall u, In u units -> 0 <= where_ (on u) (Rmin (t u) (Rmax 0 (c - low)))).
  { intros u inside. unfold where_. destruct (on u); [|lra]. apply Rmin_glb; [now apply nonneg | exact room]. }
  assert (same_or_room : sum units (fun u => where_ (on u) (Rmin (t u) (Rmax 0 (c - low)))) = sum units (fun u => where_ (on u) (t u))
            \/ Rmax 0 (c - low) <= sum units (fun u => where_ (on u) (Rmin (t u) (Rmax 0 (c - low))))).
  { clear whole. induction units as [|u rest IH]; [now left|]. simpl.
    destruct IH as [same | enough].
    - intros v inside. apply nonneg. now right.
    - intros v inside. apply above. now right.
    - destruct (on u) eqn:which; simpl; [|left; lra].
      destruct (Rle_dec (t u) (Rmax 0 (c - low))) as [small | large].
      + left. rewrite Rmin_left by exact small. lra.
      + right. rewrite Rmin_right by lra.
        assert (0 <= sum rest (fun u => where_ (on u) (Rmin (t u) (Rmax 0 (c - low)))))
          by (apply sum_nonneg; intros v inside; apply above; now right). lra.
    - right. assert (0 <= where_ (on u) (Rmin (t u) (Rmax 0 (c - low)))) by (apply above; now left). lra. }
  destruct same_or_room as [same | enough]; [lra|]. pose proof (Rmax_r 0 (c - low)). lra.
Qed.

End Growth.
