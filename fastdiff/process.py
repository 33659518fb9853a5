"""The diffusion process: alpha and sigma of x_t = alpha x_0 + sigma z, and the levels a sampler visits.

Conventions. A `Level` says how much signal (alpha) and noise (sigma) a state carries and which time the model is told.
In VE terms every process is alpha = 1: u = x / alpha with noise level sigma / alpha.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import schedules
from .errors import check_count, check_positive
from .symbols import Chosen

Array = NDArray[np.float64]


class Level(NamedTuple):
    """One noise level: x = alpha x_0 + sigma z; `time` is what the model receives (sigma for VE, a timestep for VP)."""

    alpha: float
    sigma: float
    time: float

    @property
    def sigma_ve(self) -> float:
        """The level's noise in VE terms, sigma / alpha."""
        pure_noise = isinstance(self.alpha, Real) and self.alpha == 0  # a level chosen per sample has no one alpha
        return math.inf if pure_noise else self.sigma / self.alpha


CLEAN = Level(1.0, 0.0, 0.0)


class Levels(Sequence[Level]):
    """The levels of one run, noisiest first, the last one usually clean: `steps` + 1 of them.

    Attributes:
        process: for steps that leave the grid.
        times: [steps + 1] of a process in continuous time (`fastdiff.continuous`), the last one 0; None of others.
    """

    def __init__(self, levels: Sequence[Level], process: Process, times: Sequence[float] | None = None):
        self._levels = list(levels)
        self.process = process
        self.times = None if times is None else np.array(times, dtype=np.float64)

    def __getitem__(self, i):  # type: ignore[no-untyped-def]
        return self._levels[i]

    def __len__(self) -> int:
        return len(self._levels)

    @property
    def steps(self) -> int:
        return len(self._levels) - 1

    def at_sigma(self, sigma_ve: float) -> Level:
        """The level of a noise in VE terms (churn)."""
        return self.process.level_at_sigma(sigma_ve)

    def between(self, sigma_ve: Any) -> Level:
        """The level of a stage inside a step: as `at_sigma`, but no VE level is rounded for it."""
        if isinstance(sigma_ve, Chosen):
            candidates = [self.process.level_between(float(value)) for value in sigma_ve.values]
            numbers: Any = [Chosen(values, sigma_ve.rows) for values in zip(*candidates)]
            return Level(*numbers)
        return self.process.level_between(sigma_ve)

    @property
    def alphas_cumprod(self) -> Array:
        """alpha_bar = alpha^2 of the noisy levels, cleanest first: the order of guided-diffusion's tables."""
        return np.array([level.alpha**2 for level in self._levels[-2::-1]])

    @property
    def sigmas(self) -> Array:
        """The noise levels in VE terms, noisiest first, trailing 0 included."""
        return np.array([level.sigma_ve for level in self._levels])


class Process:
    """What a solver and the sampler need to know of a process: VE, EDM, VP; in `continuous`, Flow and SDEProcess."""

    integer_time = False
    explicit = "sigmas"  # what its levels are given as: "sigmas" or "timesteps"

    def levels(
        self, steps: int | str | None, schedule: str | Callable[..., Array] | None = None, **options: float
    ) -> Levels:
        """The levels of a run of `steps` steps."""
        raise NotImplementedError

    def levels_at(self, values: Sequence[float]) -> Levels:
        """Explicit levels, noisiest first: sigmas (VE, usually ending in 0) or timesteps (VP, then clean)."""
        raise NotImplementedError

    def level_at_sigma(self, sigma_ve: float) -> Level:
        """The level whose noise in VE terms is `sigma_ve` (rounded to what the process has)."""
        raise NotImplementedError

    def level_between(self, sigma_ve: Any) -> Level:
        """The level of a stage inside a solver's step; that of `level_at_sigma` unless a process knows better."""
        return self.level_at_sigma(sigma_ve)

    def prior_std(self, first: Level) -> float:
        """Standard deviation of the state a run starts from."""
        raise NotImplementedError


class VE(Process):
    """Variance exploding: alpha = 1, the model is told sigma (Song et al. 2021).

    Args:
        sigma_min, sigma_max: default limits of the schedules.
        round_sigma: maps a level to the nearest one the model knows (EDM's `net.round_sigma`), applied to the grid
            and to churned levels.
    """

    default_schedule = "ve"

    def __init__(
        self,
        sigma_min: float = 0.02,
        sigma_max: float = 100.0,
        round_sigma: Callable[[float], float] | None = None,
    ):
        self.sigma_min = check_positive("sigma_min", sigma_min)
        self.sigma_max = check_positive("sigma_max", sigma_max)
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min must be below sigma_max={sigma_max}, got {sigma_min}")
        self.round_sigma = round_sigma or (lambda sigma: sigma)

    def levels(self, steps=None, schedule=None, **options):  # type: ignore[no-untyped-def]
        n = check_count("steps", 18 if steps is None else steps)
        if n == 1:
            raise ValueError(
                "steps must be at least 2 on a sigma schedule (one step from pure noise has no grid), got 1"
            )
        options.setdefault("sigma_min", self.sigma_min)
        options.setdefault("sigma_max", self.sigma_max)
        grid = named_schedule(schedule or self.default_schedule)(n, **options)
        return self._levels(_checked_sigmas("schedule", grid))

    def levels_at(self, values):  # type: ignore[no-untyped-def]
        sigmas = _checked_sigmas("sigmas", values)
        if (np.diff(sigmas) == 0).any():
            raise ValueError(f"sigmas must be strictly decreasing, got {values!r}")
        return self._levels(sigmas)

    def _levels(self, sigmas: Array) -> Levels:
        return Levels([self.level_at_sigma(float(s)) if s > 0 else CLEAN for s in sigmas], self)

    def level_at_sigma(self, sigma_ve: float) -> Level:
        sigma = float(self.round_sigma(sigma_ve))
        return Level(1.0, sigma, sigma)

    def level_between(self, sigma_ve):  # type: ignore[no-untyped-def]
        return Level(1.0, sigma_ve, sigma_ve)

    def prior_std(self, first: Level) -> float:
        return first.sigma


class EDM(VE):
    """The process of Karras et al. 2022: VE with sigma from 0.002 to 80 and the rho = 7 schedule."""

    default_schedule = "karras"

    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        round_sigma: Callable[[float], float] | None = None,
    ):
        super().__init__(sigma_min, sigma_max, round_sigma)


class VP(Process):
    """Variance preserving in discrete time (Ho et al. 2020): alpha^2 = alpha_bar, sigma^2 = 1 - alpha_bar.

    Args:
        betas: [T], in (0, 1].
        rescale_timesteps: tell the model t * 1000 / T as a float instead of the integer step t.
    """

    explicit = "timesteps"

    def __init__(self, betas: Sequence[float] | Array, rescale_timesteps: bool = False):
        self.betas = np.asarray(betas, dtype=np.float64)
        if self.betas.ndim != 1 or not ((self.betas > 0) & (self.betas <= 1)).all():
            raise ValueError(f"betas must be a 1-D list of numbers in (0, 1], got {betas!r}")
        self.alphas_cumprod: Array = np.cumprod(1.0 - self.betas, dtype=np.float64)
        self.rescale_timesteps = rescale_timesteps
        self.integer_time = not rescale_timesteps

    @classmethod
    def linear(cls, T: int = 1000, **options: bool) -> VP:
        """DDPM's linear betas, scaled by 1000 / T."""
        return cls(schedules.linear_betas(T), **options)

    @classmethod
    def cosine(cls, T: int = 1000, **options: bool) -> VP:
        """iDDPM's cosine schedule."""
        return cls(schedules.cosine_betas(T), **options)

    @property
    def T(self) -> int:
        return len(self.betas)

    def level(self, t: float, alpha_bar: float | None = None) -> Level:
        """The level of original step t, with the process's alpha_bar or one given; between two steps that of the lower,
        but a model that is told times as floats is told t."""
        abar = float(self.alphas_cumprod[int(t)]) if alpha_bar is None else alpha_bar
        return Level(
            math.sqrt(abar),
            math.sqrt(1.0 - abar),
            t * 1000.0 / self.T if self.rescale_timesteps else float(int(t)),
        )

    def step_of(self, level: Level) -> int:
        """The original step of a level."""
        return round(level.time * self.T / 1000.0 if self.rescale_timesteps else level.time)

    def levels(self, steps=None, schedule=None, **options):  # type: ignore[no-untyped-def]
        """Respaced as guided-diffusion does: an int, "10,5,5" or "ddim50"; None keeps all T steps.

        alpha_bar is rebuilt from the chain's betas, as in guided-diffusion. The product differs from the original by
        rounding only, but where alpha_bar is 1e-9 (the noisiest cosine steps) that rounding shows in x_0.
        """
        if schedule is not None or options:
            name, value = ("schedule", schedule) if schedule is not None else next(iter(options.items()))
            raise ValueError(f"{name} must be left out for a VP process (steps= is its respacing), got {value!r}")
        kept = schedules.space_timesteps(self.T, "" if steps is None else steps)
        abar = self.alphas_cumprod[kept]
        rebuilt = np.cumprod(1.0 - (1.0 - abar / np.append(1.0, abar[:-1])))
        noisy = [self.level(t, float(a)) for t, a in zip(kept[::-1], rebuilt[::-1])]
        return Levels([*noisy, CLEAN], self)

    def levels_at(self, values):  # type: ignore[no-untyped-def]
        """Explicit original steps, with their own alpha_bar."""
        steps = [check_count("timesteps", v, 0) for v in values]
        if not steps or max(steps) >= self.T or any(b >= a for a, b in pairwise(steps)):
            raise ValueError(f"timesteps must be strictly decreasing integers below {self.T}, got {list(values)!r}")
        return Levels([*map(self.level, steps), CLEAN], self)

    def level_at_sigma(self, sigma_ve: float) -> Level:
        with np.errstate(divide="ignore"):  # infinite at a zero terminal SNR
            table = np.sqrt(1.0 / self.alphas_cumprod - 1.0)
        return self.level(int(np.abs(table - sigma_ve).argmin()))

    def prior_std(self, first: Level) -> float:
        return 1.0


def _checked_sigmas(name: str, values: Any) -> Array:
    """Levels given by a user or made by a schedule, which may repeat a level (iDDPM's rounded indices)."""
    try:
        sigmas = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a list of numbers, got {values!r}") from None
    if sigmas.ndim != 1 or not np.isfinite(sigmas).all() or (sigmas < 0).any():
        raise ValueError(f"{name} must be a list of finite, non-negative numbers, got {values!r}")
    if len(sigmas) < 2 or (np.diff(sigmas) > 0).any():
        raise ValueError(f"{name} must be two or more decreasing levels, got {values!r}")
    return sigmas


def named_schedule(schedule: str | Callable[..., Array]) -> Callable[..., Array]:
    """A sigma schedule by name ("karras", "exponential", "polyexponential", "vp", "ve", "iddpm", "beta", "laplace") or
    any callable (n, sigma_min, sigma_max) -> [n + 1]."""
    known = {
        "karras": schedules.karras,
        "exponential": schedules.exponential,
        "polyexponential": schedules.polyexponential,
        "vp": schedules.vp_limits,
        "ve": schedules.ve,
        "iddpm": schedules.iddpm,
        "beta": schedules.beta_quantiles,
        "laplace": schedules.laplace,
    }
    if callable(schedule):
        return schedule
    if schedule not in known:
        raise ValueError(f"schedule must be one of {', '.join(known)} or a callable, got {schedule!r}")
    return known[schedule]


def get_process(process: str | Process) -> Process:
    """A process by name ("edm", "ve", "vp" = linear betas, "vp_cosine", "flow") or as it is."""
    from .continuous import Flow

    known: dict[str, Callable[[], Process]] = {
        "edm": EDM, "ve": VE, "vp": VP.linear, "vp_cosine": VP.cosine, "flow": Flow,
    }  # fmt: skip
    if isinstance(process, Process):
        return process
    if process not in known:
        raise ValueError(f"process must be a fastdiff.Process or one of {', '.join(known)}, got {process!r}")
    return known[process]()


class GaussianTables:
    """The posterior q(x_(i-1) | x_i, x_0) of a discrete chain, by guided-diffusion's names; index 0 is the cleanest.

    Ho et al. 2020, Eqs. 6-7. `posterior_log_variance_clipped` takes entry 1 at index 0, where the variance is 0.

    Args:
        alphas_cumprod: [T'] decreasing, T' >= 1.
    """

    def __init__(self, alphas_cumprod: Sequence[float] | Array):
        abar = self.alphas_cumprod = np.asarray(alphas_cumprod, dtype=np.float64)
        prev = self.alphas_cumprod_prev = np.append(1.0, abar[:-1])
        self.alphas_cumprod_next = np.append(abar[1:], 0.0)
        beta = self.betas = 1.0 - abar / prev
        self.sqrt_alphas_cumprod = np.sqrt(abar)
        self.sqrt_one_minus_alphas_cumprod = np.sqrt(1.0 - abar)
        self.log_one_minus_alphas_cumprod = np.log(1.0 - abar)
        with np.errstate(divide="ignore"):  # infinite at a zero terminal SNR, where eps says nothing of x_0
            self.sqrt_recip_alphas_cumprod = np.sqrt(1.0 / abar)
            self.sqrt_recipm1_alphas_cumprod = np.sqrt(1.0 / abar - 1.0)
        self.posterior_variance = beta * (1.0 - prev) / (1.0 - abar)
        second = self.posterior_variance[1:2] if len(abar) > 1 else beta[:1]
        self.posterior_log_variance_clipped = np.log(np.append(second, self.posterior_variance[1:]))
        self.posterior_mean_coef1 = beta * np.sqrt(prev) / (1.0 - abar)
        self.posterior_mean_coef2 = (1.0 - prev) * np.sqrt(1.0 - beta) / (1.0 - abar)
