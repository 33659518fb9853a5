"""Euler's method on the probability-flow ODE, with EDM's churn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from ..denoiser import Denoiser, State
from ..process import Level, Levels
from .registry import register

SQRT2_MINUS_1 = math.sqrt(2.0) - 1.0


def require_signal(level: Level) -> None:
    """Refuse a level of pure noise (alpha = 0), where VE terms are infinite."""
    if level.sigma_ve == math.inf:
        raise ValueError(
            "process must have alpha > 0 at every level for this solver (at alpha = 0, the t = 1 of a flow, VE terms "
            "are infinite); use solver 'ddim', or 'euler_ancestral' for an SDE"
        )


def churn(
    denoise: Denoiser,
    x: State,
    level: Level,
    noise: Callable[..., State],
    S_churn: float,
    S_min: float,
    S_max: float,
    S_noise: float,
) -> tuple[State, Level]:
    """Raise the noise from sigma to sigma_hat = sigma (1 + gamma): Karras et al. 2022, Algorithm 2, lines 4-6.

    gamma = min(S_churn / N, sqrt(2) - 1) for S_min <= sigma <= S_max, else 0, which draws nothing. Samples that a
    discriminator takes for fakes may have a larger S_churn (`guidance.Boosting`).
    """
    require_signal(level)
    s, levels = level.sigma_ve, denoise.levels

    def raised(amount: float) -> Level:
        gamma = min(amount / levels.steps, SQRT2_MINUS_1) if S_min <= s <= S_max else 0.0
        hat = levels.at_sigma(s * (1 + gamma)) if gamma > 0 else level
        return hat if hat.sigma_ve > s else level

    hat, std, boosting = raised(S_churn), S_noise, denoise.boosting(x)
    options = [hat] if boosting is None else [hat, raised(boosting[0].churn)]
    if all(option == level for option in options):
        return x, level
    if boosting is not None:
        choice = boosting[1]()
        hat, std = choice.level(options), choice.number([S_noise, boosting[0].noise])
    return hat.alpha * (x / level.alpha + (np.sqrt(hat.sigma_ve**2 - s**2) * std) * noise()), hat


@register(order=1, evaluations="1", stochastic=False, source="Karras et al. 2022 (EDM), Eq. 1")
def euler(
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
    """du/ds = (u - x_0) / s for u = x / alpha, s = sigma / alpha (Karras et al. 2022, Eq. 1); first order.

    At S_churn = 0 this is DDIM with eta = 0 on every process.
    """
    for level, following in pairwise(levels):
        x_hat, hat = churn(denoise, x, level, noise, S_churn, S_min, S_max, S_noise)
        x0 = denoise(x_hat, hat)
        u, s, t = x_hat / hat.alpha, hat.sigma_ve, following.sigma_ve
        d = (u - x0) / s
        x = following.alpha * (u + (t - s) * d)
        yield x
