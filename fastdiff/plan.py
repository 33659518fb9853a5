"""A compiled run: launches of the one kernel, and the calls of the network and others between them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .trace import Evaluate, Event, NoiseBuffer


@dataclass
class Output:
    """One output of a launch: the slot it makes, whether it is a network input (cast to the network's dtype), and
    whether it is written for an observer only."""

    slot: int
    name: str
    for_network: bool
    observed: bool = False


@dataclass
class Launch:
    """One call of `fastdiff.ops.combine`: slots read, draws made, slots written, and the coefficient row."""

    inputs: list[int]
    draws: list[int]
    outputs: list[Output]
    clip: bool
    variance: int | None
    row: NDArray[np.float64]

    @property
    def largest(self) -> float:
        """The largest coefficient of a tensor or draw in the clipped value and in the outputs (not an observer's)."""
        linear = len(self.outputs) + self.clip
        rows = np.abs(self.row)[: linear * (len(self.inputs) + len(self.draws))].reshape(linear, -1)
        counts = [not output.observed for output in self.outputs] + [True] * self.clip
        return float(rows[counts].max(initial=0.0))


@dataclass
class Call:
    """Something done between launches: a trace event with the slots of its values."""

    event: Event
    slots: list[int]
    output: int | None = None
    variance: int | None = None


@dataclass
class Plan:
    """A compiled run: launches and calls in order. `print(plan)` shows it as a table.

    Attributes:
        items: in order of execution.
        names: of every slot.
        x_init: slot of the starting state, if it is given and read.
        noise: noise handed in as tensors, in the order of the draws, with its slot (None: drawn, but not read).
        final: slot of the result.
        dead: for every item, the slots nothing after it reads.
    """

    items: list[Launch | Call] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    x_init: int | None = None
    noise: list[tuple[NoiseBuffer, int | None]] = field(default_factory=list)
    final: int = -1
    dead: list[list[int]] = field(default_factory=list)

    @property
    def launches(self) -> list[Launch]:
        return [item for item in self.items if isinstance(item, Launch)]

    @property
    def evaluations(self) -> int:
        """Number of network evaluations (NFE)."""
        return sum(isinstance(item, Call) and isinstance(item.event, Evaluate) for item in self.items)

    def __str__(self) -> str:
        from .plan_table import describe

        return describe(self)
