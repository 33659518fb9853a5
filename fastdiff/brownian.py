"""Brownian noise that does not depend on the steps: increments of one path per sample, from the noise contract.

A virtual Brownian tree: W is known at both ends of a range of noise levels, and in the middle of every interval that is
known at its ends (a Brownian bridge), by one normal each. Halving goes on to cells of 2^-11 octave of sigma. An
increment of W is then a weighted sum of the at most 33 normals on the way to its two ends, which a launch draws like
any others: it takes no memory and no state, and a sample refines, instead of changing, when its steps become more.

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
FIRST_DRAW = 1 << 31  # the normal at the clean end, then those of the tree's nodes in the order of a heap
MOST_ETA = 8.0  # 2^(4 eta OCTAVES) is a float64


def increment(start: float, end: float, eta: float = 1.0) -> tuple[list[int], list[float]]:
    """The standardised increment (W(tau(end)) - W(tau(start))) / sqrt(tau(end) - tau(start)) as a sum of draws.

    Args:
        start, end: sigma in VE terms, start the noisier one: from 2^-16 to 2^16, rounded to 2^-11 octave; inf is the
            noisy end of the range, 0 the clean end.
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
    if i >= j:
        raise ValueError(
            f"Brownian noise from sigma {start:.8g} to {end:.8g}: the levels must fall by 2^-11 octave (0.034 %) at "
            "least; make fewer steps, or use independent noise"
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

    def length(self, i: int, j: int) -> float:
        """tau(j) - tau(i), times a constant of eta."""
        cells = math.expm1(self._rate * (j - i)) / self._rate if self._rate else float(j - i)
        return math.exp(self._rate * (i - CELLS // 2)) * cells

    def weights(self, i: int, j: int) -> dict[int, float]:
        """By how much every node's bridge rises from i to j; only nodes whose interval has i or j inside."""
        found: dict[int, float] = {}
        todo = [(1, 0, CELLS)]
        while todo:
            node, first, last = todo.pop()
            middle = (first + last) // 2
            if (first < i < last or first < j < last) and middle > first:
                found[node] = self._rise(max(i, first), min(j, last), first, middle, last)
                todo += [(2 * node, first, middle), (2 * node + 1, middle, last)]
        return found

    def _rise(self, i: int, j: int, first: int, middle: int, last: int) -> float:
        """The change from i to j of a node's bridge: 0 at its ends, the conditional standard deviation in the middle,
        straight between. Differences of times are never those of large numbers."""
        left, right = self.length(first, middle), self.length(middle, last)
        peak = math.sqrt(left * (right / self.length(first, last)))
        if j <= middle:
            return peak * (self.length(i, j) / left)
        if i >= middle:
            return -peak * (self.length(i, j) / right)
        return peak * (self.length(i, middle) / left - self.length(middle, j) / right)


def _position(name: str, sigma: float) -> int:
    """The cell boundary nearest to a level: 0 at the noisy end, `CELLS` at the clean one."""
    if not isinstance(sigma, Real):
        raise ValueError(f"{name} must be one level for all samples with Brownian noise, got {sigma}")
    if sigma in (0, math.inf):
        return 0 if sigma else CELLS
    if not 2.0**-OCTAVES <= sigma <= 2.0**OCTAVES:
        raise ValueError(
            f"{name} must be a sigma from 2^-{OCTAVES} to 2^{OCTAVES} with Brownian noise, got {sigma:.6g}"
        )
    return round((OCTAVES - math.log2(sigma)) * CELLS / (2 * OCTAVES))
