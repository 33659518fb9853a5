"""The probability flow solved as an ODE to a tolerance, by torchdiffeq or SciPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .adaptive import check_driven, check_own_steps
from .continuous import Flow, SDEProcess
from .denoiser import Denoiser, State
from .engine import flat
from .errors import check_choice, check_positive
from .odes import ADAPTIVE, solve
from .parts import Parts
from .process import Level
from .readable import start_state
from .request import Request
from .solvers.registry import Driver, register

if TYPE_CHECKING:
    from .sampler import Sampler

__all__ = ["ode"]

FINALS = ("x0", "reverse_diffusion", "none")


class Path(NamedTuple):
    """The flow as an ODE dy/ds of y = scale(s) x.

    Attributes:
        points: s at the noisy levels that the run visits, in order; levels: those.
        level: of any s.
        velocity: (y, x0, s, level) -> dy/ds, with x0 predicted at s.
        scaled: whether y is x / alpha; else it is x.
    """

    points: list[float]
    levels: list[Level]
    level: Callable[[float], Level]
    velocity: Callable[[State, State, float, Level], State]
    scaled: bool


def path_of(sampler: Sampler) -> Path:
    """In time for processes that have one (SDEs: Song et al. 2021, Eq. 13; flow: Lipman et al. 2023); for others in log
    sigma, in VE terms: du / d log sigma = u - x_0 (Karras et al. 2022, Eq. 1)."""
    process, levels = sampler.process, sampler.levels
    noisy = [level for level in levels if level.sigma > 0]
    if isinstance(process, (Flow, SDEProcess)):
        check_own_steps("ode", sampler)
        assert levels.times is not None
        points = levels.times[: len(noisy)].tolist()
        return Path(points, noisy, process.level, _of_flow if isinstance(process, Flow) else _of_sde(process), False)
    check_driven("ode", sampler)
    points = [math.log(level.sigma_ve) for level in noisy]
    return Path(points, noisy, lambda s: levels.between(math.exp(s)), lambda u, x0, s, level: u - x0, True)


def _of_flow(x: State, x0: State, t: float, level: Level) -> State:
    return (x - x0) / t


def _of_sde(process: SDEProcess) -> Callable[[State, State, float, Level], State]:
    def velocity(x: State, x0: State, t: float, level: Level) -> State:
        time = torch.tensor([t], dtype=torch.float64)
        factor, diffusion = float(process.sde.drift(time)), float(process.sde.diffusion(time))
        return factor * x - (0.5 * diffusion**2 / level.sigma**2) * (level.alpha * x0 - x)

    return velocity


class ProbabilityFlow(Driver):
    """Every method of the probability flow with steps chosen by a tolerance (Song et al. 2021, Section 4.3).

    From the first level to the last noisy one; levels between only say where a callback or a trajectory looks (one
    evaluation more each). The batch shares its steps: with "RK45" one root mean square over all is held to the
    tolerance (score_sde), with torchdiffeq's methods that of each sample. The solver's arithmetic is in float64; the
    velocity is one compiled plan on the sampler's backend, renewed for every level.

    Options:
        method: "dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun" (torchdiffeq) or "RK45" (SciPy, on the host).
        rtol, atol: relative and absolute tolerance; of x, or of x / alpha where the process is not one in time.
        final: what is done at the last noisy level, where the levels end in clean data: "x0" takes the predicted x_0,
            "reverse_diffusion" one step of the SDE's chain without its noise (score_sde's denoise), "none" nothing.

    Raises:
        FloatingPointError: the velocity is not finite, or the tolerance cannot be met.
        ModuleNotFoundError: torchdiffeq or SciPy is not installed.
    """

    encodes = True

    def __call__(
        self,
        sampler: Sampler,
        request: Request,
        *,
        method: str = "dopri5",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        final: str = "x0",
    ) -> Tensor:
        check_choice("method", method, ADAPTIVE)
        check_choice("final", final, FINALS)
        rtol, atol = check_positive("rtol", rtol), check_positive("atol", atol)
        if final == "reverse_diffusion" and not isinstance(sampler.process, SDEProcess):
            raise ValueError(f"final must be 'x0' or 'none' for a process without an SDE's chain, got {final!r}")
        path = path_of(sampler)
        if request.upwards:
            path = path._replace(points=path.points[::-1], levels=path.levels[::-1])
        run = _Run(sampler, request, path)
        x = start_state(sampler, request)
        if request.upwards:  # it is data
            x = path.levels[0].alpha * x
        run.report(-1, None, x)
        if x.numel() and len(path.points) > 1:
            x = run.solve(x, method, rtol, atol)
        if sampler.levels[-1].sigma == 0 and final != "none" and not request.upwards:
            x = run.finish(x, final)
        return x


ode = register(
    order=None,
    evaluations="adaptive",
    stochastic=False,
    source="Song et al. 2021, Eq. 13; torchdiffeq, SciPy's RK45",
    name="ode",
)(ProbabilityFlow())


class _Run:
    def __init__(self, sampler: Sampler, request: Request, path: Path):
        self.sampler, self.request, self.path = sampler, request, path
        self._part, self._done = Parts(sampler, request), 0

    def x0(self, x: Tensor, level: Level) -> Tensor:
        """The predicted x_0 of a state."""
        return self._part(x, lambda denoise, x, _: [denoise(x, level)])[0]

    def velocity(self, y: Tensor, s: float) -> Tensor:
        """dy/ds."""
        path, level = self.path, self.path.level(s)

        def change(denoise: Denoiser, y: State, _: Any) -> list[State]:
            x = level.alpha * y if path.scaled and level.alpha != 1 else y
            return [path.velocity(y, denoise(x, level), s, level)]

        return self._part(y, change)[0]

    def _tick(self, s: float) -> None:
        """Before an evaluation on the way; a solver looks back and ahead."""
        if self.request.tick is not None:
            first, last = self.path.points[0], self.path.points[-1]
            self._done = max(self._done, int((s - first) / (last - first) * self.sampler.levels.steps))
            self.request.tick(self._done)

    def report(self, step: int, level: Level | None, x: Tensor, x0: Tensor | None = None) -> None:
        """Tell an observer, if there is one."""
        if self.request.report is not None:
            if level is not None and x0 is None:
                x0 = self.x0(x, level)
            self.request.report(step, level, x, x0)

    def solve(self, x: Tensor, method: str, rtol: float, atol: float) -> Tensor:
        """The state at the last noisy level."""
        path, dtype = self.path, x.dtype
        points, levels = path.points, path.levels
        if self.request.report is None:
            points, levels = [points[0], points[-1]], [levels[0], levels[-1]]

        def state(y: Tensor, level: Level) -> Tensor:
            return (level.alpha * y if path.scaled else y).to(dtype).view(x.shape)

        def derivative(s: Tensor, y: Tensor) -> Tensor:
            self._tick(float(s))
            change = self.velocity(y.to(dtype).view(x.shape), float(s)).double()
            if not bool(change.isfinite().all()):
                raise FloatingPointError(
                    f"the velocity of the probability flow is not finite at sigma {path.level(float(s)).sigma:.4g}"
                )
            return change.view(y.shape)

        def worst(error: Tensor) -> Tensor:
            return flat(error.view(x.shape)).square().mean(1).sqrt().max()

        start = x.double() / levels[0].alpha if path.scaled else x.double()
        found = solve(derivative, flat(start), points, "runs of solver 'ode'", method, rtol, atol, worst)
        for step, y in enumerate(found):
            x = state(y, levels[step + 1])
            self.report(step, levels[step], x)
        return x

    def finish(self, x: Tensor, final: str) -> Tensor:
        """From the last noisy level to clean data."""
        point, level = self.path.points[-1], self.path.levels[-1]
        x0 = denoised = self.x0(x, level)
        if final == "reverse_diffusion":
            assert isinstance(self.sampler.process, SDEProcess)
            score = (level.alpha * x0 - x) / level.sigma**2
            time = torch.full(x.shape[:1], point, dtype=torch.float64, device=x.device)
            drift, _ = self.sampler.process.sde.reverse(x, score, time, discrete=True)
            denoised = (x - drift).to(x.dtype)
        self.report(len(self.path.points) - 1, level, denoised, x0)
        return denoised
