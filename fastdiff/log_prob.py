"""Log-probabilities of the steps of a stochastic run, for fine-tuning by reinforcement learning.

A step that ends by adding noise, x' = mean(x) + std z, has the density N(x'; mean, std^2) (Black et al. 2024, "Training
diffusion models with reinforcement learning", Eq. 4; Fan et al. 2023, DPOK). Tracing finds mean and std: the solver
runs on the states of a recorded trajectory, and what a step yields is split into its noise and the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from . import ops
from .calls import make_request
from .compiler import compile_plan
from .course import Kind, course
from .differentiable import recomputing, walk
from .engine import flat
from .errors import check_count
from .executor import Executor
from .process import Level
from .pruning import carries, pruned
from .request import Request
from .solvers import Driver, name_of
from .symbols import Atom, Chosen, Combination, Draw, Point, Scaled
from .trace import Recorder, Report

if TYPE_CHECKING:
    from .sampler import Sampler

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Density(NamedTuple):
    """N(mean, (std e)^2), from which a step draws its state, elementwise.

    Attributes:
        noise: the draws that make std z, with their coefficients.
        log_std: ln std.
        learned: (a, b) of ln e = a v + b for the network's variance half v; None: e = 1.
    """

    noise: Combination
    log_std: float
    learned: tuple[float, float] | None


class Densities(NamedTuple):
    """Of the steps of a run, None for those that draw nothing; and what computes their residuals, (x' - mean) / std."""

    steps: dict[int, Density | None]
    executor: Executor


class Forced(Recorder):
    """Records a run along given states: every step begins at a tensor, not at what the step before it made.

    Args:
        wanted: steps whose residuals are computed; None: all.
        solver: its name, for messages.
        brownian: noise of an interval is an increment of one path.
    """

    def __init__(self, solver: str, wanted: Sequence[int] | None = None, brownian: bool = False):
        super().__init__(brownian=brownian)
        self.densities: dict[int, Density | None] = {}
        self._solver, self._wanted, self._seen = solver, wanted, 0
        self._fresh: dict[Draw, Combination] = {}  # a stand-in for every noise of this step, and what it stands for

    def noise(self, start: Level | None = None, end: Level | None = None, eta: float = 1.0) -> Combination:
        drawn = super().noise(start, end, eta)
        z = Draw(self._draws)
        self._fresh[z] = drawn
        return Combination({z: 1.0})

    def finish_step(self, x: Combination, x0: Combination | None, level: Level | None, observe: bool) -> None:
        if any(carries(value, Draw) for event in self.trace.events[self._seen :] for value in event.values):
            self._refuse("calls the network on noise drawn in the same step")
        mean, noise, variance = self._split(x)
        std = math.hypot(*noise.values())
        self.densities[self.step] = None
        following = self.given(state_name(self.step + 1))
        if std > 0:
            actual = sum((c * self._fresh[z] for z, c in noise.items()), Combination({}))
            learned = None if variance is None else (variance.a, variance.b)
            self.densities[self.step] = Density(actual, math.log(std), learned)
            if self._wanted is None or self.step in self._wanted:
                values = [(following - mean) / std]
                values += [] if variance is None else [Combination({variance.variance: 1.0})]
                self.trace.events.append(Report(self.step, values, level, dtype=torch.float64))
        self.step += 1
        self.put(x, following)
        self.trace.states.append(x)
        self._seen, self._fresh = len(self.trace.events), {}

    def _split(self, x: Combination) -> tuple[Combination, dict[Draw, float], Scaled | None]:
        """The mean, the draws with their coefficients, and what scales them if a variance is learned."""
        mean: dict[Atom, Any] = {}
        noise: dict[Draw, float] = {}
        scales: set[Scaled | None] = set()
        for atom, c in self._opened(x).terms.items():
            scaled = isinstance(atom, Scaled) and carries(atom.value, Draw)
            if not scaled and not carries(Combination({atom: 1.0}), Draw):
                mean[atom] = c
                continue
            scales.add(atom if scaled else None)  # type: ignore[arg-type]
            for z, w in self._opened(atom.value).terms.items() if scaled else [(atom, 1.0)]:  # type: ignore[attr-defined]
                if z not in self._fresh:
                    self._refuse("draws its noise elsewhere than in its own step's last sum")
                if isinstance(c, Chosen) or isinstance(w, Chosen):
                    self._refuse("scales its noise by what samples hold")
                noise[z] = noise.get(z, 0.0) + c * w
        if len(scales) > 1:
            self._refuse("adds noise of a learned and of another variance")
        return Combination(mean), noise, next(iter(scales), None)

    def _opened(self, value: Combination) -> Combination:
        """Written out over what named values that carry noise are made of."""
        total = Combination({})
        for atom, c in value.terms.items():
            one = Combination({atom: 1.0})
            opened = self._opened(atom.value) if isinstance(atom, Point) and carries(one, Draw) else one
            total = total + c * opened
        return total

    def _refuse(self, why: str) -> NoReturn:
        raise ValueError(
            f"solver {self._solver!r} has no log-probabilities with these options: a step must add Gaussian noise at "
            f"its end, and step {self.step} {why}"
        )


def state_name(number: int) -> str:
    """Of a state of the trajectory, among the given tensors."""
    return f"state {number}"


def traced(sampler: Sampler, start: int, wanted: Sequence[int] | None = None) -> Forced:
    """The solver's lines run along a trajectory."""
    solver = name_of(sampler.solver)
    if isinstance(sampler.solver, Driver):
        raise ValueError(f"solver {solver!r} has no log-probabilities: it chooses its steps on the way")
    engine = Forced(solver, wanted, sampler.noise == "brownian")
    states = course(sampler, engine, sampler.levels, Kind(x_init=True, start=start))
    first, _ = next(states)
    engine.put(first, engine.given(state_name(start)))
    for state, denoise in states:
        engine.finish_step(state, denoise.last_x0, denoise.first_level, False)
    if not any(engine.densities.values()):
        raise ValueError(f"solver {solver!r} draws no noise with options {sampler.options}: no step has a density")
    return engine


def _densities(sampler: Sampler, start: int, wanted: tuple[int, ...] | None) -> Densities:
    """Found once for every choice of steps."""
    key = "log_prob", start, wanted
    if key not in sampler.compiled_runs:
        engine = traced(sampler, start, wanted)
        for step in wanted or ():
            if engine.densities.get(step) is None:
                stochastic = [step for step, density in engine.densities.items() if density]
                raise ValueError(f"steps must be of {stochastic}, which draw noise, got {step}")
        plan = compile_plan(pruned(engine.trace), sampler.model_dtype == sampler.dtype)
        sampler.compiled_runs[key] = Densities(engine.densities, sampler.executor_of(plan))
    return sampler.compiled_runs[key]


def log_prob(
    sampler: Sampler,
    trajectory: Tensor,
    steps: Sequence[int] | None,
    start: int,
    labels: Any,
    cond: dict[str, Any] | None,
    checkpoint: bool,
) -> Tensor:
    """See `Sampler.log_prob`."""
    if not isinstance(trajectory, Tensor) or not trajectory.is_floating_point() or trajectory.ndim < 2:
        came = list(trajectory.shape) if isinstance(trajectory, Tensor) else type(trajectory).__name__
        raise ValueError(f"trajectory must be a floating tensor [N + 1, B, ...], got {came}")
    if check_count("start", start, 0) >= sampler.levels.steps:
        raise ValueError(f"start must be below the number of steps, {sampler.levels.steps}, got {start}")
    wanted = None if steps is None else tuple(check_count("steps", step, 0) for step in steps)
    found = _densities(sampler, start, wanted)
    if len(trajectory) != len(found.steps) + 1:
        raise ValueError(f"trajectory must hold {len(found.steps) + 1} states, got {len(trajectory)}")
    size = trajectory.shape[1:]
    request = make_request(sampler, size, seeds=0, labels=labels, cond=cond)
    states = trajectory.to(sampler.device, sampler.dtype)
    request.more = {state_name(start + i): x for i, x in enumerate(states.unbind(0))}
    rows: dict[int, Tensor] = {}
    elements = math.prod(size[1:])

    def report(step: int, level: Level | None, residual: Tensor, variance: Tensor | None) -> None:
        density = found.steps[step]
        assert density is not None
        log_std: Any = elements * density.log_std
        if density.learned is not None and variance is not None:
            log_scale = density.learned[0] * variance + density.learned[1]
            residual, log_std = residual * torch.exp(-log_scale), log_std + flat(log_scale).sum(1)
        rows[step] = -0.5 * flat(residual).square().sum(1) - log_std - elements * HALF_LOG_2PI

    request.report = report
    walk(found.executor, recomputing(request) if checkpoint else request)
    zero = torch.zeros(size[:1], dtype=torch.float64, device=sampler.device)
    return torch.stack([rows.get(step, zero) for step in (found.steps if wanted is None else wanted)])


def log_prob_of_call(sampler: Sampler, request: Request) -> Callable[[], Tensor]:
    """What the log-probabilities [N, B] of a run are, once it is over: those of its draws, -|z|^2 / 2 - D (ln std +
    ln(2 pi) / 2) for every step.

    Raises:
        ValueError: a solver without densities or with a learned variance, or a run with a mask.
    """
    if "mask" in request.more:
        raise ValueError("return_log_prob must be False with a mask, which is no part of the steps' densities")
    key = "draws", request.start
    if key not in sampler.compiled_runs:
        sampler.compiled_runs[key] = traced(sampler, request.start).densities
    densities: dict[int, Density | None] = sampler.compiled_runs[key]
    if any(density is not None and density.learned is not None for density in densities.values()):
        raise ValueError("return_log_prob must be False with a learned variance; use log_prob(trajectory)")
    squares: dict[int, Tensor] = {}
    if (noise := request.noise) is not None:

        def remembered(draw: int, step: int) -> Tensor:
            z = noise(draw, step)
            squares[draw] = flat(z).double().square().sum(1)
            return z

        request.noise = remembered

    def norm(density: Density) -> Tensor:
        """|z|^2, for z of variance 1."""
        draws = [atom.k for atom in density.noise.terms if isinstance(atom, Draw)]
        weights = [c * math.exp(-density.log_std) for c in density.noise.terms.values()]
        if noise is not None:
            return weights[0] ** 2 * squares[draws[0]]
        table = torch.tensor([[0.0, *weights]], dtype=sampler.dtype, device=sampler.device)
        nothing = torch.zeros(request.shape, dtype=sampler.dtype, device=sampler.device)
        return ops.sum_squares([nothing], table, seeds=request.seeds, draws=draws, backend=sampler.backend)

    def compute() -> Tensor:
        elements = math.prod(request.shape[1:])
        zero = torch.zeros(request.shape[:1], dtype=torch.float64, device=sampler.device)
        rows = [
            zero if density is None else -0.5 * norm(density) - elements * (density.log_std + HALF_LOG_2PI)
            for density in densities.values()
        ]
        return torch.stack(rows)

    return compute
