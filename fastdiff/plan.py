"""A compiled run: launches of the one kernel, and the calls of the network and others between them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any
from weakref import ref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .symbols import NoiseBuffer, each
from .trace import Apply, Choose, Evaluate, Event, Guide, Measure, Report


@dataclass
class Output:
    """One output of a launch: the slot it makes, whether it is a network input (cast to the network's dtype), whether
    it is written for an observer only, and the dtype it is cast to for something else (None: the state's)."""

    slot: int
    name: str
    for_network: bool
    observed: bool = False
    dtype: torch.dtype | None = None

    @property
    def cast(self) -> bool:
        """Whether it is written for one reader, perhaps not in the state's dtype."""
        return self.for_network or self.dtype is not None


@dataclass
class Launch:
    """One call of `fastdiff.ops.combine`: slots read, draws made, slots written, and the coefficients: table [V, W].

    Sample b reads row 0, or row `rows[b]` where samples choose: `rows` is the slot of the choices. With `measured` it
    is the slot of measurements m [V - 1, B], and sample b reads table[0] + sum_v m[v, b] table[v + 1]. With `squares`
    nothing is written but the sum of the squares of a sample's elements, float64 [B].
    """

    inputs: list[int]
    draws: list[int]
    outputs: list[Output]
    clip: bool
    variance: int | None
    table: NDArray[np.float64]
    rows: int | None = None
    measured: bool = False
    squares: bool = False

    @property
    def wide(self) -> bool:
        """Whether something is written in float64, beside whatever state."""
        return any(output.dtype == torch.float64 for output in self.outputs)

    @property
    def cancelling(self) -> float:
        """How large terms can be that cancel: the second largest coefficient of the clipped value and of the outputs
        (not of an observer's)."""
        linear = len(self.outputs) + self.clip
        largest = np.abs(self.table).max(0)
        rows = largest[: linear * (len(self.inputs) + len(self.draws))].reshape(linear, -1)
        if rows.shape[1] < 2:
            return 0.0
        counts = [not output.observed for output in self.outputs] + [True] * self.clip
        return float(np.sort(rows[counts], axis=1)[:, -2].max(initial=0.0))


@dataclass
class Call:
    """Something done between launches: a trace event with the slots of its values, of what it makes, and of the choices
    that its numbers depend on."""

    event: Event
    slots: list[int]
    output: int | None = None
    variance: int | None = None
    second: int | None = None
    rows: int | None = None

    @cached_property
    def measured(self) -> tuple[list[int], list[int], Callable[..., Any] | None]:
        """Of a measurement: the slots of the sums of squares, those of what it reads as it is, and how it is made of
        numbers of Python, if it can be."""
        assert isinstance(self.event, Measure)
        count = self.event.squares
        return self.slots[:count], self.slots[count:], getattr(self.event.function, "small", None)


class Structure:
    """A long key that is hashed once."""

    __slots__ = ("_hash", "_parts")

    def __init__(self, parts: Hashable):
        self._parts, self._hash = parts, hash(parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Structure) and self._parts == other._parts)


class Same:
    """A thing in a key: equal to itself only (a frozen dataclass: to one with equal fields), and to nothing once it is
    gone, whatever lies at its address then."""

    __slots__ = ("_by_value", "_hash", "_thing")

    def __init__(self, thing: object):
        parameters = getattr(type(thing), "__dataclass_params__", None)
        self._by_value = parameters is not None and parameters.frozen and parameters.eq
        try:
            self._hash = hash(thing) if self._by_value else id(thing)
        except TypeError:  # of a field
            self._by_value, self._hash = False, id(thing)
        try:
            self._thing: Callable[[], object] = ref(thing)
        except TypeError:  # kept, if it cannot be watched
            self._thing = lambda: thing

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Same) or self._hash != other._hash:
            return False
        mine, theirs = self._thing(), other._thing()
        return mine is not None and (mine is theirs or (self._by_value and mine == theirs))


@dataclass
class Plan:
    """A compiled run: launches and calls in order. `print(plan)` shows it as a table.

    Attributes:
        items: in order of execution.
        names: of every slot.
        given: slots of the tensors that a call brings and the run reads (the starting state, an image, ...), by name.
        noise: noise handed in as tensors, in the order of the draws, with its slot (None: drawn, but not read).
        final: slot of the result.
        dead: for every item, the slots nothing after it reads.
    """

    items: list[Launch | Call] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    given: dict[str, int] = field(default_factory=dict)
    noise: list[tuple[NoiseBuffer, int | None]] = field(default_factory=list)
    final: int = -1
    dead: list[list[int]] = field(default_factory=list)

    @property
    def launches(self) -> list[Launch]:
        return [item for item in self.items if isinstance(item, Launch)]

    @property
    def functions(self) -> list[Callable[..., Tensor]]:
        """The functions of states that the run calls, those that choose included."""
        calls = [item.event for item in self.items if isinstance(item, Call)]
        found = [e.function for e in calls if isinstance(e, (Apply, Measure))]
        return found + [e.selector for e in calls if isinstance(e, Choose)]

    @property
    def evaluations(self) -> int:
        """Number of network evaluations (NFE)."""
        calls = [item.event for item in self.items if isinstance(item, Call)]
        return sum(1 + (event.second is not None) for event in calls if isinstance(event, Evaluate))

    def structure(self, *more: Hashable) -> Structure:
        """What is done, without the numbers it is done with: plans of one structure differ in coefficients and times.

        What a guidance term is told beside numbers is part of it (a function `(x, level)`: the level), because terms
        are Python and see it.
        """
        items: list[Hashable] = []
        for item in self.items:
            if isinstance(item, Launch):
                outputs = tuple((output.slot, output.for_network, output.dtype) for output in item.outputs)
                read = tuple(item.inputs), tuple(item.draws), item.variance, item.rows
                items.append((*read, outputs, item.clip, item.table.shape, item.measured, item.squares))
                continue
            event = item.event
            seen: Hashable = None
            if isinstance(event, Guide):
                seen = event.term, event.how
            elif isinstance(event, Evaluate):
                seen = event.term
            elif isinstance(event, Apply):
                seen = Same(event.function)
            elif isinstance(event, Choose):
                seen = event.term, Same(event.selector)
            elif isinstance(event, Measure):
                seen = Same(event.function)
            counts = tuple(len(each(number)) for number in event.numbers)
            made = tuple(item.slots), item.output, item.variance, item.second, item.rows
            items.append((type(event), seen, counts, made))
        return Structure(
            (tuple(items), tuple(self.given.items()), tuple(slot for _, slot in self.noise), self.final, *more)
        )

    def parallel(self, at: int) -> int:
        """How many items from number `at` on are network and guidance of one evaluation; 0 if there are not both."""
        kinds: list[type] = []
        for item in islice(self.items, at, None):
            if isinstance(item, Launch) or not isinstance(item.event, (Evaluate, Guide)):
                break
            kinds.append(type(item.event))
        return len(kinds) if len(set(kinds)) == 2 else 0

    def pieces(self, scope: str) -> list[int]:
        """The ends of the parts the items are captured in: all at once ("loop"), or one a step ("step").

        An observed plan is cut after its reports, whatever the scope.
        """
        reports = [
            i + 1 for i, item in enumerate(self.items) if isinstance(item, Call) and isinstance(item.event, Report)
        ]
        cuts = reports
        if not reports and scope == "step":
            steps = [self.step_at(i) for i in range(len(self.items))]
            starts = [i for i, item in enumerate(self.items) if i > 0 and isinstance(item, Launch)]
            cuts = [i for i in starts if None not in (steps[i - 1], steps[i]) and steps[i - 1] != steps[i]]
        return sorted({*cuts, len(self.items)})

    def step_at(self, at: int) -> int | None:
        """The step of the first call from item `at` on, or None."""
        calls = (item for item in islice(self.items, at, None) if isinstance(item, Call))
        return next((call.event.step for call in calls), None)

    def __str__(self) -> str:
        from .plan_table import describe

        return describe(self)
