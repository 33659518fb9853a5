"""Annealed Langevin dynamics of noise-conditional score networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

from ..denoiser import Denoiser, State
from ..errors import check_count, check_positive
from ..process import Levels
from .adams import require_signal
from .registry import register


@register(
    order=None,
    evaluations="steps_each, 1 more in the last",
    stochastic=True,
    source="Song & Ermon 2019, Algorithm 1; 2020, Algorithm 1 (NCSNv2)",
)
def ald(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[..., State],
    *,
    step_size: float = 6.2e-6,
    steps_each: int = 5,
    final_denoise: bool = True,
) -> Iterator[State]:
    """u' = u + e s(u) + sqrt(2 e) z at each level, `steps_each` times, with e = step_size (sigma / sigma_last)^2.

    In VE terms (u = x / alpha). The defaults are NCSNv2's for CIFAR-10 (50 to 0.01 in 232 levels); the first version
    has 100 steps of 2e-5 at each of 10 levels from 1 to 0.01 and no denoising. Its code keeps states of before an
    update, clamped to [0, 1], so it loses the last update; here nothing is clamped or lost. Both start from uniform
    noise (`x_init`).

    Args:
        final_denoise: end with x_0 = u + sigma_last^2 s(u), one evaluation more.
    """
    steps_each, step_size = check_count("steps_each", steps_each), check_positive("step_size", step_size)
    require_signal(levels, "ald")
    last = min(level.sigma_ve for level in levels if level.sigma > 0)
    for level, following in pairwise(levels):
        e = step_size * (level.sigma_ve / last) ** 2
        for _ in range(steps_each):
            slope = (denoise(x, level) - x / level.alpha) / level.sigma_ve**2
            x = x + level.alpha * (e * slope + math.sqrt(2 * e) * noise())
        clean = final_denoise and following.sigma == 0
        x = following.alpha * (denoise(x, level) if clean else x / level.alpha)
        yield x
