r"""The linear step of Net-Trim's ADMM, $(X^\top X + cI) w = r$ for all neurons at once."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from optprune.solvers._net_trim_layer import Layer

CHOICES = ("auto", "factor", "cg")

LARGEST_FACTOR = 8192
"""Rows of the largest matrix that is factored unless told to: half a gigabyte in float64."""

_SHARE, _DECAY = 0.1, 0.95
_FINEST = 1e-6  # what float32 resolves


class LinearStep(ABC):
    """Solves the system; plain tensors, since this runs at every step."""

    steps = 0
    """Steps of conjugate gradients made so far."""

    @abstractmethod
    def solve(self, right: Tensor, residual: Tensor) -> Tensor:
        """The `w` of every row of `right` `(out, d)`; `residual` `(out,)` is ADMM's when last measured."""


def linear_step(layer: Layer, rounded: Layer, weight: float, choice: str) -> LinearStep:
    """What solves the system with $c$ = `weight`: a factor where it is small enough, or what is asked for."""
    small = min(layer.inputs.shape) <= LARGEST_FACTOR
    if choice == "factor" or (choice == "auto" and small):
        return Factored(layer, rounded, weight)
    return ConjugateGradients(rounded, weight)


class Factored(LinearStep):
    """One factorisation for all; with fewer samples than inputs on the samples' side (Woodbury)."""

    def __init__(self, layer: Layer, rounded: Layer, weight: float) -> None:
        samples, d = layer.inputs.shape
        self.layer, self.weight, self.narrow = rounded, weight, samples < d
        gram = layer.inputs.outer() if self.narrow else layer.inputs.gram()
        gram.diagonal().add_(weight)
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram)).to(torch.float32)

    def solve(self, right: Tensor, residual: Tensor) -> Tensor:
        if not self.narrow:
            return right @ self.inverse
        return (right - self.layer.correlate(self.layer.forward(right) @ self.inverse)) / self.weight


class ConjugateGradients(LinearStep):
    r"""Conjugate gradients from the last solution, preconditioned by the diagonal; two products with $X$ a step.

    The relative residual of solve $k$ is at most $\min(0.1 r, 0.1 \cdot 0.95^k)$ with $r$ the neuron's residual in
    ADMM: errors that sum up to a finite number leave ADMM's limit where it is. Neurons stop one by one.

    References:
        Eckstein, Bertsekas 1992, theorem 8 (inexact ADMM).
    """

    def __init__(self, layer: Layer, weight: float) -> None:
        self.layer, self.weight = layer, weight
        samples, self.most = layer.inputs.shape
        self.diagonal = (layer.inputs.mean_square() * samples + weight).to(torch.float32)
        self.last: Tensor | None = None
        self.solves = 0

    def _product(self, w: Tensor) -> Tensor:
        return self.layer.correlate(self.layer.forward(w)).add_(w, alpha=self.weight)

    def solve(self, right: Tensor, residual: Tensor) -> Tensor:
        share = (_SHARE * residual).clamp(max=_SHARE * _DECAY**self.solves).clamp(min=_FINEST)
        goal = share * torch.linalg.vector_norm(right, dim=1)
        w = torch.zeros_like(right) if self.last is None else self.last.clone()
        rest = right - self._product(w)
        self.solves += 1
        going = (torch.linalg.vector_norm(rest, dim=1) > goal).nonzero()[:, 0]
        rest = rest[going]
        direction = rest / self.diagonal
        energy = (rest * direction).sum(1)
        for _ in range(self.most):
            if not len(going):
                break
            image = self._product(direction)
            length = (energy / (direction * image).sum(1))[:, None]
            w[going] += length * direction
            rest = rest - length * image
            self.steps += 1
            scaled = rest / self.diagonal
            ahead = (rest * scaled).sum(1)
            direction = scaled + (ahead / energy)[:, None] * direction
            stay = torch.linalg.vector_norm(rest, dim=1) > goal[going]
            going, rest, direction, energy = going[stay], rest[stay], direction[stay], ahead[stay]
        self.last = w
        return w
