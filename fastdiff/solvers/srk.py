"""Stochastic Runge-Kutta methods for the reverse SDE, in coordinates where its noise is constant.

With u = x / alpha and s = sigma / alpha, the reverse SDE du = 2 (u - x_0) ds / s + sqrt(2 s) dW reads, for y = u / s^2
and the time r = 1 / s^2, which grows,

    dy = x_0(y, r) dr + dW_r

(El Alaoui & Montanari 2022 call it stochastic localisation): additive noise, no stiff term, and nothing singular but
the end r = inf, where u = x_0. Euler-Maruyama's step in it is DDPM's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

from ..denoiser import Denoiser, State
from ..process import Level, Levels
from .registry import register


def localised(level: Level) -> tuple[float, float]:
    """(r, the x of y = 1) at a noisy level: x = alpha s^2 y."""
    s = level.sigma_ve
    if s == math.inf:
        raise ValueError("process must have alpha > 0 at every level for stochastic Runge-Kutta solvers")
    return s**-2, level.alpha * s**2


@register(order=2, evaluations="2, 1 in the last", stochastic=True, source="Kloeden & Platen 1992, Eq. 15.1.3")
def srk_heun(denoise: Denoiser, x: State, levels: Levels, noise: Callable[..., State]) -> Iterator[State]:
    """Y' = Y + h (f(Y) + f(Y + h f(Y) + dW)) / 2 + dW: strong order 1, weak order 2 for additive noise.

    Both stages see one increment dW, one draw; f is x_0. The last step, to clean data, gives x_0.
    """
    for level, following in pairwise(levels):
        f = denoise(x, level)
        if following.sigma == 0:
            x = f
        elif level != following:
            (r, scale), (r_end, scale_end) = localised(level), localised(following)
            h, y = r_end - r, x / scale
            dW = math.sqrt(h) * noise(level, following)
            f_end = denoise(scale_end * (y + h * f + dW), following)
            x = scale_end * (y + h * (f + f_end) / 2 + dW)
        yield x


@register(order=2, evaluations="2, 1 in the last", stochastic=True, source="Roessler 2010, SRA1")
def sra1(denoise: Denoiser, x: State, levels: Levels, noise: Callable[..., State]) -> Iterator[State]:
    """Y' = Y + h ((1 - 1 / 2c) f(Y) + f(Y + c h f(Y) + 2 c dZ / h, r + c h) / 2c) + dW, c = 3/4: strong order 1.5.

    dW is the increment of the step and dZ the integral of W - W_r over it: two draws, those of the step's halves in r,
    which both stages share. Where a process has no level at r + 3/4 h, c is the nearest one's. The last step, to clean
    data, gives x_0.
    """
    for level, following in pairwise(levels):
        f = denoise(x, level)
        if following.sigma == 0:
            x = f
        elif level != following:
            (r, scale), (r_end, scale_end) = localised(level), localised(following)
            h, y = r_end - r, x / scale
            z = noise(level, middle := Level(1.0, (r + h / 2) ** -0.5, math.nan))
            later = noise(middle, following)
            dW = math.sqrt(h / 2) * (z + later)
            dZ = h / 2 * dW + h * math.sqrt(h / 24) * (z - later)
            nearest = levels.between((r + 3 / 4 * h) ** -0.5)
            stage = nearest if nearest.sigma_ve < level.sigma_ve else following
            r_stage, scale_stage = localised(stage)
            c = (r_stage - r) / h
            f_stage = denoise(scale_stage * (y + c * h * f + 2 * c / h * dZ), stage)
            x = scale_end * (y + h * ((1 - 0.5 / c) * f + 0.5 / c * f_stage) + dW)
        yield x
