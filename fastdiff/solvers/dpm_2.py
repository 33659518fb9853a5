"""DPM-Solver-2 as k-diffusion has it: the midpoint method with its midpoint in log sigma, plain and ancestral."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from ..denoiser import Denoiser, State
from ..process import Level, Levels
from ..symbols import Number
from .ancestral import split
from .euler import churn, require_signal
from .registry import register


def midpoint(denoise: Denoiser, x: State, level: Level, end: Number) -> State:
    """u' at noise `end` (VE terms): u' = u + (end - s) d(u_m, m), u_m = u + (m - s) d(u, s), m = sqrt(s end).

    d(u, s) = (u - x_0) / s (Karras et al. 2022, Eq. 1); Lu et al. 2022 (DPM-Solver), Algorithm 1 has the same midpoint
    in lambda = -log s. Euler's step where `end` is 0. A process of a table has the nearest of its levels as m.
    """
    u, s = x / level.alpha, level.sigma_ve
    d = (u - denoise(x, level)) / s
    if end > 0:
        middle = denoise.levels.between(np.sqrt(s * end))
        m = middle.sigma_ve
        u_m = u + (m - s) * d
        d = (u_m - denoise(middle.alpha * u_m, middle)) / m
    return u + (end - s) * d


@register(order=2, evaluations="2", stochastic=False, source="k-diffusion's sample_dpm_2, after Lu et al. 2022a")
def dpm_2(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[..., State],
    *,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
) -> Iterator[State]:
    """Churn as in EDM, then the step of `midpoint`; 2N - 1 evaluations for N steps that end at 0."""
    for level, following in pairwise(levels):
        x_hat, hat = churn(denoise, x, level, noise, S_churn, S_min, S_max, S_noise)
        x = following.alpha * midpoint(denoise, x_hat, hat, following.sigma_ve)
        yield x


@register(order=2, evaluations="2", stochastic=True, source="k-diffusion's sample_dpm_2_ancestral")
def dpm_2_ancestral(
    denoise: Denoiser, x: State, levels: Levels, noise: Callable[..., State], *, eta: float = 1.0, S_noise: float = 1.0
) -> Iterator[State]:
    """The step of `midpoint` down to `down`, then noise of `up` (`ancestral.split`).

    Where eta > 1 makes `down` 0, k-diffusion leaves the noise out and is then at another level than it says; not here.
    """
    for level, following in pairwise(levels):
        require_signal(level)
        down, up = split(level.sigma_ve, following.sigma_ve, eta)
        x = following.alpha * midpoint(denoise, x, level, down)
        if up * S_noise > 0:
            x = x + (following.alpha * S_noise * up) * noise(level, following, eta**2)
        yield x
