"""Data whose flow and marginals are known, and runs of a solver between two noise levels of them.

Everything is in VE terms (u = x / alpha, s = sigma / alpha), where the probability flow of one data set is the same on
every process. A state [B, n] is B n numbers, each of them a run of its own; one sample [1, n] is the quickest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastdiff
from fastdiff.continuous import SDEProcess
from fastdiff.process import Level
from fastdiff.sde import VPSDE

FIRST, LAST = 4.0, 0.3
"""The noise levels between which solvers on sigmas are measured."""


class Mixture:
    """Data sum_k p_k N(m_k, s_k^2) in one dimension."""

    def __init__(
        self, p: Sequence[float] = (0.4, 0.6), m: Sequence[float] = (-0.8, 0.6), s: Sequence[float] = (0.6, 0.4)
    ):
        self.p, self.m, std = (torch.tensor(values, dtype=torch.float64) for values in (p, m, s))
        self.variance = std.square()

    def denoise(self, u: Tensor, s: Tensor | float) -> Tensor:
        """E[x_0 | u] for u [B, n] at noise s: one number, or [B]."""
        v = self.variance + (s.reshape(-1, 1, 1) if isinstance(s, Tensor) else s) ** 2
        d = u[..., None] - self.m
        r = (self.p.log() - v.log() / 2 - d**2 / (2 * v)).softmax(-1)
        return (r * (self.m + self.variance / v * d)).sum(-1)

    def quantile_of(self, u: Tensor, s: float) -> Tensor:
        """P(u' < u) at noise s."""
        return (self.p * torch.special.ndtr((u[..., None] - self.m) / (self.variance + s**2).sqrt())).sum(-1)

    def flow(self, u: Tensor, start: float, end: float) -> Tensor:
        """The exact probability flow from noise `start` to `end`: in one dimension it keeps quantiles."""
        wanted, low, high = self.quantile_of(u, start), torch.full_like(u, -99.0), torch.full_like(u, 99.0)
        for _ in range(64):
            middle = (low + high) / 2
            below = self.quantile_of(middle, end) < wanted
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


@dataclass(frozen=True)
class Run:
    """The steps of a sampler between its first level and its last noisy one; `upwards`: the other way."""

    sampler: fastdiff.Sampler
    upwards: bool = False

    @property
    def ends(self) -> tuple[Level, Level]:
        """Where it starts and ends."""
        first, last = self.sampler.levels[0], self.sampler.levels[-2]
        return (last, first) if self.upwards else (first, last)

    def __call__(self, u: Tensor, noise: Callable[[int, int], Tensor] | None = None) -> Tensor:
        """From states u [B, n] in VE terms to those at the end."""
        start, end = self.ends
        states = self.sampler(u.shape, x_init=start.alpha * u, noise=noise, return_trajectory=True)[1]
        return states[-1 if self.upwards else -2] / end.alpha


# --- where solvers run ------------------------------------------------------------------------------------------------


def sigmas(denoise: Callable[..., Tensor], steps: int, upwards: bool = False, **options: Any) -> Run:
    """On noise levels; the steps that are first (`upwards`: towards more noise) are short: multistep solvers give them
    lower orders."""
    t = np.linspace(0, 1, steps + 1)
    bent = 1 - (1 - t) ** 2 if upwards else t**2
    grid = (FIRST**0.2 + bent * (LAST**0.2 - FIRST**0.2)) ** 5
    return _run(denoise, process="edm", sigmas=[*grid.tolist(), 0.0], **options)


def chain(denoise: Callable[..., Tensor], steps: int, **options: Any) -> Run:
    """On equally spaced steps of a DDPM chain, `steps` a divisor of 1280."""
    process = fastdiff.VP.linear(3200)
    grid = range(1600, 319, -1280 // steps)
    return _run(_at_level(denoise, process.level), process=process, timesteps=list(grid), **options)


def times(denoise: Callable[..., Tensor], steps: int, **options: Any) -> Run:
    """On equally spaced times of the variance-preserving SDE."""
    process = SDEProcess(VPSDE())
    model = _at_level(denoise, lambda label: process.level(label / 999))
    return _run(model, process=process, timesteps=np.linspace(0.5, 0.1, steps + 1), **options)


def _at_level(denoise: Callable[..., Tensor], level_of: Callable[[float], Level]) -> Callable[..., Tensor]:
    def model(x: Tensor, t: Tensor) -> Tensor:
        level = level_of(t[0].item())
        return denoise(x / level.alpha, level.sigma_ve)

    return model


def _run(model: Callable[..., Tensor], solver: str, **options: Any) -> Run:
    options = {"prediction": "x0", "dtype": torch.float64, "compiled": False, "solver": solver, **options}
    return Run(fastdiff.Sampler(model, **options), solver == "ddim_inversion")


# --- moments ----------------------------------------------------------------------------------------------------------

Interval = tuple[Level | None, Level | None, float]


def intervals(sampler: fastdiff.Sampler) -> list[Interval]:
    """What a solver says of each of its draws: noise(start, end, eta)."""
    told: list[Interval] = []
    solver: Any = sampler.solver

    def spy(denoise: Any, x: Any, levels: Any, noise: Any, **options: Any) -> Iterator[Any]:
        def told_noise(start: Level | None = None, end: Level | None = None, eta: float = 1.0) -> Any:
            told.append((start, end, eta))
            return noise(start, end, eta)

        return solver(denoise, x, levels, told_noise, **options)

    spied = sampler.replace(solver=spy)
    told.clear()  # making it may have traced it
    spied.trace(sampler.levels)
    return told


def brownian_correlations(told: Sequence[Interval]) -> np.ndarray:
    """[n, n] of draws that are standardised increments of Brownian paths over their intervals: a path in the time
    s^(-2 eta) for every eta."""
    etas = np.array([eta for *_, eta in told])
    ends = [[level.sigma_ve ** (-2 * eta) for level in (start, end) if level] for start, end, eta in told]
    low, high = np.sort(ends).T
    overlap = np.minimum.outer(high, high) - np.maximum.outer(low, low)
    lengths = high - low
    return np.equal.outer(etas, etas) * overlap.clip(0) / np.sqrt(np.multiply.outer(lengths, lengths))


def moments(run: Run, mean: float, std: float, brownian: bool = False) -> tuple[float, float]:
    """Exact mean and standard deviation, in VE terms, at the end of a run that starts from N(mean, std^2).

    With a model that is linear in the state the end is linear in the start and in the draws; their factors are read
    from runs with one of them at a time.

    Args:
        brownian: draws are increments of one Brownian path instead of independent.
    """
    told = intervals(run.sampler)
    start = torch.zeros(1, len(told) + 2, dtype=torch.float64)
    start[0, 1] = 1.0

    def one_at_a_time(draw: int, step: int) -> Tensor:
        z = torch.zeros_like(start)
        z[0, draw + 1] = 1.0
        return z

    end = run(start, one_at_a_time)[0].numpy()
    of_start, of_noise = end[1] - end[0], end[2:] - end[0]
    correlations = brownian_correlations(told) if brownian else np.eye(len(told))
    return float(end[0] + of_start * mean), math.sqrt((of_start * std) ** 2 + of_noise @ correlations @ of_noise)
