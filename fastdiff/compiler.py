"""From a recorded run to launches of the one kernel.

Between two network calls lies a *gap*. `compile_plan` decides for every gap which values must be in memory after it
(the network's next input, a guidance input, values that later gaps read), writes each of them as a linear combination
of what is in memory before it, and packs them into launches, almost always one. All coefficients are composed here, on
the host, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from .launchable import Launchable, Writer, key_of, powers, table_of
from .ops.reference_ops import MAX_DRAWS, MAX_INPUTS, MAX_OUTPUTS
from .plan import Call, Launch, Output, Plan
from .symbols import (
    Atom,
    Buffer,
    Chosen,
    Clip,
    Combination,
    Draw,
    Measured,
    NoiseBuffer,
    Scaled,
    chosen_by,
)
from .trace import Evaluate, Event, Guide, Measure, Report, Trace


def compile_plan(trace: Trace, network_is_state: bool = True) -> Plan:
    """Compile a recorded run.

    Args:
        trace: from `trace.Recorder`.
        network_is_state: the network takes the state's dtype, so that an unscaled input can be the state itself.

    Raises:
        NotImplementedError: a value needs more than 8 tensors or 64 draws.
    """
    return Compiler(trace, network_is_state).compile()


class Compiler(Writer):
    def __init__(self, trace: Trace, network_is_state: bool):
        self.trace, self.network_is_state = trace, network_is_state
        self.plan = Plan()
        super().__init__({}, {})
        self.order = {atom: i for i, atom in enumerate(trace.atoms)}
        reports = np.cumsum([isinstance(event, Report) for event in trace.events]).tolist()
        self.number = [i - before for i, before in enumerate(reports)]  # of events, an observer's left out
        self.event_gap: list[int] = []

    # -- which gap can make what ------------------------------------------------------------------------------------

    def _birth(self, atom: Atom) -> int:
        """The first gap in which an atom's value can be computed (a buffer: read)."""
        if atom not in self.birth:
            if isinstance(atom, Buffer):
                gap = 0 if atom.event < 0 else self.event_gap[atom.event] + 1
            elif isinstance(atom, Draw):
                gap = 0
            else:
                gap = self._ready(atom.value)  # type: ignore[attr-defined]
                if isinstance(atom, Scaled):
                    gap = max(gap, self._birth(atom.variance))
            self.birth[atom] = gap
        return self.birth[atom]

    def _ready(self, value: Combination) -> int:
        needed = [*value.terms, *chosen_by(value.terms.values())]
        return max(map(self._birth, needed), default=0)

    def _assign_gaps(self) -> None:
        gap = 0
        for event in self.trace.events:
            own = max([gap, *map(self._ready, event.values), *map(self._birth, chosen_by(event.numbers))])
            self.event_gap.append(own)
            if not isinstance(event, Report):  # nothing waits for an observer
                gap = own

    # -- reading ----------------------------------------------------------------------------------------------------

    def _reads(self, value: Combination, gap: int) -> set[Atom]:
        """Every atom read from memory to make `value` in `gap`, nested ones included."""
        expanded = self._expand(value, gap)
        found = set(expanded.linear)
        for atom in expanded.nonlinear:
            found |= self._reads(atom.value, gap)
            if isinstance(atom, Scaled):
                found.add(atom.variance)
        return found

    # -- compile ----------------------------------------------------------------------------------------------------

    def compile(self) -> Plan:
        self._assign_gaps()
        for atom in self.trace.atoms:
            self._birth(atom)
        final = self.trace.states[-1]
        gaps = max([self._ready(final), *self.event_gap], default=0) + 1
        values: list[list[Combination]] = [[] for _ in range(gaps)]
        for event, gap in zip(self.trace.events, self.event_gap):
            values[gap] += event.values
        values[self._ready(final)].append(final)

        # Backwards: a named or non-linear value is written in its gap if a later gap reads it.
        born: list[list[Atom]] = [[] for _ in range(gaps)]
        for atom in self.trace.atoms:
            if self.birth[atom] < gaps:  # else made of an output that nothing reads
                born[self.birth[atom]].append(atom)
        kept: list[list[Atom]] = [[] for _ in range(gaps)]
        live: set[Atom] = set()
        for gap in reversed(range(gaps)):
            kept[gap] = [a for a in born[gap] if a in live]
            wanted = values[gap] + [Combination({a: 1.0}) for a in kept[gap]]
            for value in wanted:
                live |= self._reads(value, gap)

        for gap in range(gaps):
            self._emit_gap(gap, kept[gap], [e for e, g in zip(self.trace.events, self.event_gap) if g == gap])
        self.plan.final = self._slot_of(final)
        self.plan.noise = [(z, self.slots.get(z)) for z in self.trace.noise]
        self._find_dead()
        return self.plan

    def _emit_gap(self, gap: int, kept: Sequence[Atom], events: Sequence[Event]) -> None:
        wanted: list[tuple[Output, Combination]] = []
        promised: dict[Hashable, tuple[Output, Combination]] = {}

        def write(value: Combination, name: str, cast: Any = None, observed: bool = False) -> int:
            """The slot of a value, promised by this gap's launches if it is not in memory yet; `cast`: not in the
            state's dtype, but in the network's (True) or another."""
            single = _single(value)
            if single is not None and cast is None and (single in self.slots or isinstance(single, Buffer)):
                return self._slot(single)
            key = cast, frozenset((atom, key_of(c)) for atom, c in value.terms.items())
            if key not in promised:
                dtype = None if cast is True else cast
                promised[key] = Output(self._new_slot(name), name, cast is True, observed, dtype), value
                wanted.append(promised[key])
            return promised[key][0].slot

        for atom in kept:
            write(Combination({atom: 1.0}), _name(atom))
        calls = {event: self._call(event, write) for event in events if not isinstance(event, (Report, Measure))}
        read = {e: [write(v, "read") for v in e.values[e.squares :]] for e in events if isinstance(e, Measure)}
        final = self.trace.states[-1]
        if self._ready(final) == gap:
            write(final, "x")
        # Last what only an observer wants, so that observing changes nothing before it.
        for event in events:
            if isinstance(event, Report):
                names = [_name(_single(event.values[0])), "x0"]
                slots = [write(v, n, event.dtype, observed=True) for v, n in zip(event.values, names)]
                calls[event] = Call(event, slots)
        self._emit_launches(gap, wanted)
        for output, value in promised.values():
            single = _single(value)
            if single is not None and not output.cast:
                self.slots[single] = output.slot
        for event in events:
            if isinstance(event, Measure):
                calls[event] = self._measure(event, gap, read[event])
        self.plan.items += [calls[event] for event in events]

    def _measure(self, event: Measure, gap: int, read: Sequence[int]) -> Call:
        """Launches for the sums of squares, and the call that makes numbers of them and of the slots that it reads."""
        slots, values = [], event.values[: event.squares]
        tensors = [a for v in values for a in self._reads(v, gap) if not isinstance(a, Draw)]
        shape = min(tensors, key=self._rank, default=None)
        for value in values:
            output = Output(self._new_slot("squares"), "squares", False)
            for atom in self._expand(value, gap).nonlinear:
                self._write_first(atom, gap)
            expanded = self._expand(value, gap)
            if all(isinstance(atom, Draw) for atom in expanded.linear):
                if shape is None:
                    raise NotImplementedError("of the states that are measured together, one must be more than noise")
                expanded.linear[shape] = 0.0
            launch = self._launch([(output, self._narrowed(output, expanded))])
            launch.squares = True
            self.plan.items.append(launch)
            slots.append(output.slot)
        return Call(event, [*slots, *read], self._slot(event.output))

    def _call(self, event: Event, write: Callable[..., int]) -> Call:
        if any(isinstance(number, Measured) for number in event.numbers):
            raise NotImplementedError("a measured number can scale states; no network or function can be told it")
        rows = next((self._slot(rows) for rows in chosen_by(event.numbers)), None)
        if isinstance(event, Evaluate):
            (value,) = event.values
            plain = self.network_is_state and _single(value) is not None
            slot = write(value, _name(_single(value)) if plain else "network input", None if plain else True)
            variance = self._slot(event.variance) if event.uses_variance else None
            second = None if event.second is None else self._slot(event.second)
            return Call(event, [slot], self._slot(event.output), variance, second, rows)
        name = "guidance input" if isinstance(event, Guide) else "value"
        slots = [write(v, _name(_single(v), name), event.dtype) for v in event.values]
        return Call(event, slots, self._slot(event.output), rows=rows)  # type: ignore[attr-defined]

    def _emit_launches(self, gap: int, wanted: Sequence[tuple[Output, Combination]]) -> None:
        batch: list[tuple[Output, Launchable]] = []
        for output, value in wanted:
            expanded = self._narrowed(output, self._written_out(output, value, gap))
            if batch and not self._fits([*batch, (output, expanded)]):
                self.plan.items.append(self._launch(batch))
                batch = []
            batch.append((output, expanded))
        if batch:
            self.plan.items.append(self._launch(batch))

    def _narrowed(self, output: Output, expanded: Launchable) -> Launchable:
        """A value of more tensors or draws than a launch takes, with partial sums written to memory first."""
        while not self._fits([(output, expanded)]):
            terms = expanded.linear
            if len(sources := chosen_by(terms.values())) > 1:  # a launch reads its rows by one of them
                one = next(iter(sources))
                self._partial(expanded, [atom for atom, c in terms.items() if one in chosen_by([c])])
                continue
            draws = [a for a in terms if isinstance(a, Draw)][:MAX_DRAWS]
            part = [*[a for a in terms if not isinstance(a, Draw)][:MAX_INPUTS], *draws]
            if len(part) < 2:
                raise NotImplementedError(
                    f"the value {output.name!r} clips or scales a sum of more than {MAX_INPUTS} tensors or {MAX_DRAWS} "
                    "draws; yield or evaluate at an intermediate value so that it is written to memory"
                )
            self._partial(expanded, part)
        return expanded

    def _partial(self, expanded: Launchable, part: Sequence[Atom]) -> None:
        """Write the sum of these terms, and read it in their place."""
        partial, first = Buffer("partial sum"), Launchable()
        self.slots[partial] = self._new_slot(partial.name)
        first.linear = {atom: expanded.linear.pop(atom) for atom in part}
        self.plan.items.append(self._launch([(Output(self.slots[partial], partial.name, False), first)]))
        expanded.linear = {partial: 1.0, **expanded.linear}

    def _written_out(self, output: Output, value: Combination, gap: int) -> Launchable:
        """Expand; a non-linear value inside another, or a second of a kind that cannot share the first's launch, is
        written by a launch of its own first."""
        expanded = self._expand(value, gap)
        kept = Launchable()
        kept.linear[Buffer("partial sum")] = 1.0  # the room that the linear terms need at least
        for atom in expanded.nonlinear:
            inner = self._expand(atom.value, gap)
            for nested in inner.nonlinear:
                self._write_first(nested, gap)
            second = any(isinstance(other, type(atom)) for other in kept.nonlinear)
            kept.nonlinear[atom] = 1.0
            if second and not self._fits([(output, kept)]):
                del kept.nonlinear[atom]
                self._write_first(atom, gap)
        return self._expand(value, gap)

    def _write_first(self, atom: Atom, gap: int) -> None:
        if atom not in self.slots:
            slot = self._new_slot(_name(atom))
            self._emit_launches(gap, [(Output(slot, _name(atom), False), Combination({atom: 1.0}))])
            self.slots[atom] = slot

    def _columns(self, batch: Sequence[tuple[Output, Launchable]]) -> tuple[list[Atom], list[Draw], set, set]:
        """(tensors read, draws made, clips, scaled values) of a launch; nested linear terms included."""
        atoms: dict[Atom, None] = {}
        clips: set[Clip] = set()
        scaled: set[Scaled] = set()
        for _, expanded in batch:
            atoms.update(dict.fromkeys(expanded.linear))
            for atom in expanded.nonlinear:
                if isinstance(atom, Clip):
                    clips.add(atom)
                else:
                    scaled.add(atom)
                atoms.update(dict.fromkeys(self._inner(atom)))
        draws = sorted((a for a in atoms if isinstance(a, Draw)), key=lambda draw: draw.k)
        tensors = sorted((a for a in atoms if not isinstance(a, Draw)), key=self._rank)
        return tensors, draws, clips, scaled

    def _rank(self, atom: Atom) -> tuple[int, int]:
        """Sums run in the order in which tensors come to be, whatever else a launch writes: observed runs have the bits
        of others, and plans that differ in numbers one structure."""
        if isinstance(atom, Buffer):
            number = self.number[atom.event] if atom.event >= 0 else -1
            return self.birth.get(atom, len(self.trace.events) + 1), number  # a partial sum is the last
        return self.birth[atom], self.order[atom]

    def _fits(self, batch: Sequence[tuple[Output, Launchable]]) -> bool:
        tensors, draws, clips, scaled = self._columns(batch)
        sizes = len(tensors) <= MAX_INPUTS and len(draws) <= MAX_DRAWS and len(batch) <= MAX_OUTPUTS
        return sizes and len(clips) <= 1 and powers(scaled) is not None and len(self._choices(batch)) <= 1

    def _choices(self, batch: Sequence[tuple[Output, Launchable]]) -> dict[Buffer, None]:
        """The choices that a launch's coefficients depend on."""
        found: dict[Buffer, None] = {}
        for _, expanded in batch:
            found.update(expanded.choices())
            for atom in expanded.nonlinear:
                found.update(chosen_by(self._inner(atom).values()))
        return found

    def _launch(self, batch: Sequence[tuple[Output, Launchable]]) -> Launch:
        tensors, draws, clips, scaled = self._columns(batch)
        expanded, exponentials = [one for _, one in batch], powers(scaled) or ()
        row = self._row(expanded, [*tensors, *draws], [*clips], exponentials)
        variance = self._slot(exponentials[0].variance) if exponentials else None
        inputs = [self._slot(atom) for atom in tensors]
        outputs = [output for output, _ in batch]
        rows = next((self._slot(rows) for rows in self._choices(batch)), None)
        measured = any(isinstance(c, Measured) for c in row)
        return Launch(inputs, [d.k for d in draws], outputs, bool(clips), variance, table_of(row), rows, measured)

    # -- slots ------------------------------------------------------------------------------------------------------

    def _new_slot(self, name: str) -> int:
        self.plan.names.append(name)
        return len(self.plan.names) - 1

    def _slot(self, atom: Atom) -> int:
        if atom not in self.slots:
            self.slots[atom] = self._new_slot(_name(atom))
            if isinstance(atom, Buffer) and not isinstance(atom, NoiseBuffer) and atom.event < 0:
                self.plan.given[atom.name] = self.slots[atom]
        return self.slots[atom]

    def _slot_of(self, value: Combination) -> int:
        atom = _single(value)
        assert atom is not None
        return self.slots[atom]

    def _find_dead(self) -> None:
        last: dict[int, int] = {}
        for i, item in enumerate(self.plan.items):
            if isinstance(item, Launch):
                touched = [*item.inputs, item.variance, item.rows, *(output.slot for output in item.outputs)]
            else:
                touched = [*item.slots, item.output, item.variance, item.second, item.rows]
            last.update((slot, i) for slot in touched if slot is not None)
        self.plan.dead = [[] for _ in self.plan.items]
        for slot, i in last.items():
            if slot != self.plan.final:
                self.plan.dead[i].append(slot)


def _single(value: Combination) -> Atom | None:
    """The atom a combination is exactly equal to, if any."""
    (atom, c), *rest = value.terms.items()
    return atom if not rest and not isinstance(c, Chosen) and c == 1.0 else None


def _name(atom: Atom | None, otherwise: str = "value") -> str:
    if isinstance(atom, Clip):
        return "x0 (clipped)"
    return getattr(atom, "name", otherwise)
