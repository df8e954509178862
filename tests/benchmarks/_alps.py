"""A plain replica of the published ALPS scheme, to compare with: nothing here is imported by the package."""

from __future__ import annotations

import torch
from torch import Tensor

from optprune.problems import L0LeastSquares

DAMPING = 0.01
"""Relative to the mean diagonal of the Gram matrix, as the published code adds it."""


def alps(problem: L0LeastSquares, steps: int = 300, refinements: int = 10) -> Tensor:
    """ADMM whose penalty follows the changes of the support, then projected conjugate gradients on the support found.

    Float32 at unit diagonal with an eigen-decomposition in float64, as Meng et al. 2024 describe it (Algorithms 1, 2).
    """
    gram = problem.gram + DAMPING * problem.gram.diagonal().mean() * torch.eye(len(problem.gram), dtype=torch.float64)
    root = gram.diagonal().sqrt()
    scaled = gram / root / root.unsqueeze(-1)
    values, vectors = (x.float() for x in torch.linalg.eigh(scaled))
    dense, hessian = (problem.dense * root).float(), scaled.float()
    linear = dense @ hessian
    kept = problem.pattern.count(problem.shape)
    sparse, multipliers, rho, old = _projected(problem, dense), torch.zeros_like(dense), 0.1, None
    for step in range(steps):
        weight = (((linear - multipliers + rho * sparse) @ vectors) / (values + rho)) @ vectors.mT
        sparse = _projected(problem, weight + multipliers / rho)
        multipliers += rho * (weight - sparse)
        if step % 3 == 2:
            new = sparse != 0
            changed = float((new != old).sum()) / kept if old is not None else 1.0
            old = new
            if changed == 0 or (step >= 30 and changed < 3e-4):
                break
            rho *= 1.3 if changed > 0.1 else 1.2 if changed > 0.005 else 1.1
    mask = problem.pattern.support((weight * sparse.ne(0)).double().square())
    return (_conjugate_gradients(hessian, linear, weight * mask, mask, refinements) / root).double()


def _projected(problem: L0LeastSquares, target: Tensor) -> Tensor:
    return target.masked_fill(~problem.pattern.support(target.square()), 0.0)


def _conjugate_gradients(hessian: Tensor, linear: Tensor, weight: Tensor, mask: Tensor, steps: int) -> Tensor:
    residual = mask * (linear - weight @ hessian)
    direction, size = residual, residual.square().sum(-1, keepdim=True)
    for _ in range(steps):
        image = direction @ hessian
        length = torch.where(size > 0, size / (direction * image).sum(-1, keepdim=True), 0.0)
        weight = weight + length * direction
        residual = residual - length * mask * image
        before, size = size, residual.square().sum(-1, keepdim=True)
        direction = residual + torch.where(before > 0, size / before, 0.0) * direction
    return weight
