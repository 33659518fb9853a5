"""Ancestral steps: along the probability flow to less noise than the next level has, and fresh noise for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from ..denoiser import Denoiser, State
from ..process import Levels
from ..symbols import Number
from .registry import register


def split(start: Number, end: Number, eta: float) -> tuple[Number, Number]:
    """(down, up) with down^2 + up^2 = end^2: a step goes down to the first and adds the second as noise, in VE terms.

    up = eta end sqrt(1 - end^2 / start^2), at most `end`; for eta = 1 it is the posterior's (Song et al. 2021, VE-SDE,
    Eq. 47; k-diffusion's get_ancestral_step). Small steps are those of the SDE whose noise is a Brownian motion in
    sigma^(-2 eta^2): the third argument of noise() is eta^2. Levels may be chosen per sample, and `start` inf.
    """
    r = end / start
    down = end * np.sqrt(np.maximum((1 - eta**2) + (eta * r) ** 2, 0.0))
    up = end * np.sqrt(np.minimum(eta**2 * ((1 - r) * (1 + r)), 1.0))
    return down, up


@register(order=1, evaluations="1", stochastic=True, source="Song et al. 2021 (VE-SDE), Eq. 47; k-diffusion")
def euler_ancestral(
    denoise: Denoiser, x: State, levels: Levels, noise: Callable[..., State], *, eta: float = 1.0, S_noise: float = 1.0
) -> Iterator[State]:
    """Euler's step of the probability flow down to `down`, then noise of `up` (`split`); eta = 0 is `euler`.

    In VE terms u' = (down / s) u + (1 - down / s) x_0 + up z, which has a limit at pure noise (s = inf), too.
    """
    for level, following in pairwise(levels):
        x0 = denoise(x, level)
        down, up = split(level.sigma_ve, following.sigma_ve, eta)
        x = following.alpha * ((down / level.sigma) * x + (1 - down / level.sigma_ve) * x0)
        if up * S_noise > 0:
            x = x + (following.alpha * S_noise * up) * noise(level, following, eta**2)
        yield x
