"""DPM-Solver with steps as long as a tolerance allows, for every sample by itself or for the batch at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import ops
from .denoiser import Denoiser, State
from .errors import check_choice, check_count, check_finite, check_positive
from .exposure.schedules import epsilon_scales
from .parts import Parts
from .process import Level
from .readable import samples_of, start_state
from .request import Request
from .solvers.ancestral import split
from .solvers.dpm_fast import noisy_ends
from .solvers.dpmpp_sde import lowered
from .solvers.exponential import Exponential
from .solvers.registry import Driver, register
from .solvers.singlestep import NODES, Place, advance, stages

if TYPE_CHECKING:
    from .sampler import Sampler

__all__ = ["Trial", "dpm_adaptive"]

NORMS = ("sample", "batch")
AT_END = 1e-5  # in lambda: what is left is taken along

Array = NDArray[np.float64]


class Trial(NamedTuple):
    """What `watch` receives after every trial step.

    Attributes:
        x: the states after it, [B, ...]: the old ones where it was rejected.
        sigma: their noise in VE terms; error: relative to the tolerance; h: the next step in lambda; accepted: whether
            it was. Float64 and bool, [B], or [1] with norm="batch".
        evaluations: of the network so far.
    """

    x: Tensor
    sigma: Array
    error: Array
    h: Array
    accepted: NDArray[np.bool_]
    evaluations: int


class Controller:
    """Chooses steps by a PID rule on the inverse errors e: h <- h (1 + atan(e1^b1 e2^b2 e3^b3 - 1)), as in k-diffusion.

    Args:
        h: the first steps, [n]; changed in place.
        coefficients: (p, i, d), b = (p + i + d, -(p + 2 d), d) / order. p = d = 0 is the classical controller.
        safety: a step is accepted if its factor is at least this.
    """

    def __init__(self, h: Array, coefficients: tuple[float, float, float], order: float, safety: float):
        p, i, d = coefficients
        self.h, self._b, self._safety = h, np.array([p + i + d, -(p + 2 * d), d])[:, None] / order, safety
        self._inverse: Array | None = None

    def accept(self, error: Array, active: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of the active steps are good, [n]; the steps of the others stay as they are."""
        inverse = 1 / (error + 1e-8)
        past = np.stack([inverse] * 3) if self._inverse is None else self._inverse
        past = np.stack([inverse, *past[1:]])
        factor = 1 + np.arctan((past**self._b).prod(0) - 1)
        accepted = active & (factor >= self._safety)
        self._inverse = np.where(accepted, past[[0, 0, 1]], past)
        self.h[active] *= factor[active]
        return accepted


class DPMAdaptive(Driver):
    """DPM-Solver-12 and -23 (Lu et al. 2022a, Appendix C), with k-diffusion's controller and ancestral noise.

    From the first level to the last noisy one, in lambda; levels between are not used. Where they end in clean data,
    x_0 at the last noisy level is the result, by one evaluation more. Samples do not know of each other (with
    norm="sample"): one has its own steps, and is the same in any batch; those that have arrived wait for the others.

    Options:
        order: 2 (an error of order 1 and 2) or 3 (2 and 3).
        rtol, atol: a step is good if the root mean square of (low - high) / max(atol, rtol max(|low|, |last low|)) is
            below 1, about.
        h_init: the first step in lambda; pcoeff, icoeff, dcoeff, accept_safety: see `Controller`.
        eta, S_noise: above 0, a step goes down to `ancestral.split`'s level and takes the rest in fresh noise.
        norm: "sample", or "batch": one error and one step for all, as k-diffusion has it.
        max_trials: trial steps in all, good or not; more mean a tolerance that the model's precision does not allow.
        watch: called with a `Trial` after every trial step.

    Raises:
        FloatingPointError: an error is not finite, or the trials are used up; names the noise level.
    """

    def __call__(
        self,
        sampler: Sampler,
        request: Request,
        *,
        order: int = 3,
        rtol: float = 0.05,
        atol: float = 0.0078,
        h_init: float = 0.05,
        pcoeff: float = 0.0,
        icoeff: float = 1.0,
        dcoeff: float = 0.0,
        accept_safety: float = 0.81,
        eta: float = 0.0,
        S_noise: float = 1.0,
        norm: str = "sample",
        max_trials: int = 10_000,
        watch: Callable[[Trial], None] | None = None,
    ) -> Tensor:
        check_choice("order", order, (2, 3))
        check_choice("norm", norm, NORMS)
        rtol, atol = check_finite("rtol", rtol), check_positive("atol", atol)
        check_count("max_trials", max_trials)
        if sampler.noise == "brownian" and norm == "sample" and eta > 0:
            raise ValueError("norm must be 'batch' with noise='brownian', whose intervals are the same for all samples")
        batch, noise = request.shape[0], (check_finite("eta", eta), check_finite("S_noise", S_noise))
        coefficients = (pcoeff, icoeff, dcoeff)
        if norm == "sample" and batch > 1 and not sampler.compiled:
            return self._one_at_a_time(
                sampler, request, order=order, rtol=rtol, atol=atol, h_init=h_init, pcoeff=pcoeff, icoeff=icoeff,
                dcoeff=dcoeff, accept_safety=accept_safety, eta=eta, S_noise=S_noise, watch=watch,
                max_trials=max_trials,
            )  # fmt: skip
        h = np.full(1 if norm == "batch" else batch, check_positive("h_init", h_init))
        controller = Controller(h, coefficients, 1.5 if eta else order, check_positive("accept_safety", accept_safety))
        return _Run(sampler, request, order, (rtol, atol), noise, norm, max_trials, controller, watch).solve()

    def _one_at_a_time(self, sampler: Sampler, request: Request, **options: Any) -> Tensor:
        if request.report is not None:
            raise ValueError("norm must be 'batch' to observe a run with compiled=False, whose samples run one by one")
        return torch.cat([self(sampler, sample, **options) for sample in samples_of(request)])


dpm_adaptive = register(
    order=None,
    evaluations="order",
    stochastic=False,
    source="Lu et al. 2022a (DPM-Solver), Appendix C; k-diffusion",
    name="dpm_adaptive",
)(DPMAdaptive())


class _Run:
    """One adaptive run; see `DPMAdaptive`. lambda and everything else of length n is one number for all (n = 1), or one
    for every sample."""

    def __init__(
        self,
        sampler: Sampler,
        request: Request,
        order: int,
        tolerances: tuple[float, float],
        noise: tuple[float, float],
        norm: str,
        max_trials: int,
        controller: Controller,
        watch: Callable[[Trial], None] | None,
    ):
        self.sampler, self.request, self.order, self.watch = sampler, request, order, watch
        (self.rtol, self.atol), (self.eta, self.S_noise), self.controller = tolerances, noise, controller
        if request.upwards:
            raise ValueError(
                "solver must be another one to encode ('ode', say): 'dpm_adaptive' goes towards less noise"
            )
        self.together, self.max_trials = norm == "batch", max_trials
        first, self.last = check_driven("dpm_adaptive", sampler)
        self.begin, self.end = -math.log(first.sigma_ve), -math.log(self.last.sigma_ve)
        self.at = np.full(len(controller.h), self.begin)
        self.evaluations = self.trials = self.accepted = 0
        self.part = Parts(sampler, request)

    def solve(self) -> Tensor:
        """The final state."""
        request = self.request
        x = low = start_state(self.sampler, request)
        if request.report is not None:
            request.report(-1, None, x, None)
        while (active := self.at < self.end).any() and x.numel():
            x, low = self._step(x, low, active)
        if self.sampler.levels[-1].sigma == 0:
            (x,) = self.part(x, lambda denoise, x, _: [denoise(x, self.last)])
            if request.report is not None:
                request.report(self.accepted, self.last, x, x)
        return x

    def _step(self, x: Tensor, past: Tensor, active: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
        """Try one step: (x, low) after it, as before where it was rejected."""
        target = self.at + np.where(active, self.controller.h, 0.0)
        target = np.where(target > self.end - AT_END, self.end, target)
        draw = 1 + (self.accepted if self.together else self.trials)
        low, high, new, *x0 = self.part(
            x, lambda denoise, x, noise: self._trial(denoise, x, target, lambda *interval: noise(draw, *interval))
        )
        error = self._error(low, high, past)
        accepted = self.controller.accept(error, active)
        self.trials, self.evaluations = self.trials + 1, self.evaluations + self.order
        self._check(error[active], target)
        keep = torch.from_numpy(accepted).to(x.device).view(-1, *(1,) * (x.ndim - 1))
        x, past = torch.where(keep, new, x), torch.where(keep, low, past)
        begun, self.at = self.at, np.where(accepted, target, self.at)
        if self.watch is not None:
            self.watch(Trial(x, np.exp(-self.at), error, self.controller.h.copy(), accepted, self.evaluations))
        if accepted.any() and self.request.report is not None:
            level = self.sampler.levels.between(math.exp(-begun[active].min()))
            self.request.report(self.accepted, level, x, x0[0])
        self.accepted += bool(accepted.any())
        if self.request.tick is not None:
            done = (self.at.min() - self.begin) / (self.end - self.begin)
            self.request.tick(int(done * self.sampler.levels.steps))
        return x, past

    def _trial(self, denoise: Denoiser, x: State, target: Array, noise: Callable[..., State]) -> list[State]:
        """Both solutions at the end of a step, the better one with its noise, and x_0 if it is wanted."""
        start, end = np.exp(-self.at), np.exp(-target)
        lowest = math.exp(-self.end)
        down = np.array([max(float(split(s, t, self.eta)[0]), lowest) for s, t in zip(start, end)])
        up = np.sqrt(np.maximum(end**2 - down**2, 0.0))
        choice = None if len(target) == 1 else denoise.choose(each_its_own, [x])

        def level(sigmas: Array) -> Level:
            levels = [denoise.levels.between(float(sigma)) for sigma in sigmas]
            return levels[0] if choice is None else choice.level(levels)

        def number(values: Array) -> Any:
            return float(values[0]) if choice is None else choice.number(values.tolist())

        here, there = level(start), level(end)
        step = Exponential(here, lowered(there, number(down)), "eps")
        places: list[Place] = [(theta, level(start ** (1 - theta) * down**theta)) for theta in NODES[self.order]]
        values, nodes = stages(denoise, x, here, places, "eps"), [0.0, *NODES[self.order]]
        low, high = advance(step, x, values[:-1], nodes[:-1]), advance(step, x, values, nodes)
        new = high
        if (up * self.S_noise > 0).any():
            new = high + (self.S_noise * there.alpha * number(up)) * noise(here, there, self.eta**2)
        observed = [] if self.request.report is None else [denoise.last_x0]
        return [low, high, new, *observed]

    def _error(self, low: Tensor, high: Tensor, past: Tensor) -> Array:
        """[n]: the root mean square of the difference, in units of the tolerance."""
        size = torch.maximum(low.abs(), past.abs())
        ratio = (low - high) / (self.rtol * size).clamp(min=self.atol)
        flat = ratio.reshape(len(self.at), -1)
        squares = ops.sum_squares([flat], torch.ones_like(flat[:1, :1]), backend=self.sampler.backend)  # in any batch
        return (squares / flat.shape[1]).sqrt().cpu().numpy()

    def _check(self, error: Array, target: Array) -> None:
        where = f"at sigma / alpha = {math.exp(-target.min()):.4g}"
        if not np.isfinite(error).all():
            raise FloatingPointError(f"the error of a step of 'dpm_adaptive' is not finite {where}")
        if self.trials > self.max_trials:
            raise FloatingPointError(
                f"'dpm_adaptive' has made {self.max_trials} trial steps {where}: rtol={self.rtol} and atol={self.atol} "
                "may ask for more than the model's precision allows; or raise max_trials"
            )


def each_its_own(x: Tensor, told: Tensor) -> Tensor:
    """Every sample has a level of its own: candidate b is sample b's."""
    return torch.arange(len(x), device=x.device)


def check_own_steps(name: str, sampler: Sampler) -> None:
    """Refuse a number for every step of the grid, for a solver that makes steps of its own."""
    if len(set(epsilon_scales(sampler.epsilon_scale, sampler.levels.steps))) > 1:
        raise ValueError(f"epsilon_scale must be one number for solver {name!r}, which makes steps of its own")


def check_driven(name: str, sampler: Sampler) -> tuple[Level, Level]:
    """The first level and the last noisy one, of a solver that visits any levels between them.

    Raises:
        ValueError: as `check_own_steps`; or the process has not every level.
    """
    check_own_steps(name, sampler)
    first, last = noisy_ends(sampler.levels, name)
    middle = math.sqrt(first.sigma_ve * last.sigma_ve)
    if not math.isclose(sampler.levels.between(middle).sigma_ve, middle, rel_tol=1e-6):
        raise ValueError(
            f"process must have a level at every sigma for solver {name!r} (EDM, VE, flow, an SDE, InterpolatingVP), "
            f"this {type(sampler.process).__name__} has discrete ones"
        )
    return first, last
