"""DDIM: the deterministic sampler of Song et al. 2021, its stochastic family (eta) and its inversion."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

from ..denoiser import Denoiser, State
from ..process import Level, Levels
from .registry import register

PURE_NOISE = Level(0.0, 1.0, math.nan)


@register(order=1, evaluations="1", stochastic=False, source="Song et al. 2021 (DDIM), Eq. 12")
def ddim(
    denoise: Denoiser, x: State, levels: Levels, noise: Callable[..., State], *, eta: float = 0.0
) -> Iterator[State]:
    """Song et al. 2021, Eqs. 12 and 16; eta = 1 has the variance of DDPM's `fixed_small`.

    eps is always re-derived from the (clipped) x_0, as guided-diffusion does. The last step returns x_0.
    """
    if eta > 1:
        raise ValueError(f"eta must be from 0 (deterministic) to 1 (ancestral), got {eta}")
    for level, following in pairwise(levels):
        x0 = denoise(x, level)
        eps = (x - level.alpha * x0) / level.sigma
        std = eta * following.sigma * math.sqrt(max(0.0, 1 - (following.sigma_ve / level.sigma_ve) ** 2))
        x = following.alpha * x0 + math.sqrt(max(0.0, following.sigma**2 - std**2)) * eps
        if std > 0:
            x = x + std * noise(level, following, eta**2)
        yield x


@register(order=1, evaluations="1", stochastic=False, source="Song et al. 2021 (DDIM), Eq. 14 upwards")
def ddim_inversion(
    denoise: Denoiser, x: State, levels: Levels, noise: Callable[..., State], *, terminal: bool = False
) -> Iterator[State]:
    """From data to the noise that `ddim` would turn into it: the same ODE run towards more noise.

    The state starts as data at the cleanest level and ends at the noisiest one, where sampling starts. `terminal=True`
    takes one step more, to alpha = 0 (the predicted eps itself), as guided-diffusion's ddim_reverse_sample_loop does.
    """
    noisy = [level for level in levels if level.sigma > 0]
    upwards = [*reversed(noisy), *([PURE_NOISE] if terminal else [])]
    if len(upwards) < 2:
        raise ValueError("steps must be at least 2 for solver 'ddim_inversion' without terminal=True, got 1")
    for level, noisier in pairwise(upwards):
        x0 = denoise(x, level)
        eps = (x - level.alpha * x0) / level.sigma
        x = noisier.alpha * x0 + noisier.sigma * eps
        yield x
