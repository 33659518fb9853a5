"""The time-shift sampler of Li et al. 2024, "Alleviating Exposure Bias in Diffusion Models through Sampling with
Shifted Time Steps": every sample goes on from the time that its own variance says it is at.

The published rule is the default. The two official codes do something else each; both are here as rules of their own,
without what makes them fail (see `TimeShift`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..denoiser import Denoiser, State
from ..engine import flat
from ..errors import check_choice, check_count
from ..ops import native
from ..prediction import PreviousX
from ..process import CLEAN, VP, Level, Levels
from .registry import register

RULES = ("paper", "ts_dpm", "ts_adm")


def variance(x: Tensor) -> Tensor:
    """The unbiased variance over the elements of every sample of x [B, ...], float64 [B]; x itself is not copied."""
    rows = flat(x)
    n = rows.shape[1]
    if n < 2:
        raise ValueError(f"a time shift needs samples of at least 2 elements, got a state of shape {list(x.shape)}")
    squares = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square()
    return (squares - rows.sum(1, dtype=torch.float64).square() / n) / (n - 1)


@dataclass(frozen=True)
class NearestVariance:
    """argmin over k of |var(x_b) - variances[k]|: int64 [B]."""

    def __call__(self, x: Tensor, variances: Tensor) -> Tensor:
        return (variance(x)[:, None] - variances.double()).abs().argmin(1)

    def small(self, x: Tensor, variances: list[float]) -> list[int] | None:
        """The same as a list, if the compiled part can do it."""
        nearest = native.host_function("nearest_variance")
        return None if nearest is None else nearest(x, variances)


def with_variance(x: Tensor, wanted: Tensor) -> Tensor:
    """Every sample of x [B, ...] scaled to a variance [B] over its elements."""
    factor = (wanted.double() / variance(x)).sqrt()
    return x * factor.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


class Step(NamedTuple):
    """A step from `here` to `there`; `middle` is half-way in time. The samples may have chosen these levels."""

    here: Level
    middle: Level
    there: Level


class TimeShift:
    """Between which levels the steps of a run go.

    Args:
        window: w, in the process's own steps: a sample chooses among times up to w // 2 away. 0 is no shift.
        cutoff: t_c; no shift at this time and below, where the data's own variance shows in x.
        rule: where var(x) leads in step n, from time t = t_n to j = t_(n+1) (j = -1: clean data), for n >= 1.
            "paper" (Algorithm 3): if t_(n-1) > t_c, x is taken to be at the time around t with 1 - alpha_bar nearest
            to var(x): its alpha and sigma, and what the model is told, are those of that time.
            "ts_dpm" (TS-DPM's PNM solver): if j > t_c, the step goes to the time around j with 1 - alpha_bar nearest
            to the variance that x has at t. Its last step ends at time 0, and `ts_dpm_timesteps` are its grid.
            "ts_adm" (TS-DPM-ADM): if t > t_c, with s the time around t for which alpha_bar[T - 1 - s] is nearest to
            var(x), the step goes to s - 1 - T // (N - 1).
        normalize_variance: before every step, each sample is scaled to the variance 1 - alpha_bar of time t.

    A window ends where the process does, and a target below 0 is clean data; the official codes fail there (an
    AttributeError, an index that wraps around to pure noise).

    Raises:
        ValueError: an argument that cannot be used, a process that is not a `VP`, or the prediction "previous_x".
    """

    def __init__(
        self, denoise: Denoiser, levels: Levels, window: int, cutoff: float, rule: str, normalize_variance: bool
    ):
        process = levels.process
        if not isinstance(process, VP):
            raise ValueError(f"process must be a VP, which has timesteps to shift, got {type(process).__name__}")
        if isinstance(denoise.prediction, PreviousX):
            raise ValueError('prediction must have a meaning at every timestep for a time shift, got "previous_x"')
        self._denoise, self._process, self._levels = denoise, process, list(levels)
        self._window, self._half, self._cutoff = window, check_count("window", window, 0) // 2, cutoff
        self._rule, self._normalize = check_choice("rule", rule, RULES), normalize_variance
        self._times = [*(process.step_of(level) for level in levels[:-1]), -1]
        if rule == "ts_dpm":
            if self._times[-2] == 0:
                raise ValueError("timesteps must be above 0 for rule 'ts_dpm', which ends there; see ts_dpm_timesteps")
            self._levels[-1], self._times[-1] = process.level(0), 0

    def __call__(self, x: State, n: int) -> tuple[State, Step]:
        """The state at the beginning of step n, and the step."""
        if self._normalize:
            x = self._denoise.engine.apply(with_variance, x, told=(self._levels[n].sigma ** 2,))
        moves, variances = self.moves(n)
        steps = [self._step(n, t, j) for t, j in moves]
        if len(steps) == 1:
            return x, steps[0]
        choice = self._denoise.choose(NearestVariance(), [x], variances)
        return x, Step(*(same[0] if len(set(same)) == 1 else choice.level(same) for same in zip(*steps)))

    def moves(self, n: int) -> tuple[list[tuple[int, int]], list[float]]:
        """Where step n may begin and end, and the variances of x that say which it is."""
        t, j, abar, T = self._times[n], self._times[n + 1], self._process.alphas_cumprod, self._process.T
        compared = {"paper": self._times[n - 1], "ts_dpm": j, "ts_adm": t}[self._rule]
        if n == 0 or self._half == 0 or compared <= self._cutoff:
            return [(t, j)], []
        if self._rule == "paper":
            times = self._around(t, t + self._half)
            return [(s, j) for s in times], [1 - abar[s] for s in times]
        if self._rule == "ts_dpm":
            times = self._around(j, j + self._half)
            return [(t, s) for s in times], [1 - abar[s] for s in times]
        times = self._around(t, t + self._half if t > self._half else self._window)
        stride = T // (len(self._levels) - 2)
        return [(t, max(-1, s - 1 - stride)) for s in times], [abar[T - 1 - s] for s in times]

    def _around(self, t: int, last: int) -> range:
        return range(max(0, t - self._half), min(self._process.T - 1, last) + 1)

    def _step(self, n: int, t: int, j: int) -> Step:
        return Step(self._level(n, t), self._process.level((t + max(0, j)) / 2), self._level(n + 1, j))

    def _level(self, n: int, t: int) -> Level:
        """The level of time t; that of the run itself, where t is its time n."""
        if t == self._times[n]:
            return self._levels[n]
        return CLEAN if t < 0 else self._process.level(t)


def ts_dpm_timesteps(steps: int, T: int = 1000) -> list[int]:
    """The grid of TS-DPM's PNM solver, noisiest first: 1 + k (T // steps) for all k but the largest, so that T = 1000
    and 10 steps give 801, 701, ..., 1; with rule "ts_dpm" each is where a step begins.

    Args:
        steps: from 2 to T.
    """
    stride = T // check_count("steps", steps, 2)
    if stride == 0:
        raise ValueError(f"steps must be at most T={T}, got {steps}")
    return [*range(1, T + 1, stride)][-2::-1]


@register(order=1, evaluations="1", stochastic=False, source="Li et al. 2024 (TS-DDIM), Algorithm 3")
def time_shift(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[..., State],
    *,
    window: int = 40,
    cutoff: float = 300,
    eta: float = 0.0,
    rule: str = "paper",
    normalize_variance: bool = False,
) -> Iterator[State]:
    """DDIM (Song et al. 2021, Eqs. 12 and 16) with the time shift of Li et al. 2024; the options are `TimeShift`'s.

    The fewer the steps, the more a shift changes: a better Frechet distance and a lower recall, on the shipped digits.
    A step that a shift sends to more noise than it comes from adds none (eta > 0; the official codes make NaN of it).
    """
    if eta > 1:
        raise ValueError(f"eta must be from 0 (deterministic) to 1 (ancestral), got {eta}")
    shift = TimeShift(denoise, levels, window, cutoff, rule, normalize_variance)
    for n in range(levels.steps):
        x, (here, _, there) = shift(x, n)
        x0 = denoise(x, here)
        eps = (x - here.alpha * x0) / here.sigma
        std = eta * there.sigma * np.sqrt(np.maximum(0.0, 1 - (there.sigma_ve / here.sigma_ve) ** 2))
        x = there.alpha * x0 + np.sqrt(there.sigma**2 - std**2) * eps
        if eta > 0 and there is not CLEAN:
            x = x + std * noise(here, there, eta**2)
        yield x
