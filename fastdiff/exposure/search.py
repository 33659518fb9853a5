"""The lowest point of a function of one number: a grid, then golden section between the neighbours of its best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = ["Minimum", "minimise"]

_GOLDEN = (3 - math.sqrt(5)) / 2  # of the longer half, from its inner end


class Minimum(NamedTuple):
    """Where it was found, and whether that is an end of the grid."""

    at: float
    edge: bool


def minimise(
    function: Callable[[float], float], grid: Sequence[float], tolerance: float | None, centre: float
) -> Minimum:
    """The lowest of the points that were looked at; equal ones: the one nearest to `centre`.

    Args:
        function: called once per point with a float; inf where there is nothing to be had.
        grid: three or more different points, increasing.
        tolerance: golden section (Kiefer 1953) until the best point's neighbours are at most twice this apart; None
            leaves it at the grid. At an end of the grid there is nothing to refine.
    """
    values = {point: function(point) for point in grid}

    def lowest() -> float:
        return min(values, key=lambda point: (values[point], abs(point - centre)))

    best = lowest()
    if best in (grid[0], grid[-1]):
        return Minimum(best, True)
    while tolerance is not None:
        points = sorted(values)
        i = points.index(best)
        left, right = best - points[i - 1], points[i + 1] - best
        if left + right <= 2 * tolerance:
            break
        point = round(best + _GOLDEN * right if right >= left else best - _GOLDEN * left, 6)
        if point in values:
            break
        values[point] = function(point)
        best = lowest()
    return Minimum(best, False)
