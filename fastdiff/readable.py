"""The readable reference: a solver's own lines run on tensors, one small operation after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import ops
from .denoiser import TensorEngine
from .executor import Request
from .process import Level

if TYPE_CHECKING:
    from .sampler import Sampler


def run_on_tensors(sampler: Sampler, request: Request) -> Tensor:
    """The final state [B, ...]; what `Sampler(compiled=False)` does."""
    calls, size = request.callbacks(), request.shape

    def noise(draw: int, step: int) -> Tensor:
        if calls.noise is not None:
            return calls.noise(draw, step)
        return ops.normal(request.seeds, size, draw, sampler.dtype, sampler.backend)

    def network(x: Tensor, time: float) -> Tensor:
        if calls.tick is not None:
            calls.tick(engine.step)
        t = torch.full((size[0],), time, dtype=torch.float64).to(sampler.time_dtype).to(sampler.device)
        return calls.network(x.to(sampler.model_dtype), t)

    def report(level: Level | None, x: Tensor, denoised: Tensor | None) -> None:
        if calls.report is not None:
            calls.report(-1 if level is None else engine.step, level, x, denoised)

    engine = TensorEngine(network, calls.guides, noise)
    denoise = sampler.denoiser(engine, sampler.levels)
    start = request.x_init
    x = start.clone() if start is not None else sampler.process.prior_std(sampler.levels[0]) * noise(0, -1)
    report(None, x, None)
    state = None
    for state in sampler.solver(denoise, x, sampler.levels, engine.noise, **sampler.options):
        report(denoise.first_level, state, denoise.last_x0)
        engine.step += 1
        denoise.finish_step()
    if state is None:
        raise nothing_yielded(sampler.solver)
    return state


def nothing_yielded(solver: Any) -> ValueError:
    """The error of a solver that makes no step."""
    return ValueError(f"solver {getattr(solver, '__name__', solver)!r} must yield at least one state")
