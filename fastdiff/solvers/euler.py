"""Euler's method on the probability-flow ODE, with EDM's churn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

from ..denoiser import Denoiser, State
from ..process import Level, Levels

SQRT2_MINUS_1 = math.sqrt(2.0) - 1.0


def churn(
    x: State,
    level: Level,
    levels: Levels,
    noise: Callable[[], State],
    S_churn: float,
    S_min: float,
    S_max: float,
    S_noise: float,
) -> tuple[State, Level]:
    """Raise the noise from sigma to sigma_hat = sigma (1 + gamma): Karras et al. 2022, Algorithm 2, lines 4-6.

    gamma = min(S_churn / N, sqrt(2) - 1) for S_min <= sigma <= S_max, else 0, which draws nothing.
    """
    s = level.sigma_ve
    gamma = min(S_churn / levels.steps, SQRT2_MINUS_1) if S_min <= s <= S_max else 0.0
    hat = levels.at_sigma(s * (1 + gamma)) if gamma > 0 else level
    added = hat.sigma_ve**2 - s**2
    if added <= 0:
        return x, level
    return hat.alpha * (x / level.alpha + (math.sqrt(added) * S_noise) * noise()), hat


def euler(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[[], State],
    *,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
) -> Iterator[State]:
    """du/ds = (u - x_0) / s for u = x / alpha, s = sigma / alpha (Karras et al. 2022, Eq. 1); first order.

    At S_churn = 0 this is DDIM with eta = 0 on every process.
    """
    for level, following in pairwise(levels):
        x_hat, hat = churn(x, level, levels, noise, S_churn, S_min, S_max, S_noise)
        x0 = denoise(x_hat, hat)
        u, s, t = x_hat / hat.alpha, hat.sigma_ve, following.sigma_ve
        d = (u - x0) / s
        x = following.alpha * (u + (t - s) * d)
        yield x
