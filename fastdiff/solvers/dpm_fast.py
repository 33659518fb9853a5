"""DPM-Solver-fast: a given number of evaluations, in steps of order 3 as far as they go."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from ..denoiser import Denoiser, State
from ..errors import check_count
from ..process import Level, Levels
from .ancestral import split
from .dpmpp_sde import lowered
from .exponential import Exponential
from .registry import register
from .singlestep import NODES, advance, between, stages


def noisy_ends(levels: Levels, solver: str) -> tuple[Level, Level]:
    """The first level and the last that is not clean, for solvers that choose their own steps between the two.

    Raises:
        ValueError: they are one level, or the first is pure noise.
    """
    first, last = levels[0], [level for level in levels if level.sigma > 0][-1]
    if not math.isfinite(first.sigma_ve):
        raise ValueError(f"levels must begin at alpha > 0 for solver {solver!r}, whose steps are in log(sigma / alpha)")
    if last.sigma_ve == first.sigma_ve:
        raise ValueError(f"levels must have two noisy ones for solver {solver!r}, got one: {first.sigma_ve:.6g}")
    return first, last


def orders_of(evaluations: int) -> list[int]:
    """The orders of the steps that make n evaluations: threes, the rest, and 2 + 1 where there is no rest."""
    threes, rest = divmod(evaluations, 3)
    return [3] * threes + [rest] if rest else [3] * (threes - 1) + [2, 1]


@register(order=None, evaluations="1 to 3", stochastic=False, source="Lu et al. 2022a (DPM-Solver), Section 3.4 (fast)")
def dpm_fast(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[..., State],
    *,
    evaluations: int | None = None,
    eta: float = 0.0,
    S_noise: float = 1.0,
) -> Iterator[State]:
    """Equal steps in lambda from the first level to the last noisy one, of DPM-Solver-3 and at the end of -2 and -1.

    The levels between are not used; `evaluations` is their number if it is left out. Where the levels end in clean
    data, x_0 at the last noisy level is the result, by one evaluation more. With eta > 0 every step goes down to
    `ancestral.split`'s level, but not below the last, and takes the rest in fresh noise (k-diffusion).
    """
    first, last = noisy_ends(levels, "dpm_fast")
    clean = levels[-1].sigma == 0
    orders = orders_of(check_count("evaluations", levels.steps - clean if evaluations is None else evaluations))
    inner = np.geomspace(first.sigma_ve, last.sigma_ve, len(orders) + 1)[1:-1]
    for (level, following), order in zip(pairwise([first, *map(levels.between, inner.tolist()), last]), orders):
        down, end = following.sigma_ve, following.sigma_ve
        if eta > 0:
            down = max(float(split(level.sigma_ve, end, eta)[0]), last.sigma_ve)
        up = math.sqrt(end**2 - down**2)
        step = Exponential(level, lowered(following, down), "eps")
        places = between(levels, step, NODES[order])
        values = stages(denoise, x, level, places, "eps")
        x = advance(step, x, values, [0.0, *(theta for theta, _ in places)])
        if up * S_noise > 0:
            x = x + (following.alpha * S_noise * up) * noise(level, following, eta**2)
        yield x
    if clean:
        x = denoise(x, last)
        yield x
