"""Heun's second-order method with churn: EDM's stochastic sampler."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

from ..denoiser import Denoiser, State
from ..process import Levels
from .euler import churn
from .registry import register


@register(order=2, evaluations="2, 1 in the last", stochastic=False, source="Karras et al. 2022 (EDM), Algorithm 2")
def heun(
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
    """Karras et al. 2022, Algorithm 2, in VE terms (u = x / alpha, s = sigma / alpha); 2N - 1 evaluations for N steps.

    The trial point is evaluated but never written to memory: only the network's input is.
    """
    for level, following in pairwise(levels):
        x_hat, hat = churn(denoise, x, level, noise, S_churn, S_min, S_max, S_noise)
        x0 = denoise(x_hat, hat)
        u, s, t = x_hat / hat.alpha, hat.sigma_ve, following.sigma_ve
        d = (u - x0) / s
        v = u + (t - s) * d
        if t > 0:
            d_prime = (v - denoise(following.alpha * v, following)) / t
            v = u + (t - s) * (0.5 * d + 0.5 * d_prime)
        x = following.alpha * v
        yield x
