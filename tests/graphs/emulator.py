"""CUDA graphs on the CPU: `Emulator` records the operators of a capture and replays them into the same storages.

What goes wrong with a CUDA graph goes wrong here too, and loudly:

- Whatever would synchronise, or copy from the host, is refused during a capture, in words like CUDA's.
- Python does not run in a replay, so a number read in Python stays what it was.
- A capture computes nothing that lasts: afterwards memory made by the capture is poisoned, memory it wrote outside is
  as it was, and PyTorch's generator has not moved. Only a replay gives results.
- A replay first poisons all memory of its graph, so reading what this replay has not yet written shows, and that of
  the other graphs of the pool, so a result that was not copied out in time shows. It spares what was still in use when
  its graph was captured: there the pool could not have put it. So graphs replayed in the order of their capture may
  read each other's results.
- Memory outside the graph is not kept alive. Reading it after it was freed is an error.
- Work of a parallel branch that is not joined, or that touches memory the first stream uses meanwhile, is an error.

Noise of PyTorch's default generator is allowed, because CUDA registers that generator with every graph: each replay
draws anew. Any other generator is refused, for it would have to be registered.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from .tape import Memory, Refuse, Tape, refusal

T = TypeVar("T")


class Branch:
    """A second stream of a capture, from its `with` block until `join`."""

    def __init__(self, emulator: Emulator):
        self._emulator = emulator
        self.read: set[Memory] = set()
        self.written: set[Memory] = set()

    def __enter__(self) -> Branch:
        self._emulator.log.append(("branch", None))
        tape = self._emulator.tape
        if tape is not None:
            if tape.stream is not None:
                raise RuntimeError("a branch inside a branch")
            tape.stream = self
            tape.branches.append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._emulator.tape is not None:
            self._emulator.tape.stream = None

    def join(self) -> None:
        """Make the first stream wait."""
        self._emulator.log.append(("join", None))
        tape = self._emulator.tape
        if tape is not None:
            if tape.stream is self:
                raise RuntimeError("a branch must end before it is joined")
            tape.branches = [branch for branch in tape.branches if branch is not self]


class EmulatedGraph:
    """What a capture recorded.

    Attributes:
        nodes: number of kernels: operators that are neither views nor allocations.
        external: addresses of the outside memory a replay reads.
        written: addresses of the outside memory a replay writes.
        bytes: of the memory the capture made.
    """

    def __init__(self, emulator: Emulator, tape: Tape, number: int, spared: set[Memory]):
        self._emulator, self._number = emulator, number
        self._operations, self._memory = tape.operations, list(tape.memory.values())
        self.nodes = len(self._operations)
        outside = [memory for memory in self._memory if not memory.made and memory.bytes]
        self.external = sorted({memory.pointer for memory in outside if memory.read})
        self.written = sorted({memory.pointer for memory in outside if memory.before is not None})
        self.bytes = sum(memory.bytes for memory in self.made)
        self._spared = weakref.WeakSet(spared)
        self._taken = weakref.WeakSet(memory for memory in spared if not memory.used_outside())
        self._reset = False

    @property
    def made(self) -> list[Memory]:
        """Memory the capture made."""
        return [memory for memory in self._memory if memory.made]

    @property
    def held(self) -> int:
        """Bytes the capture made and a tensor still looks at; the rest serves the other graphs of the pool too."""
        return sum(memory.bytes for memory in self.made if memory.used_outside())

    def replay(self) -> None:
        """Run the recorded operators, and nothing else, into the recorded storages."""
        if self._reset:
            raise RuntimeError("replay of a graph that was reset")
        self._emulator._replay(self)

    def reset(self) -> None:
        """Destroy the graph; its memory goes back to the pool."""
        if self._reset:
            return
        if self._emulator.tape is not None:
            raise refusal("cudaGraphExecDestroy")
        self._reset = True
        self._operations, self._memory = [], []
        self._emulator._forget(self)


class Emulator:
    """A `fastdiff.graphs.device.GraphDevice` on the CPU, with one pool.

    Attributes:
        log: (event, detail) of every warm_up, capture, replay, reset, branch, join and synchronize; the detail of a
            capture, replay or reset is the number of the capture.
        fail_next_capture: an error that the next capture raises after it has run, then None.
    """

    _capturing = threading.Lock()  # one capture at a time in a process

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.lock = threading.RLock()
        self.log: list[tuple[str, Any]] = []
        self.fail_next_capture: BaseException | None = None
        self.tape: Tape | None = None
        self._graphs: list[weakref.ref[EmulatedGraph]] = []
        self._captures = 0
        self._reserved = 0
        self._running = threading.Lock()

    @property
    def graphs(self) -> list[EmulatedGraph]:
        """Graphs that live, oldest first."""
        return [graph for reference in self._graphs if (graph := reference()) is not None]

    def events(self, *kinds: str) -> list[tuple[str, Any]]:
        """The log's events of some kinds."""
        return [event for event in self.log if event[0] in kinds]

    def warm_up(self, function: Callable[[], T]) -> T:
        """Run the function as a capture would, without one."""
        self._forbid_in_capture("warm_up")
        self.log.append(("warm_up", None))
        return function()

    def capture(self, function: Callable[[], T]) -> tuple[EmulatedGraph, T]:
        """Record the function.

        Raises:
            RuntimeError: another capture is under way, or the function did what a capture does not permit.
        """
        if not Emulator._capturing.acquire(blocking=False):
            raise RuntimeError("CUDA error: a capture is already under way in this process (one at a time)")
        generator = torch.get_rng_state()
        spared = {memory for graph in self.graphs for memory in graph.made if memory.used_outside()}
        tape = self.tape = Tape()
        self.log.append(("capture", self._captures))
        try:
            with Refuse(tape), tape:
                result = function()
            if self.fail_next_capture is not None:
                error, self.fail_next_capture = self.fail_next_capture, None
                raise error
            if tape.refused is not None:
                raise RuntimeError(
                    "CUDA error: operation failed due to a previous error during capture"
                ) from tape.refused
            if tape.branches:
                raise RuntimeError("CUDA error: capturing stream has unjoined work")
            graph = EmulatedGraph(self, tape, self._captures, spared)
        finally:
            for memory in tape.memory.values():
                if memory.made:
                    memory.poison(0)  # an index, for the next capture, which here computes
                memory.restore()
            torch.set_rng_state(generator)
            self.tape = None
            Emulator._capturing.release()
        self._captures += 1
        self._graphs.append(weakref.ref(graph))
        self._grow()
        return graph, result

    def branch(self) -> Branch:
        """`with device.branch() as b: ...` runs on a second stream; `b.join()` makes the first wait for it."""
        return Branch(self)

    def memory(self) -> int:
        """Bytes the pool holds: it grows by what is not free in it, and is given back with its last graph."""
        self._grow()
        return self._reserved

    def synchronize(self) -> None:
        """Wait for the device."""
        self._forbid_in_capture("cudaDeviceSynchronize")
        self.log.append(("synchronize", None))

    def _forbid_in_capture(self, name: str) -> None:
        if self.tape is not None:
            raise self.tape.refuse(name)

    def _grow(self) -> None:
        """The pool holds results still looked at, and the largest graph's temporaries, which all graphs share."""
        held = [graph.held for graph in self.graphs]
        temporary = [graph.bytes - h for graph, h in zip(self.graphs, held)]
        self._reserved = max(self._reserved, sum(held) + max(temporary)) if held else 0

    def _replay(self, graph: EmulatedGraph) -> None:
        self._forbid_in_capture("cudaGraphLaunch")
        if not self._running.acquire(blocking=False):
            raise RuntimeError("two graphs of one pool are replayed at once")
        try:
            self.log.append(("replay", graph._number))
            for memory in [memory for other in self.graphs for memory in other.made]:
                if memory not in graph._spared:
                    memory.poison()
            with torch.no_grad(), torch._C._DisableAutocast(), torch._C._DisableTorchDispatch():
                for operation in graph._operations:
                    operation.replay()
            for memory in graph._taken:  # freed while the graph was captured, so it may have taken it
                memory.poison()
        finally:
            self._running.release()

    def _forget(self, graph: EmulatedGraph) -> None:
        self.log.append(("reset", graph._number))
        self._graphs = [reference for reference in self._graphs if reference() not in (None, graph)]
        self._grow()
