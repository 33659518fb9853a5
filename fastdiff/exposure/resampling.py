"""Errors from a few seed ranges: Student's t, the bootstrap of a minimum, and differences judged on held-out ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["bootstrap_minimum", "held_out_differences", "is_below_zero", "mean_and_error", "student"]

Array = NDArray[np.float64]

_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # 97.5 %, 1 to 10 degrees of freedom
_Z = 1.959964


def student(freedom: int) -> float:
    """The 97.5 % point of Student's t; from 11 degrees of freedom on by its expansion, to .003."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    return _Z + (_Z**3 + _Z) / (4 * freedom) + (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / (96 * freedom**2)


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error; None where there is one value or not all are finite."""
    data = np.asarray(values, dtype=np.float64)
    error = float(data.std(ddof=1)) / math.sqrt(len(data)) if len(data) > 1 and np.isfinite(data).all() else None
    return float(data.mean()), error


def is_below_zero(mean: float, error: float | None, count: int) -> bool | None:
    """Whether a mean of `count` values lies below 0 by Student's t, two-sided at 5 %; None without an error."""
    return None if error is None else mean < 0 and mean < -student(count - 1) * error


def held_out_differences(distances: Array, baseline: int) -> Array:
    """Distance minus the baseline's in every range, each with the candidate that the other ranges choose.

    The minimum of many candidates is too good on the ranges that it was chosen on; here no range judges its own choice.

    Args:
        distances: [candidates, ranges >= 2], inf where a candidate failed.
        baseline: row that is compared with.

    Returns:
        [ranges].
    """
    total = distances.sum(1, keepdims=True)
    finite = np.isfinite(total)
    others = np.where(finite, total, 0.0) - np.where(finite, distances, 0.0)
    choices = np.where(finite, others, np.inf).argmin(0)
    columns = np.arange(distances.shape[1])
    return np.asarray(distances[choices, columns] - distances[baseline])


def bootstrap_minimum(values: Sequence[float], distances: Array, draws: int = 1000, seed: int = 0) -> float | None:
    """Standard error of the position of the minimum, from resampled ranges (the same ones for every candidate).

    Per resample: the lowest candidate, moved to the vertex of the parabola through it and its two neighbours. The
    spread is scaled by sqrt(R / (R - 1)), which makes the bootstrap's error of a mean over R ranges unbiased.

    Args:
        values: positions of the candidates, in any order.
        distances: [candidates, ranges], inf where a candidate failed.

    Returns:
        None for one range.
    """
    ranges = distances.shape[1]
    if ranges < 2:
        return None
    order = np.argsort(values)
    order = order[np.isfinite(distances[order].sum(1))]
    x, y = np.asarray(values, dtype=np.float64)[order], distances[order]
    weights = np.random.default_rng(seed).multinomial(ranges, np.full(ranges, 1 / ranges), draws) / ranges
    minima = [_vertex(x, curve) for curve in weights @ y.T]
    return float(np.std(minima)) * math.sqrt(ranges / (ranges - 1))


def _vertex(x: Array, y: Array) -> float:
    """Where the parabola through the lowest point and its neighbours is lowest; an end of the curve stays itself."""
    i = int(y.argmin())
    if i in (0, len(x) - 1):
        return float(x[i])
    left, right = x[i] - x[i - 1], x[i + 1] - x[i]
    rise, fall = (y[i + 1] - y[i]) / right, (y[i - 1] - y[i]) / left  # both at least 0, so it stays between them
    return float(x[i] + 0.5 * (right * fall - left * rise) / (rise + fall)) if rise + fall > 0 else float(x[i])
