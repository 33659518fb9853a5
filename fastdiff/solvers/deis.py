"""DEIS in log rho: the exponential integrator of the predicted noise, with a polynomial through its last values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

from ..denoiser import Denoiser, State
from ..errors import check_count
from ..process import Level, Levels
from .adams import require_signal
from .exponential import Exponential, predicted
from .registry import register


@register(
    order=3, evaluations="1", stochastic=False, source="Zhang & Chen 2023 (DEIS), Eqs. 14-15 in log rho; diffusers"
)
def deis(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[..., State],
    *,
    order: int = 3,
    lower_order_final: bool = False,
) -> Iterator[State]:
    """du/drho = eps for u = x / alpha, rho = sigma / alpha: u' = u + the integral over [rho, rho'] of the polynomial in
    log rho through the last `order` values of eps (in rho itself: `lms`). A step to clean data is DDIM's, x' = x_0.

    Args:
        lower_order_final: the last steps take orders ..., 2, 1; diffusers does so where there are fewer than 15.
    """
    check_count("order", order)
    require_signal(levels, "deis")
    past: list[tuple[Level, State]] = []
    for n, (level, following) in enumerate(pairwise(levels)):
        eps = denoise.store(predicted(denoise, x, level, "eps"))
        past = [(level, eps), *(old for old in past if old[0].sigma_ve != level.sigma_ve)][:order]
        step = Exponential(level, following, "eps")
        used = past[: levels.steps - n] if lower_order_final else past
        if step.h in (0.0, math.inf):
            used = past[:1]
        nodes = [0.0, *(step.node(old) for old, _ in used[1:])]
        x = step(x, [eps for _, eps in used], nodes)
        yield x
