"""A value written out over what one launch of the kernel can read and make."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .symbols import (
    DUST,
    Atom,
    Buffer,
    Chosen,
    Clip,
    Combination,
    Draw,
    Measured,
    Number,
    Point,
    Scaled,
    chosen_by,
    each,
)


def merge(into: dict, terms: dict, factor: float) -> None:
    """into += factor * terms."""
    for atom, value in terms.items():
        into[atom] = into.get(atom, 0.0) + factor * value


class Launchable:
    """An output written out over what a launch can read: buffers and draws, one clipped value, one or two scaled.

    Args:
        value: what is written out, if that is all it is.
    """

    def __init__(self, value: Combination | None = None) -> None:
        self.value = value
        self.linear: dict[Atom, Number] = {}
        self.nonlinear: dict[Clip | Scaled, Number] = {}

    def cleaned(self) -> Launchable:
        """Without coefficients that are rounding of 0."""
        numbers = [*self.linear.values(), *self.nonlinear.values()]
        if set(map(type, numbers)) <= {float}:
            return self._of_numbers(numbers)
        known = (c for c in numbers if not isinstance(c, Measured))
        largest = max(map(size, known), default=0.0)
        self.linear = {a: c for a, c in self.linear.items() if size(c) > _least(c, largest)}
        self.nonlinear = {a: c for a, c in self.nonlinear.items() if size(c) > _least(c, largest)}
        return self

    def _of_numbers(self, numbers: Sequence[Any]) -> Launchable:
        least = DUST * max(map(abs, numbers), default=0.0)
        self.linear = {a: c for a, c in self.linear.items() if abs(c) > least}
        if self.nonlinear:
            self.nonlinear = {a: c for a, c in self.nonlinear.items() if abs(c) > least}
        return self

    def choices(self) -> dict[Buffer, None]:
        """The choices that the coefficients depend on."""
        return chosen_by([*self.linear.values(), *self.nonlinear.values()])


class Writer:
    """Writes values over what is in memory, given the gap in which every atom's value can first be computed (`birth`)
    and where it is in memory (`slots`)."""

    def __init__(self, birth: dict[Atom, int], slots: dict[Atom, int]):
        self.birth, self.slots = birth, slots

    def _expand(self, value: Combination, gap: int) -> Launchable:
        out = Launchable(value)
        for atom, c in value.terms.items():
            if isinstance(atom, (Buffer, Draw)) or self.birth[atom] < gap or atom in self.slots:
                out.linear[atom] = out.linear.get(atom, 0.0) + c
            elif isinstance(atom, Point):
                inner = self._expand(atom.value, gap)
                merge(out.linear, inner.linear, c)
                merge(out.nonlinear, inner.nonlinear, c)
            else:
                merge(out.nonlinear, {atom: c}, 1.0)
        return out.cleaned()

    def _inner(self, atom: Clip | Scaled) -> dict[Atom, Number]:
        return self._expand(atom.value, self.birth[atom]).linear

    def _row(
        self,
        values: Sequence[Launchable],
        columns: Sequence[Atom],
        clips: Sequence[Clip],
        exponentials: Sequence[Scaled],
    ) -> list[Number]:
        """A launch's table row: C; then P, lo, hi, c; then a, b, E, D (see fastdiff.ops.combine)."""

        def over(terms: Mapping[Atom, Number]) -> list[Number]:
            return [terms.get(atom, 0.0) for atom in columns]

        row = [c for value in values for c in over(value.linear)]
        for clip in clips:
            row += [*over(self._inner(clip)), clip.lo, clip.hi, *(v.nonlinear.get(clip, 0.0) for v in values)]
        for power, atom in enumerate(exponentials):
            row += [atom.a, atom.b] if power == 0 else []
            inner = over(self._inner(atom))
            for value in values:
                row += [value.nonlinear.get(atom, 0.0) * c for c in inner]
        return row


def table_of(row: Sequence[Number]) -> NDArray[np.float64]:
    """[V, W]: a row for every candidate of the launch's choice, or one; for measurements, the constant part and the
    factor of each."""
    if not any(issubclass(kind, Chosen) for kind in set(map(type, row))):
        return np.array([row], dtype=np.float64)
    count = max(len(each(c)) for c in row)
    if any(isinstance(c, Measured) for c in row):
        return np.array([np.pad(each(c), (0, count - len(each(c)))) for c in row]).reshape(-1, count).T.copy()
    return np.array([np.broadcast_to(each(c), count) for c in row], dtype=np.float64).reshape(-1, count).T.copy()


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
