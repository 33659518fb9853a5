"""DPM-Solver++ with fresh noise in every step, after k-diffusion: 2S ancestral and SDE."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

from ..denoiser import Denoiser, State
from ..process import Level, Levels
from ..symbols import Number
from .ancestral import split
from .exponential import Exponential
from .registry import register
from .singlestep import advance, between, stages


def lowered(level: Level, sigma_ve: Number) -> Level:
    """The alpha of a level with another noise: where a step goes before fresh noise takes it to the level."""
    return Level(level.alpha, level.alpha * sigma_ve, math.nan)


@register(order=2, evaluations="2", stochastic=True, source="Lu et al. 2022b, Algorithm 1; ancestral in k-diffusion")
def dpmpp_2s_ancestral(
    denoise: Denoiser, x: State, levels: Levels, noise: Callable[..., State], *, eta: float = 1.0, S_noise: float = 1.0
) -> Iterator[State]:
    """DPM-Solver++(2S), its inner point halfway in lambda, down to `down`, then noise of `up` (`ancestral.split`).

    A step to or from clean data or pure noise, or with `down` = 0, takes one evaluation.
    """
    for level, following in pairwise(levels):
        down, up = split(level.sigma_ve, following.sigma_ve, eta)
        step = Exponential(level, lowered(following, down))
        places = between(levels, step, [0.5]) if step.smooth else []
        values = stages(denoise, x, level, places, "x0")
        x = advance(step, x, values, [0.0, *(theta for theta, _ in places)])
        if up * S_noise > 0:
            x = x + (following.alpha * S_noise * up) * noise(level, following, eta**2)
        yield x


@register(order=1, evaluations="2", stochastic=True, source="Lu et al. 2022b (DPM-Solver++), as SDE in k-diffusion")
def dpmpp_sde(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[..., State],
    *,
    eta: float = 1.0,
    S_noise: float = 1.0,
    r: float = 0.5,
) -> Iterator[State]:
    """Two ancestral steps from the start of each: to the level at theta = r (in lambda), and to the next one.

    D' = (1 - 1 / (2 r)) D + 1 / (2 r) D_r takes the second, with D_r at the first, noisy point. The draws of a step are
    for intervals that overlap: independent as in k-diffusion, or with Sampler(noise="brownian") as they must be.
    """
    if not 0 < r <= 1:
        raise ValueError(f"r must be above 0 and at most 1, got {r}")
    for level, following in pairwise(levels):
        values, nodes = [denoise(x, level)], [0.0]
        down, up = split(level.sigma_ve, following.sigma_ve, eta)
        step = Exponential(level, lowered(following, down))
        if (whole := Exponential(level, following)).smooth:
            ((node, middle),) = between(levels, whole, [r])
            down, up_inner = split(level.sigma_ve, middle.sigma_ve, eta)
            x_inner = Exponential(level, lowered(middle, down))(x, values)
            if up_inner * S_noise > 0:
                x_inner = x_inner + (middle.alpha * S_noise * up_inner) * noise(level, middle, eta**2)
            values, nodes = [*values, denoise(x_inner, middle)], [*nodes, node]
        x = advance(step, x, values, nodes)
        if up * S_noise > 0:
            x = x + (following.alpha * S_noise * up) * noise(level, following, eta**2)
        yield x
