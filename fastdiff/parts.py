"""Parts of a run, for solvers whose steps depend on the states they find: a plan for each, compiled once in a run."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .denoiser import Denoiser, State
from .executor import WELL_CONDITIONED, Executor
from .readable import tensor_engine
from .recompiling import Outline, Recipe
from .request import Request
from .symbols import each
from .trace import Evaluate, Recorder, Trace

if TYPE_CHECKING:
    from .sampler import Sampler

__all__ = ["Parts"]

KEPT = 16  # plans of one run


class Renewed(Executor):
    """An executor whose plan is renewed between runs, one at a time, in the same memory."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        on_host = self.device.type == "cpu"
        self._host = [
            t.numpy() if on_host else launch.table.copy() for t, launch in zip(self._tables, self.plan.launches)
        ]

    def renew(self) -> bool:
        """Take the numbers that the plan has now; False if a launch needs another precision for them."""
        launches, numbers = self.plan.launches, self.numbers
        if self.dtype != torch.float64:
            wide = [launch.wide or launch.cancelling > WELL_CONDITIONED for launch in launches]
            if wide != self._wide:
                return False
        for to, launch in zip(self._host, launches):
            to[...] = launch.table
        if self.device.type != "cpu":
            for table, staged in zip(self._tables, self._host):
                table.copy_(torch.from_numpy(staged))
        told: dict[bool, list[float]] = {True: [], False: []}
        events = self._events()
        for event in events:
            for number in event.numbers:
                told[isinstance(event, Evaluate)].extend(each(number))
        if told[True]:
            numbers.times = torch.tensor(told[True], dtype=torch.float64).to(self.device, numbers.times.dtype)
        if told[False]:
            numbers.told = torch.tensor(told[False], dtype=torch.float64).to(self.device, numbers.told.dtype)
        numbers.__dict__.pop("single", None)
        self.places, self._batches = dict(zip(events, self.places.values())), {}
        self._told = {}
        if any(launch.draws for launch in launches):  # they are part of the short way
            self._ways = {}
        return True


class Parts:
    """Runs parts of one run of a sampler, on its backend or on tensors (compiled=False)."""

    def __init__(self, sampler: Sampler, request: Request):
        self._sampler, self._request = sampler, request
        self._denoise = sampler.denoiser(None, sampler.levels)
        self._ready: dict[Hashable, tuple[Recipe | None, Renewed]] = {}
        self._found: list[Tensor] = []
        self._inner = replace(request, tick=None, report=lambda step, level, x, x0: self._found.append(x))

    def __call__(
        self, x: Tensor, function: Callable[[Denoiser, State, Callable[..., State]], Sequence[State]]
    ) -> list[Tensor]:
        """The tensors that `function(denoise, x, noise)` returns. noise(k, start, end, eta) is draw k.

        Guidance terms begin anew.
        """
        sampler = self._sampler
        if not sampler.compiled:
            engine = tensor_engine(sampler, self._request)
            return list(function(self._with(engine), x, engine.drawn))
        recorder = Recorder(self._request.noise is not None, sampler.noise == "brownian")
        symbol = recorder.begin(recorder.given("x_init"))
        for value in function(self._with(recorder), symbol, recorder.drawn):
            recorder.finish_step(value, None, None, True)
        self._inner.x_init = x
        self._executor(recorder.trace).run(self._inner)
        found, self._found = self._found, []
        return found

    def _with(self, engine: Any) -> Denoiser:
        denoise = copy(self._denoise)
        denoise.engine = engine
        return denoise

    def _executor(self, trace: Trace) -> Renewed:
        sampler, outline = self._sampler, Outline(trace)
        recipe, executor = self._ready.get(outline.key, (None, None))
        if recipe is not None and executor is not None and recipe.renew(trace, outline) and executor.renew():
            return executor
        plan, recipe = Recipe.compile(trace, outline, sampler.model_dtype == sampler.dtype)
        types = sampler.dtype, sampler.model_dtype, sampler.time_dtype
        executor = Renewed(plan, *types, sampler.device, sampler.backend)
        if len(self._ready) >= KEPT:
            self._ready.clear()
        self._ready[outline.key] = recipe, executor
        return executor
