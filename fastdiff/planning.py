"""What a sampler runs: its levels, and the plan of every kind of run, traced and compiled once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from .compiler import compile_plan
from .course import Kind, course
from .denoiser import Denoiser
from .executor import Executor
from .exposure.schedules import LinearScale, epsilon_scales
from .guidance.term import Contrast, Gradient
from .plan import Plan
from .prediction import Prediction
from .process import Levels, Process
from .readable import nothing_yielded
from .solvers import Driver, Solver, ddim_inversion, name_of
from .trace import Recorder, Trace


class Planner:
    """The part of a `Sampler` that knows no network's call: arguments as they were checked, and plans made of them."""

    process: Process
    prediction: Prediction
    solver: Solver | Driver
    options: dict[str, Any]
    levels: Levels
    noise: str
    dtype: torch.dtype
    model_dtype: torch.dtype
    device: torch.device
    backend: str
    epsilon_scale: float | Sequence[float] | LinearScale
    epsilon_scale_mode: str
    guidance: Sequence[Gradient | Contrast]
    guidance_scale: Sequence[float]
    denoised_fn: Callable[[Tensor], Tensor] | None
    clip: tuple[float, float] | None
    compiled_runs: dict[Hashable, Any]  # what was made of a kind of run once
    _explicit: Any
    _grid: tuple[Any, dict[str, Any]]

    def plan(self, steps: int | str | None = None, **kind: Any) -> Plan:
        """The compiled run; `print(sampler.plan(steps=18))` shows what every launch reads, draws and writes.

        Args:
            steps: another number of steps than the sampler's.
            kind: x_init, noise, observe, image, mask, start, upwards: see `course.Kind`.
        """
        levels = self.levels if steps is None else self._levels(steps)
        return compile_plan(self.trace(levels, **kind), self.model_dtype == self.dtype)

    def trace(self, levels: Levels, **kind: Any) -> Trace:
        """What the solver does on these levels, recorded; see `plan`."""
        if isinstance(self.solver, Driver):
            raise ValueError(f"solver {name_of(self.solver)!r} has no plan: its steps depend on the states it finds")
        run = Kind(**kind)
        engine = Recorder(run.noise, self.noise == "brownian")
        begun = False
        for state, denoise in course(self, engine, levels, run):
            if begun:
                engine.finish_step(state, denoise.last_x0, denoise.first_level, run.observe)
            else:
                engine.begin(state, run.observe)
            begun = True
        if not engine.trace.states:
            raise nothing_yielded(self.solver)
        return engine.trace

    def _levels(self, steps: int | str | None) -> Levels:
        if self._explicit is not None:
            if steps is not None:
                raise ValueError(f"steps must be left out when sigmas or timesteps give the levels, got {steps!r}")
            return self.process.levels_at(self._explicit)
        schedule, options = self._grid
        return self.process.levels(steps, schedule, **options)

    def denoiser(self, engine: Any, levels: Levels, upwards: bool = False) -> Denoiser:
        """What the solver sees of the model; `upwards`: on the way from data to noise."""
        return Denoiser(
            engine,
            self.prediction,
            levels,
            epsilon_scales(self.epsilon_scale, levels.steps),
            self.epsilon_scale_mode,
            self.guidance,
            self.guidance_scale,
            self.denoised_fn,
            self.clip,
            upwards=upwards or self.solver is ddim_inversion,
        )

    def executor(self, **kind: Any) -> Executor:
        """The plan of a kind of run (`course.Kind`) with its numbers on the device."""
        key = Kind(**kind)
        if key not in self.compiled_runs:
            self.compiled_runs[key] = self.executor_of(self.plan(**kind))
        return self.compiled_runs[key]

    def executor_of(self, plan: Plan) -> Executor:
        """A plan with its numbers on the device."""
        return Executor(plan, self.dtype, self.model_dtype, self.time_dtype, self.device, self.backend)

    @property
    def time_dtype(self) -> torch.dtype:
        """Of the network's time argument: int64 for timesteps."""
        integers = self.process.integer_time and not self.prediction.own_time
        return torch.int64 if integers else self.dtype
