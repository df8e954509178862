"""From an approximate Net-Trim solution to the exact one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from optprune.solution import Termination
from optprune.solvers._net_trim_first_order import State
from optprune.solvers._net_trim_layer import FREE, Layer
from optprune.solvers._net_trim_newton import Point, proximal_step
from optprune.solvers._net_trim_polish import Piece, ball_on_piece, piece
import os, time
DEBUG=os.environ.get('NTDEBUG')
BOOST=float(os.environ.get('NTBOOST','10')); GROW=float(os.environ.get('NTGROW','4')); INNER=int(os.environ.get('NTINNER','1')); MAXN=int(os.environ.get('NTMAXN','15'))


@dataclass(frozen=True, eq=False)
class Exact:
    u: Tensor
    lam: Tensor
    mu: Tensor
    termination: Termination
    rounds: int
    newton: int


def finish(layer: Layer, state: State, tolerance: float, max_rounds: int) -> Exact:
    weight = float(layer.inputs.square().sum()) / layer.inputs.shape[0]
    mu, rho = state.mu.clamp(1e-14, FREE), state.rho
    point = Point(state.s.clone(), state.lam)
    sigma, tau = BOOST / (rho * weight), BOOST / rho
    support = state.s != 0
    signs = torch.sign(state.s)
    tight = ~layer.active & (state.t >= layer.targets) & (point.lam > 0)
    pending = torch.arange(len(mu), device=mu.device)
    cache: Piece | None = None
    settled = torch.zeros_like(mu, dtype=torch.bool)
    newton = 0
    u, lam = point.u, point.lam
    for rounds in range(1, max_rounds + 1):
        t0=time.perf_counter()
        part = piece(layer, pending, point.u[pending], mu[pending, None] * point.lam[pending], signs[pending], support[pending], tight[pending])
        tp=time.perf_counter()-t0
        if cache is None:
            cache = part
        else:
            for name in ("base", "slope", "lam_base", "lam_slope"):
                getattr(cache, name)[pending] = getattr(part, name)
        on = layer.active
        exact_mu = ball_on_piece(layer, torch.where(on, cache.lam_base, 0.0), torch.where(on, cache.lam_slope, 0.0))
        u = cache.base + exact_mu[:, None] * cache.slope
        lam = cache.lam_base / exact_mu.clamp(min=1e-15)[:, None] + cache.lam_slope
        bad = ~settled & violated(layer, u, lam, signs, support, tight, exact_mu, tolerance)
        wrong = bad.nonzero()[:, 0]
        if DEBUG: print('round',rounds,'piece rows',len(pending),'%.3fs'%tp,'mu',exact_mu[0].item(),'bad',len(wrong),'nnz',int((u!=0).sum()))
        if not len(wrong):
            return Exact(u, lam, exact_mu, Termination.CONVERGED, rounds, newton)
        good = (~bad).nonzero()[:, 0]
        settled = ~bad if layer.radius is None or layer.per_neuron else settled
        reach = torch.where(bad, mu * torch.where(on, point.lam, 0.0).norm(dim=1), torch.where(on, cache.lam_base + mu[:, None] * cache.lam_slope, 0.0).norm(dim=1))
        mu = next_multiplier(layer, mu, reach, exact_mu)
        if DEBUG: print('   mu', mu[wrong][:5], exact_mu[wrong][:5])
        point.u[good], point.lam[good] = u[good], lam[good]
        t0=time.perf_counter()
        for _ in range(INNER):
            tol = max(1e-10, 1e-2 * 0.1**rounds)
            moved, residual, steps = proximal_step(layer, point, wrong, mu[wrong], sigma[wrong], tau[wrong], tol, MAXN)
            du=((moved.u-point.u[wrong]).norm(dim=1)/sigma[wrong]).max()
            point.u[wrong], point.lam[wrong] = moved.u, moved.lam
            newton += steps
        if DEBUG: print('   newton rows',steps,'res %.1e'%residual.max(),'%.3fs'%(time.perf_counter()-t0),'du %.1e'%du)
        grown = torch.where(residual <= tol, GROW, 1.0)
        sigma[wrong] *= grown
        tau[wrong] *= grown
        pre = moved.u - sigma[wrong, None] * layer.correlate(moved.lam)
        soft = layer.soften(pre, sigma[wrong, None])
        support[wrong], signs[wrong] = soft != 0, torch.sign(soft)
        ahead = layer.forward(moved.u) + tau[wrong, None] * moved.lam
        tight[wrong] = ~layer.active[wrong] & (ahead >= layer.targets[wrong]) & (moved.lam>0)
        pending = wrong
    return Exact(u, lam, mu, Termination.STEP_LIMIT, max_rounds, newton)


def violated(layer: Layer, u: Tensor, lam: Tensor, signs: Tensor, support: Tensor, tight: Tensor, mu: Tensor, tolerance: float) -> Tensor:
    """Neurons whose optimality conditions fail on their piece."""
    largest = u.abs().amax()
    top = torch.where(layer.price > 0, layer.price, layer.inputs.shape[0])
    correlation = layer.correlate(lam)
    wrong_sign = (u * signs).amin(1) < -tolerance * largest
    outside = ((correlation.abs() - layer.price) / top).amax(1) > tolerance
    stationary = (torch.where(support, correlation + layer.price * signs, 0.0).abs() / top).amax(1) > 10 * tolerance
    forces = torch.where(layer.active, 0.0, lam)
    pulling = forces.amin(1) < -tolerance * lam.abs().amax(1).clamp(max=1e3)
    excess = torch.where(layer.active, 0.0, layer.forward(u) - layer.targets)
    above = excess.amax(1) > tolerance
    if layer.radius is not None:
        size = mu * torch.where(layer.active, lam, 0.0).norm(dim=1)
        unit = layer.targets.shape[1] ** 0.5
        if not layer.per_neuron:
            size = (size * layer.size).norm()
            unit = unit * layer.size.norm()
        off = (size > layer.radius + tolerance * unit) | ((size < layer.radius - tolerance * unit) & (mu < FREE))
        above = above | off
    if DEBUG: print('    sign',int(wrong_sign.sum()),'outside',int(outside.sum()),'stat',int(stationary.sum()),'pull',int(pulling.sum()),'above',int(above.sum()))
    return wrong_sign | outside | stationary | pulling | above


def next_multiplier(layer: Layer, mu: Tensor, reach: Tensor, proposal: Tensor) -> Tensor:
    if layer.penalty is not None:
        return mu
    size = reach if layer.per_neuron else (reach * layer.size).norm().expand_as(reach)
    safe = mu * (layer.radius / size.clamp(min=1e-300)).clamp(0.2, 5.0)
    further = torch.where(safe >= mu, torch.maximum(torch.minimum(proposal, 3 * safe), safe), torch.minimum(torch.maximum(proposal, safe / 3), safe))
    return further.clamp(1e-14, FREE)
