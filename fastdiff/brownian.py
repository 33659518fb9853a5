"""Brownian noise that does not depend on the steps: increments of one path per sample, from the noise contract.

A virtual Brownian tree: W is known at both ends of a range of noise levels, and in the middle of every interval that is
known at its ends (a Brownian bridge), by one normal each. Halving goes on to cells of 2^-11 octave of sigma; a point in
a cell takes one normal of the cell's own. An increment of W is then a weighted sum of the at most 35 normals on the way
to its two ends, which a launch draws like any others: it takes no memory and no state, and a sample refines, instead of
changing, when its steps become more. Points of different cells have the law of Brownian motion exactly.

The time of the path is tau = sigma^(-2 eta): in it, the noise sigma' sqrt(1 - (sigma' / sigma)^(2 eta)) z of a step
from sigma to sigma' is sigma'^(1 + eta) times an increment.
"""

from __future__ import annotations

import math
from numbers import Real

from .errors import check_finite

NOISES = ("independent", "brownian")
OCTAVES = 16  # the range: sigma from 2^-16 to 2^16
DEPTH = 16
CELLS = 1 << DEPTH
FIRST_DRAW = 1 << 31  # the normal at the clean end, then those of the tree's nodes in the order of a heap, then cells'
DRAWS = 2 * CELLS
MOST_ETA = 8.0  # 2^(4 eta OCTAVES) is a float64
_SNAP = 1e-9  # of a cell: nearer to its boundary is on it


def increment(start: float, end: float, eta: float = 1.0) -> tuple[list[int], list[float]]:
    """The standardised increment (W(tau(end)) - W(tau(start))) / sqrt(tau(end) - tau(start)) as a sum of draws.

    Args:
        start, end: sigma in VE terms, start the noisier one: from 2^-16 to 2^16; inf is the noisy end of the range, 0
            the clean end.
        eta: of the path's time sigma^(-2 eta), from -8 to 8; 0: -2 log(sigma). Each eta has a path of its own.

    Returns:
        Draw numbers, ascending from 2^31, and their weights, whose squares add up to 1. Increments over intervals that
        do not overlap are independent.

    Raises:
        ValueError: a level out of range, two in one cell or in the wrong order, or eta out of range.
    """
    if abs(check_finite("eta", eta)) > MOST_ETA:
        raise ValueError(f"eta must be from {-MOST_ETA:g} to {MOST_ETA:g} with Brownian noise, got {eta!r}")
    i, j = _position("start", start), _position("end", end)
    if i >= j or math.floor(i) < i < j < math.ceil(i):
        raise ValueError(
            f"Brownian noise from sigma {start:.8g} to {end:.8g}: the levels must fall, and lie in different cells of "
            "2^-11 octave (0.034 %); make fewer steps, or use independent noise"
        )
    tree = _Tree(eta)
    length = tree.length(i, j)
    found = {0: length / math.sqrt(tree.length(0, CELLS))} | tree.weights(i, j)
    scale = 1 / math.sqrt(length)
    draws = sorted(node for node, weight in found.items() if weight != 0)
    return [FIRST_DRAW + node for node in draws], [found[node] * scale for node in draws]


class _Tree:
    """The intervals between levels, counted in cells from the noisy end, in the time of one eta."""

    def __init__(self, eta: float):
        self._rate = 2 * eta * math.log(2) * 2 * OCTAVES / CELLS

    def length(self, i: float, j: float) -> float:
        """tau(j) - tau(i), times a constant of eta."""
        cells = math.expm1(self._rate * (j - i)) / self._rate if self._rate else j - i
        return math.exp(self._rate * (i - CELLS // 2)) * cells

    def weights(self, i: float, j: float) -> dict[int, float]:
        """By how much the bridge of every node rises from i to j; only nodes whose interval has i or j inside."""
        found: dict[int, float] = {}
        todo = [(1, 0, CELLS)]
        while todo:
            node, first, last = todo.pop()
            if not (first < i < last or first < j < last):
                continue
            if last - first == 1:
                found[node] = self._deviation(first, j, last) if j < last else -self._deviation(first, i, last)
            else:
                middle = (first + last) // 2
                found[node] = self._rise(max(i, first), min(j, last), first, middle, last)
                todo += [(2 * node, first, middle), (2 * node + 1, middle, last)]
        return found

    def _deviation(self, first: float, at: float, last: float) -> float:
        """The standard deviation of a bridge."""
        return math.sqrt(self.length(first, at) * (self.length(at, last) / self.length(first, last)))

    def _rise(self, i: float, j: float, first: int, middle: int, last: int) -> float:
        """The change from i to j of what is 0 at an interval's ends, the bridge's deviation in the middle, and straight
        between. Differences of times are never those of large numbers."""
        left, right = self.length(first, middle), self.length(middle, last)
        peak = self._deviation(first, middle, last)
        if j <= middle:
            return peak * (self.length(i, j) / left)
        if i >= middle:
            return -peak * (self.length(i, j) / right)
        return peak * (self.length(i, middle) / left - self.length(middle, j) / right)


def _position(name: str, sigma: float) -> float:
    """Where a level is, in cells: 0 at the noisy end, `CELLS` at the clean one."""
    if not isinstance(sigma, Real):
        raise ValueError(f"{name} must be one level for all samples with Brownian noise, got {sigma}")
    if sigma in (0, math.inf):
        return 0 if sigma else CELLS
    if not 2.0**-OCTAVES <= sigma <= 2.0**OCTAVES:
        raise ValueError(f"{name} must be a sigma from 2^-16 to 2^16 with Brownian noise, got {sigma:.6g}")
    position = (OCTAVES - math.log2(sigma)) * CELLS / (2 * OCTAVES)
    return round(position) if abs(position - round(position)) < _SNAP else position
