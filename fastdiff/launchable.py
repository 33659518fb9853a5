"""A value written out over what one launch of the kernel can read and make."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from itertools import permutations

from .symbols import DUST, Atom, Buffer, Chosen, Clip, Measured, Number, Scaled, chosen_by, each


def merge(into: dict, terms: dict, factor: float) -> None:
    """into += factor * terms."""
    for atom, value in terms.items():
        into[atom] = into.get(atom, 0.0) + factor * value


class Launchable:
    """An output written out over what a launch can read: buffers and draws, one clipped value, one or two scaled."""

    def __init__(self) -> None:
        self.linear: dict[Atom, Number] = {}
        self.nonlinear: dict[Clip | Scaled, Number] = {}

    def cleaned(self) -> Launchable:
        """Without coefficients that are rounding of 0."""
        known = (c for c in (*self.linear.values(), *self.nonlinear.values()) if not isinstance(c, Measured))
        largest = max(map(size, known), default=0.0)
        self.linear = {a: c for a, c in self.linear.items() if size(c) > _least(c, largest)}
        self.nonlinear = {a: c for a, c in self.nonlinear.items() if size(c) > _least(c, largest)}
        return self

    def choices(self) -> dict[Buffer, None]:
        """The choices that the coefficients depend on."""
        return chosen_by([*self.linear.values(), *self.nonlinear.values()])


def powers(scaled: Collection[Scaled]) -> Sequence[Scaled] | None:
    """What one launch multiplies by e = exp(a v + b) and, if there are two, by e^2; None: it cannot."""
    if len(scaled) <= 1:
        return list(scaled)
    if len(scaled) == 2:
        for first, second in permutations(scaled):
            if first.variance is second.variance and (second.a, second.b) == (2 * first.a, 2 * first.b):
                return first, second
    return None


def size(c: Number) -> float:
    """The largest absolute value."""
    return max(map(abs, each(c))) if isinstance(c, Chosen) else abs(c)


def _least(c: Number, largest: float) -> float:
    """What a coefficient must exceed to be more than rounding; one yet to be measured counts unless it is 0."""
    return 0.0 if isinstance(c, Measured) else DUST * largest


def key_of(c: Number) -> Hashable:
    """What equal coefficients have in common."""
    return (type(c), c.rows, c.values.tobytes()) if isinstance(c, Chosen) else c
