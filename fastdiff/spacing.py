"""Which times of a discrete process a run visits, and the times of noise levels between its steps: all the spacings of
diffusers with their off-by-ones. Everything is NumPy on the host; times count from 0, the cleanest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import check_choice, check_count

SPACINGS = ("leading", "linspace", "trailing")


def spaced_timesteps(
    T: int, n: int, spacing: str = "leading", offset: int = 0, *, extra: bool = False, rounded: bool = True
) -> NDArray[Any]:
    """`n` of the times 0 .. T - 1, noisiest first (Lin et al. 2024, "Common diffusion noise schedules and sample steps
    are flawed", Table 2).

    leading: 0, s, 2s, ... with the stride s = T // n, so the noisiest is far from T - 1; plus `offset`.
    linspace: evenly from 0 to T - 1, both kept.
    trailing: T, T - T/n, ..., rounded half to even, minus 1.

    Args:
        T, n: at least 1, n <= T.
        offset: added to leading times (Stable Diffusion's steps_offset = 1).
        extra: space n + 1 times and leave out the cleanest, where trailing stays as it is (DPM-Solver, UniPC, DEIS).
        rounded: False keeps the fractions of linspace (Euler, Heun, LMS, KDPM2).

    Returns:
        [n] decreasing times: int64 (for `Sampler(timesteps=...)` with a VP), or float64 with fractions.
    """
    check_choice("spacing", spacing, SPACINGS)
    points = check_count("n", n) + extra
    limit = check_count("T", T) - (extra if spacing == "leading" else 0)
    if n > limit:
        raise ValueError(f"n must be at most {limit} for {spacing} times of T={T}, got {n}")
    if spacing == "trailing":
        times = np.arange(T, 0, -T / n, dtype=np.float64)[:n].round() - 1.0
    elif spacing == "leading":
        times = (np.arange(points) * (T // points) + check_count("offset", offset, 0))[::-1][:n]
    else:
        times = np.linspace(0, T - 1, points)[::-1][:n]
        if not rounded:
            return times
    if times[0] > T - 1:
        raise ValueError(f"offset must leave the times below T={T}, got {offset} for {n} leading times")
    return times.round().astype(np.int64)


def time_at_sigma(sigma: ArrayLike, table: ArrayLike) -> NDArray[Any]:
    """The fractional times at which a process has noise levels `sigma`, by interpolation in log sigma (k-diffusion's
    sigma_to_t); levels outside the table get its first or last time.

    Args:
        sigma: levels in VE terms, any shape, > 0.
        table: [T] levels of the process in VE terms, increasing; between its last level at or below sigma and the next
            one, where it is not (diffusers' stand-in for an infinite last level).
    """
    logs = np.log(np.asarray(table, dtype=np.float64))
    wanted = np.log(np.maximum(np.asarray(sigma, dtype=np.float64), 1e-10))
    reached = wanted[..., None] >= logs
    below = np.where(reached.any(-1), len(logs) - 1 - reached[..., ::-1].argmax(-1), 0).clip(max=len(logs) - 2)
    w = ((logs[below] - wanted) / (logs[below] - logs[below + 1])).clip(0, 1)
    return (1 - w) * below + w * (below + 1)
