"""The readable reference: a solver's own lines run on tensors, one small operation after the other."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from . import ops
from .course import Kind, course
from .engine import TensorEngine
from .process import Level
from .request import Request
from .symbols import NotLinearError
from .trace import Choose, Report

if TYPE_CHECKING:
    from .sampler import Sampler


def run_on_tensors(sampler: Sampler, request: Request) -> Tensor:
    """The final state [B, ...]; what `Sampler(compiled=False)` does.

    Where samples choose their levels by what they hold, they run one at a time.
    """
    if request.shape[0] > 1 and _choosing(sampler, request):
        return _one_at_a_time(sampler, request)
    engine = tensor_engine(sampler, request)

    def report(level: Level | None, x: Tensor, denoised: Tensor | None) -> None:
        if request.report is not None:
            request.report(request.start - 1 if level is None else engine.step, level, x, denoised)

    begun = False
    for state, denoise in course(sampler, engine, sampler.levels, Kind(**request.kind)):
        report(denoise.first_level, state, denoise.last_x0) if begun else report(None, state, None)
        engine.step += begun
        begun = True
    if engine.step == request.start:
        raise nothing_yielded(sampler.solver)
    return state


def start_state(sampler: Sampler, request: Request) -> Tensor:
    """Where a run starts: the given state, or draw 0 as wide as the process's prior."""
    if request.x_init is not None:
        return request.x_init.clone()
    return sampler.process.prior_std(sampler.levels[0]) * drawn(sampler, request, 0, -1)


def drawn(sampler: Sampler, request: Request, draw: int, step: int) -> Tensor:
    """Draw number `draw`, of the noise that the request came with or of its seeds."""
    if request.noise is not None:
        return request.noise(draw, step)
    return ops.normal(request.seeds, request.shape, draw, sampler.dtype, sampler.backend)


def tensor_engine(sampler: Sampler, request: Request) -> TensorEngine:
    """What a solver's own lines run on: the network, the guidance terms and the noise of a request."""
    calls, size = request.callbacks(), request.shape
    calls.terms.start(size[0], sampler.device, sampler.dtype)

    def told(time: float) -> Tensor:
        return torch.full((size[0],), time, dtype=torch.float64).to(sampler.time_dtype).to(sampler.device)

    def network(x: Tensor, time: float) -> Tensor:
        if calls.tick is not None:
            calls.tick(engine.step)
        return calls.network(x.to(sampler.model_dtype), told(time))

    class Terms:
        """The guidance terms, told numbers as tensors."""

        memory = calls.terms.memory

        @staticmethod
        def gradient(term: int, y: Tensor, numbers: Sequence[float], how: Hashable) -> Tensor:
            return calls.terms.gradient(
                term, y, [torch.full_like(told(0.0), n, dtype=sampler.dtype) for n in numbers], how
            )

        @staticmethod
        def opinion(term: int, x: Tensor, time: float) -> Tensor:
            return calls.terms.opinion(term, x.to(sampler.model_dtype), told(time))

        @staticmethod
        def both(term: int, x: Tensor, time: float) -> tuple[Tensor, Tensor]:
            return calls.terms.both(term, x.to(sampler.model_dtype), told(time))

    source, brownian = partial(drawn, sampler, request), sampler.noise == "brownian"
    engine = TensorEngine(network, source, Terms(), request.given, brownian)
    return engine


def _choosing(sampler: Sampler, request: Request) -> bool:
    """Whether samples choose; a solver that cannot be traced is taken not to."""
    try:
        events = sampler.trace(sampler.levels, **request.kind).events
    except NotLinearError:
        return False
    return any(isinstance(event, Choose) for event in events)


def _levels(sampler: Sampler, request: Request) -> list[Level | None]:
    """What an observer is told of the levels: of the start, and where every step began; the grid's, where samples are
    at several."""
    events = sampler.trace(sampler.levels, **request.kind).events
    return [event.level for event in events if isinstance(event, Report)]


def samples_of(request: Request) -> list[Request]:
    """The requests of the samples one by one; noise that comes as tensors is asked for once for all."""
    shared = replace(request, noise=None if request.noise is None else cache(request.noise))
    return [_sample_of(shared, b) for b in range(request.shape[0])]


def _sample_of(request: Request, b: int) -> Request:
    batch, noise = request.shape[0], request.noise

    def only(value: Any) -> Any:
        return value[b : b + 1] if isinstance(value, Tensor) and value.ndim and len(value) == batch else value

    return replace(
        request,
        shape=torch.Size([1, *request.shape[1:]]),
        seeds=only(request.seeds),
        x_init=only(request.x_init),
        more={name: only(tensor) for name, tensor in request.more.items()},
        cond=pytree.tree_map(only, request.cond),
        rows=1,
        noise=None if noise is None else lambda draw, step: only(noise(draw, step)),
    )


def _one_at_a_time(sampler: Sampler, request: Request) -> Tensor:
    if any(getattr(term, "batch_window", False) for term in request.terms):
        raise ValueError("batch_window must be False for samples that run one at a time (boosting with compiled=False)")
    reports = []

    def alone(sample: Request) -> Tensor:
        seen: list[Any] = []
        reports.append(seen)
        return run_on_tensors(sampler, replace(sample, report=lambda *report: seen.append(report)))

    final = torch.cat([alone(sample) for sample in samples_of(request)])
    for level, *together in zip(_levels(sampler, request), *reports) if request.report is not None else ():
        states, denoised = ([report[i] for report in together] for i in (2, 3))
        observer: Any = request.report
        observer(together[0][0], level, torch.cat(states), None if denoised[0] is None else torch.cat(denoised))
    return final


def nothing_yielded(solver: Any) -> ValueError:
    """The error of a solver that makes no step."""
    return ValueError(f"solver {getattr(solver, '__name__', solver)!r} must yield at least one state")
