"""Compiling the next trace of one structure: the launches are known, and their numbers alone are composed again."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiler import Compiler
from .launchable import Launchable, Writer, key_of, powers, table_of
from .plan import Call, Launch, Output, Plan
from .symbols import Atom, Buffer, Chosen, Clip, Combination, Draw, NoiseBuffer, Point, each
from .trace import Trace

__all__ = ["Outline", "Recipe"]

_LEAVES = (Buffer, Draw)
_TOLD_APART = ("dtype", "term", "uses_variance", "count", "squares")  # what an event's calls are compiled by


class Outline:
    """What the compiler looks at in a trace beside its numbers.

    Attributes:
        key: equal for traces that are compiled alike, but for coefficients that are rounding of 0.
        places: of the atoms; what stands at the same place in traces of one key plays the same part.
    """

    def __init__(self, trace: Trace):
        self.places: dict[Atom, int] = {}
        self._parts: list[Any] = []
        self._alike: dict[frozenset[Atom], list[Combination]] = {}
        parts = self._parts
        for noise in trace.noise:
            self._place(noise)
        for atom in trace.atoms:
            parts.append(self._named(atom))
            self.places[atom] = len(self.places)
        for event in trace.events:
            parts.append(type(event))
            fields = vars(event)
            parts += [fields.get(name) for name in _TOLD_APART]
            parts += [(len(each(number)), self._rows(number)) for number in event.numbers]
            for value in event.values:
                parts += [self._terms(value), self._first_alike(value)]
            for name in ("output", "variance", "second"):
                if (made := fields.get(name)) is not None:
                    parts.append(self._place(made))
        parts.append(self._terms(trace.states[-1]))
        draws = [atom.k for atom in self.places if isinstance(atom, Draw)]
        if len(draws) > 1:  # columns come in the order of the draws
            parts += sorted(range(len(draws)), key=draws.__getitem__)
        self.key: Hashable = tuple(parts)

    @property
    def atoms(self) -> list[Any]:
        """By place."""
        return list(self.places)

    def _place(self, atom: Atom) -> int:
        place = self.places.get(atom)
        if place is None:
            place = self.places[atom] = len(self.places)
            is_tensor = isinstance(atom, Buffer) and not isinstance(atom, NoiseBuffer)
            self._parts.append((atom.name, atom.event) if is_tensor else type(atom))  # type: ignore[attr-defined]
        return place

    def _named(self, atom: Any) -> Hashable:
        inside = self._terms(atom.value)
        if isinstance(atom, Point):
            return atom.name, inside
        if isinstance(atom, Clip):
            return atom.lo, atom.hi, inside
        return atom.a, atom.b, self._place(atom.variance), inside

    def _rows(self, number: Any) -> Hashable:
        return self._place(number.rows) if isinstance(number, Chosen) else None

    def _terms(self, value: Combination) -> tuple[Hashable, ...]:
        found: list[Hashable] = []
        for atom, c in value.terms.items():
            found.append(self._place(atom))
            if type(c) is not float:
                found.append((type(c), len(each(c)), self._rows(c)))
        if len(value.terms) == 1 and not isinstance(c, Chosen):
            found.append(c == 1.0)
        return tuple(found)

    def _first_alike(self, value: Combination) -> int:
        """Which of the values made of the same atoms it is equal to: equal ones are written once."""
        seen = self._alike.setdefault(frozenset(value.terms), [])
        for number, other in enumerate(seen):
            if all(key_of(c) == key_of(other.terms[atom]) for atom, c in value.terms.items()):
                return number
        seen.append(value)
        return len(seen) - 1


@dataclass
class _Note:
    """How a launch was made of the trace; atoms are places, or the atoms themselves while that is found out.

    Attributes:
        gap: in which it runs; held: the values that were in memory before it.
        values: what it writes: (event, number of its value), -1 for the final state, or an atom by itself.
        keys: the atoms of every output, then those of every clipped or scaled value.
        columns, clips, exponentials: the arguments of `Writer._row`.
    """

    gap: int
    held: list[Any]
    values: list[Any]
    keys: list[list[Any]]
    columns: list[Any]
    clips: list[Any]
    exponentials: list[Any]


class _Noting(Compiler):
    def __init__(self, trace: Trace, network_is_state: bool):
        super().__init__(trace, network_is_state)
        self.notes: list[_Note] = []
        self._gap = 0

    def _emit_gap(self, gap, kept, events):  # type: ignore[no-untyped-def]
        self._gap = gap
        super()._emit_gap(gap, kept, events)

    def _launch(self, batch: Sequence[tuple[Output, Launchable]]) -> Launch:
        tensors, draws, clips, scaled = self._columns(batch)
        held, expanded = [atom for atom in self.slots if not isinstance(atom, _LEAVES)], [one for _, one in batch]
        exponentials = list(powers(scaled) or ())
        keys = [[*one.linear, *one.nonlinear] for one in expanded]
        keys += [list(self._inner(atom)) for atom in (*clips, *exponentials)]
        values = [one.value for one in expanded]
        self.notes.append(_Note(self._gap, held, values, keys, [*tensors, *draws], [*clips], exponentials))
        return super()._launch(batch)


class Recipe:
    """How a trace became a plan. Made by `Recipe.compile`."""

    def __init__(self, plan: Plan, compiler: _Noting, trace: Trace, places: dict[Atom, int]):
        sources: dict[int, Any] = {id(trace.states[-1]): -1}
        sources |= {id(v): (i, j) for i, event in enumerate(trace.events) for j, v in enumerate(event.values)}

        def source(value: Combination) -> Any:
            return sources[id(value)] if id(value) in sources else places[next(iter(value.terms))]

        def placed(atoms: Sequence[Any]) -> list[int]:
            return [places[atom] for atom in atoms]

        self._plan = plan
        self._birth = [(places[atom], gap) for atom, gap in compiler.birth.items() if not isinstance(atom, _LEAVES)]
        self._launches = plan.launches
        calls = [item for item in plan.items if isinstance(item, Call)]
        self._calls = [(call, trace.events.index(call.event)) for call in calls]
        self._notes = []
        for note in compiler.notes:
            read = placed(note.columns), placed(note.clips), placed(note.exponentials)
            written = list(map(source, note.values)), list(map(placed, note.keys))
            self._notes.append(_Note(note.gap, placed(note.held), *written, *read))

    @classmethod
    def compile(cls, trace: Trace, outline: Outline, network_is_state: bool) -> tuple[Plan, Recipe | None]:
        """A plan as `compile_plan` makes it, and the recipe; None if it needs steps that a recipe does not have."""
        compiler = _Noting(trace, network_is_state)
        plan = compiler.compile()
        if any(value is None for note in compiler.notes for value in note.values):  # a partial sum
            return plan, None
        recipe = cls(plan, compiler, trace, outline.places)
        again = recipe._tables(trace, outline.atoms)
        same = again is not None and all(map(np.array_equal, again, (launch.table for launch in recipe._launches)))
        return plan, recipe if same else None

    def renew(self, trace: Trace, outline: Outline) -> bool:
        """Make the plan that of another trace with an equal outline, in place; False if it cannot be."""
        atoms, launches = outline.atoms, self._launches
        tables = self._tables(trace, atoms)
        if tables is None or any(table.shape != launch.table.shape for table, launch in zip(tables, launches)):
            return False
        for launch, table, note in zip(launches, tables, self._notes):
            launch.table = table
            if launch.draws:
                launch.draws = [atoms[place].k for place in note.columns[len(launch.inputs) :]]
        for call, number in self._calls:
            call.event = trace.events[number]
            call.__dict__.pop("measured", None)  # made of the event
        self._plan.noise = [(z, slot) for z, (_, slot) in zip(trace.noise, self._plan.noise)]
        return True

    def _tables(self, trace: Trace, atoms: Sequence[Any]) -> list[NDArray[np.float64]] | None:
        return _Again({atoms[place]: gap for place, gap in self._birth}, {}).tables(self._notes, trace, atoms)


class _Again(Writer):
    def tables(self, notes: Sequence[_Note], trace: Trace, atoms: Sequence[Any]) -> list[NDArray[np.float64]] | None:
        """Of all launches; None if one would read other atoms."""
        found = []
        for note in notes:
            self.slots = {atoms[place]: 0 for place in note.held}
            values = [self._expand(self._value(source, trace, atoms), note.gap) for source in note.values]
            clips, exponentials = ([atoms[place] for place in places] for places in (note.clips, note.exponentials))
            keys = [[*value.linear, *value.nonlinear] for value in values]
            keys += [list(self._inner(atom)) for atom in (*clips, *exponentials)]
            if keys != [[atoms[place] for place in places] for places in note.keys]:
                return None
            found.append(table_of(self._row(values, [atoms[place] for place in note.columns], clips, exponentials)))
        return found

    @staticmethod
    def _value(source: Any, trace: Trace, atoms: Sequence[Any]) -> Combination:
        if isinstance(source, tuple):
            return trace.events[source[0]].values[source[1]]
        return trace.states[-1] if source == -1 else Combination({atoms[source]: 1.0})
