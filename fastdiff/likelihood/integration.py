"""A state and the divergence of its velocity, integrated along an ODE with torchdiffeq or scipy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..errors import check_choice, check_count, check_positive
from ..odes import ADAPTIVE, FIXED, solve
from ..random import seed_tensor

__all__ = ["ADAPTIVE", "FIXED", "PROBES", "Solved", "Velocity", "integrate"]

PROBES = ("rademacher", "gaussian", "exact")
_LEAST_RTOL = 1e-12

Velocity = Callable[[Tensor, float], Tensor]  # (x [B, ...], s) -> dx/ds


class Solved(NamedTuple):
    z: Tensor  # float64 [B, ...]
    divergence: Tensor  # float64 [B, K], of every probe
    nfe: int
    exact: bool


def integrate(
    velocity: Velocity,
    x: Tensor,
    span: tuple[float, float],
    *,
    probe: str = "rademacher",
    probes: int = 1,
    seeds: int | Sequence[int] | Tensor | None = None,
    hutchinson: Tensor | None = None,
    method: str = "dopri5",
    steps: int | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Solved:
    """The state and the divergence's integrals at the end of the span; the state is float64."""
    vectors = _probes(x, check_choice("probe", probe, PROBES), probes, seeds, hutchinson)
    check_choice("method", method, ADAPTIVE + FIXED)
    if (steps is None) != (method in ADAPTIVE):
        raise ValueError(f"steps must be given for {', '.join(FIXED)} and left out otherwise, got {steps!r}")
    rtol, atol = check_positive("rtol", rtol), check_positive("atol", atol)
    if rtol < _LEAST_RTOL:
        raise ValueError(f"rtol must be at least {_LEAST_RTOL:g} (rounding alone is near it), got {rtol}")
    batch, size, count, calls = len(x), x[:1].numel(), 1 if vectors is None else len(vectors), 0
    if not x.numel():
        return Solved(x.double(), x.new_zeros(batch, count, dtype=torch.float64), 0, vectors is None)

    def derivative(s: Tensor, state: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        with torch.enable_grad():
            y = state[:, :size].to(x.dtype).view(x.shape).requires_grad_()
            v = velocity(y, float(s))
            divergence = _divergence(v, y, vectors)
        change = torch.cat([v.detach().flatten(1).double(), divergence], 1)
        if not bool(change.isfinite().all()):
            raise FloatingPointError(f"the velocity of the ODE is not finite at {float(s):.6g} of {span}")
        return change

    def worst(state: Tensor) -> Tensor:
        state = state.view(batch, size + count)
        return torch.maximum(state[:, :size].square().mean(1).sqrt().max(), state[:, size:].abs().max())

    start = torch.cat([x.flatten(1).double(), x.new_zeros(batch, count, dtype=torch.float64)], 1)
    grid = None if steps is None else np.linspace(*span, check_count("steps", steps) + 1).tolist()
    (end,) = solve(derivative, start, span, "likelihoods by the ODE", method, rtol, atol, worst, grid)
    return Solved(end[:, :size].view(x.shape), end[:, size:], calls, vectors is None)


def _divergence(v: Tensor, y: Tensor, vectors: Tensor | None) -> Tensor:
    """v^T J v of every probe, float64 [B, K]; without probes the trace of J, float64 [B, 1]."""
    if vectors is None:
        trace = y.new_zeros(len(y), dtype=torch.float64)
        flat = v.flatten(1)
        for i in range(flat.shape[1]):
            (gradient,) = torch.autograd.grad(flat[:, i].sum(), y, retain_graph=True)
            trace = trace + gradient.flatten(1)[:, i].double()
        return trace[:, None]
    columns = []
    for k, vector in enumerate(vectors):
        (gradient,) = torch.autograd.grad(v, y, vector.to(v.dtype), retain_graph=k + 1 < len(vectors))
        columns.append((gradient.double() * vector).flatten(1).sum(1))
    return torch.stack(columns, 1)


def _probes(x: Tensor, probe: str, probes: int, seeds: Any, hutchinson: Tensor | None) -> Tensor | None:
    """float64 [K, B, ...], or None for the exact divergence."""
    check_count("probes", probes)
    if hutchinson is not None:
        given = hutchinson if hutchinson.ndim > x.ndim else hutchinson[None]
        if seeds is not None or given.shape[1:] != x.shape or not len(given):
            raise ValueError(
                f"hutchinson must be {list(x.shape)} or [probes, ...], without seeds, got {list(hutchinson.shape)}"
            )
        return given.to(x.device, torch.float64)
    if probe == "exact":
        if probes != 1:
            raise ValueError(f"probes must be left out for an exact divergence, got {probes}")
        return None
    seed = seed_tensor(seeds, len(x), x.device)
    normals = [ops.normal(seed, x.shape, 1 + k).double() for k in range(probes)]
    drawn = torch.stack(normals)
    return drawn if probe == "gaussian" else torch.where(drawn < 0, -1.0, 1.0).to(drawn)
