"""A recorded run without the events that nothing wanted depends on."""

from __future__ import annotations

from .symbols import Atom, Buffer, Combination, Scaled, chosen_by
from .trace import Event, Report, Trace


def atoms_of(value: Combination) -> set[Atom]:
    """Every atom that a value is made of, those inside others included."""
    found: set[Atom] = {*value.terms, *chosen_by(value.terms.values())}
    for atom in value.terms:
        if isinstance(atom, Scaled):
            found.add(atom.variance)
        if (inner := getattr(atom, "value", None)) is not None:
            found |= atoms_of(inner)
    return found


def carries(value: Combination, kind: type[Atom]) -> bool:
    """Whether a value is made of atoms of a kind."""
    return any(isinstance(atom, kind) for atom in atoms_of(value))


def pruned(trace: Trace) -> Trace:
    """The reports, and what they and the final state need."""
    needed = atoms_of(trace.states[-1])
    kept: list[Event] = []
    for event in reversed(trace.events):
        if isinstance(event, Report) or needed.intersection(_made(event)):
            kept.insert(0, event)
            needed.update(*map(atoms_of, event.values), chosen_by(event.numbers))
    for place, event in enumerate(kept):
        for buffer in _made(event):
            buffer.event = place
    atoms = [atom for atom in trace.atoms if atom in needed]
    return Trace(kept, atoms, trace.states, trace.noise)


def _made(event: Event) -> list[Buffer]:
    """What an event makes."""
    made = [getattr(event, name, None) for name in ("output", "variance", "second")]
    return [buffer for buffer in made if buffer is not None]
