"""Finding good evidence for the minorant-split bound. Nothing here needs to be right: `check` decides."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.numerics.linalg import factorize, spectral_norm
from optprune.errors import NotPositiveDefiniteError
from optprune.numerics.rounding import UNIT
from optprune.patterns import Pattern
from optprune.problems.least_squares import L0LeastSquares


def scaled_minorant(gram: Float[Tensor, "in in"]) -> Float[Tensor, " in"]:
    r"""$\delta = \mu / \operatorname{diag}(H^{-1})$ with the largest $\mu$ that a floating-point proof will accept.

    $\mu$ is the smallest eigenvalue of $S H S$, $S = \operatorname{diag}(H^{-1})^{1/2}$, less a margin for the proof of
    positive semidefiniteness. All zero when $H$ is singular on its live inputs.
    """
    minorant = torch.zeros_like(gram[0])
    live = gram.diagonal() > 0
    h = gram[live][:, live]
    if not len(h):
        return minorant
    unit = h.diagonal().rsqrt()
    h = h * unit[:, None] * unit[None, :]
    try:
        inverse = factorize(h, ladder=()).inverse().diagonal()
    except NotPositiveDefiniteError:
        return minorant
    root = inverse.sqrt()
    smallest = torch.linalg.eigvalsh(h * root[:, None] * root[None, :])[0]
    # The proof shifts the (power-of-two scaled, diagonal within [1/2, 2]) matrix by about 2 (d + 3) u trace.
    delta = smallest * (1 - 1e-9) / inverse - 16 * (len(h) + 4) ** 2 * UNIT
    if bool((delta <= 0).any()):
        return minorant
    minorant[live] = delta / unit.square()
    return minorant


def strengthen(
    problem: L0LeastSquares,
    minorant: Float[Tensor, " in"],
    start: Float[Tensor, "out in"],
    *,
    max_steps: int = 2000,
    check_every: int = 25,
    tolerance: float = 1e-4,
) -> Float[Tensor, "out in"]:
    r"""Move the point of linearisation towards the best bound for this minorant.

    The best bound is the value of the perspective relaxation
    $\min_{U, z} \langle U, U A\rangle - 2\langle U, B\rangle + \sum_{units} \lVert U_{unit} \rVert_\delta^2 / z_{unit}$ over
    $z \in [0,1]$ with at most `kept` in total in each budget. Solved by FISTA with adaptive restart in the coordinates
    $U \delta^{1/2}$. The bound is evaluated every `check_every` steps, the best point of every independent part is kept, and
    the iteration ends when the total has grown by less than `tolerance` of itself over five evaluations.
    """
    live = minorant > 0
    root = minorant[live].sqrt()
    h = problem.gram[live][:, live] / (root[:, None] * root[None, :])
    a = h - torch.eye(len(root), dtype=h.dtype, device=h.device)
    b = problem.linear[:, live] / root
    lipschitz = 2 * spectral_norm(a).clamp_min(torch.finfo(h.dtype).tiny)
    relaxation = _Relaxation(problem.pattern, problem.shape, live)
    x = y = start[:, live] * root
    xa = ya = x @ a
    theta = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
    best = _Best(problem, live)
    best.offer(x, xa, b)
    for step in range(1, max_steps + 1):
        new = relaxation.prox(y - 2 * (ya - b) / lipschitz, lipschitz)
        new_a = new @ a
        restart = ((y - new) * (new - x)).sum(-1, keepdim=True) > 0
        theta = torch.where(restart, 1.0, theta)
        following = (1 + (1 + 4 * theta.square()).sqrt()) / 2
        momentum = torch.where(restart, 0.0, (theta - 1) / following)
        y, ya = new + momentum * (new - x), new_a + momentum * (new_a - xa)
        x, xa, theta = new, new_a, following
        if step % check_every == 0:
            best.offer(x, xa, b)
            if best.stalled(tolerance):
                break
    point = torch.zeros_like(start)
    point[:, live] = best.point / root
    return point


class _Relaxation:
    """The proximal step of the perspective terms, for any pattern through its units."""

    def __init__(self, pattern: Pattern, shape: tuple[int, int], live: Tensor) -> None:
        self.pattern, self.shape, self.live = pattern, shape, live
        kept = pattern.kept(shape)
        self.kept = kept.to(live.device).double()[:, None] if isinstance(kept, Tensor) else float(kept)
        self.sigma: Tensor | None = None

    def prox(self, v: Float[Tensor, "out live"], lipschitz: Tensor) -> Float[Tensor, "out live"]:
        r"""$V \cdot L z / (L z + 2)$ with $z = \operatorname{clip}(\sigma \lVert V_{unit}\rVert - 2/L, 0, 1)$, $\sum z = k$."""
        full = torch.zeros(self.shape, dtype=v.dtype, device=v.device)
        full[:, self.live] = v
        norms = self.pattern.units(full).square().sum(-1).sqrt()
        z = self._shares(norms, 2 / lipschitz)
        spread = z.unsqueeze(-1).expand(*z.shape, self.pattern.layout(self.shape)[2])
        z = self.pattern.from_units(spread, self.shape)[:, self.live]
        return v * (lipschitz * z / (lipschitz * z + 2))

    def _shares(
        self, norms: Float[Tensor, "budgets units"], offset: Tensor, rounds: int = 40
    ) -> Float[Tensor, "budgets units"]:
        """Safeguarded Newton on the monotone, piecewise linear total of z as a function of sigma."""
        positive = norms > 0
        largest = norms.amax(-1, keepdim=True).clamp_min(torch.finfo(norms.dtype).tiny)
        smallest = torch.where(positive, norms, torch.inf).amin(-1, keepdim=True).clamp_max(largest)
        free = positive.sum(-1, keepdim=True) <= self.kept
        low, high = offset / largest, (1 + offset) / smallest
        sigma = high if self.sigma is None else self.sigma.clamp(low, high)
        for _ in range(rounds):
            z = (sigma * norms - offset).clamp(0, 1)
            excess = z.sum(-1, keepdim=True) - self.kept
            low, high = torch.where(excess < 0, sigma, low), torch.where(excess >= 0, sigma, high)
            if bool((free | (excess.abs() <= 1e-9 * (1 + self.kept))).all()):
                break
            slope = torch.where((z > 0) & (z < 1), norms, 0.0).sum(-1, keepdim=True)
            newton = sigma - excess / slope
            inside = (newton > low) & (newton < high)
            sigma = torch.where(inside, newton, (low * high).sqrt())
        self.sigma = sigma
        return torch.where(free, positive.to(norms.dtype), (sigma * norms - offset).clamp(0, 1))


class _Best:
    """The best point found, for each independent part: row by row where the pattern allows it, else for the layer."""

    def __init__(self, problem: L0LeastSquares, live: Tensor) -> None:
        self.pattern, self.live, self.energy = problem.pattern, live, problem.energy
        self.point = torch.empty(0)
        self.value = torch.empty(0)
        self.history: list[float] = []

    def offer(self, x: Tensor, xa: Tensor, b: Tensor) -> None:
        gains = torch.zeros(len(x), len(self.live), dtype=x.dtype, device=x.device)
        gains[:, self.live] = (b - xa).square()
        kept = torch.where(self.pattern.support(gains), gains, 0.0).sum(-1)
        value = self.energy - (x * xa).sum(-1) - kept
        if not self.pattern.row_separable:
            value = value.sum().expand(len(x))
        if not self.history:
            self.value, self.point = value, x
        better = value > self.value
        self.value, self.point = (
            torch.where(better, value, self.value),
            torch.where(better[:, None], x, self.point),
        )
        total = self.value.clamp_min(0) if self.pattern.row_separable else self.value[:1]
        self.history.append(float(total.sum()))

    def stalled(self, tolerance: float, window: int = 5) -> bool:
        if len(self.history) <= window or self.history[-1] <= 0:
            return False
        return self.history[-1] - self.history[-1 - window] < tolerance * self.history[-1]
