"""One captured run: static memory for everything that varies, the graphs recorded over it, and their replay."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..executor import Executor
from ..plan import Call
from ..process import Level
from ..request import Request
from ..trace import Report
from ..walk import Walk
from .device import Graph, GraphDevice
from .key import flatten

MAX_LOOP_NODES = 40_000
"""A loop of more operations is captured step by step: making a graph takes time and memory for every operation."""

WARM_UPS = 3
"""Network evaluations before a capture, at least: libraries choose kernels and take their memory in the first ones."""


class CaptureError(RuntimeError):
    """Recording failed, for the reason given."""


class CapturedRun:
    """The work of one signature, recorded.

    Args:
        scope: "loop", "step", or "auto": loop, unless that has more than `MAX_LOOP_NODES` operations.

    Attributes:
        graphs: one for the loop, or one for every step.
        milliseconds: that warming up and recording took.

    Raises:
        CaptureError: the recording failed. Errors of the model's own come as they are, before anything is recorded.
    """

    def __init__(self, device: GraphDevice, executor: Executor, request: Request, scope: str):
        start = time.perf_counter()
        self._executor: Executor | None = executor  # whose numbers are in the static memory
        self._plan = executor.plan
        self._numbers = executor.numbers.for_batch(request.shape[0]).clone()
        self._seeds = request.seeds.clone()
        self._given = {name: tensor.clone() for name, tensor in request.given.items()}
        leaves, spec = pytree.tree_flatten(request.cond)
        self._leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        observed = 2 if request.report is not None else 0
        self._reported = [self._seeds.new_empty(request.shape, dtype=executor.dtype) for _ in range(observed)]
        calls = replace(request, cond=pytree.tree_unflatten(self._leaves, spec)).callbacks()
        calls.branch, calls.report, calls.tick = device.branch, self._keep_reported, None

        def walk() -> Walk:
            tables = executor.tables(self._numbers)
            return Walk(executor, tables, self._numbers, request.shape, self._seeds, self._given, calls)

        self.graphs: list[Graph] = []
        self._final: Tensor | None = None
        with weights_cast_in_every_call(executor.device):
            try:
                with _generators_left_alone(executor.device):
                    for _ in range(-(-WARM_UPS // max(1, executor.plan.evaluations))):
                        device.warm_up(lambda: walk().advance(len(executor.plan.items)))
            except torch.OutOfMemoryError as error:  # an eager run needs less
                raise CaptureError(f"{type(error).__name__}: {error}") from error
            try:
                self._final = self._record(device, walk, scope)
            except BaseException as error:
                self.reset()
                if not isinstance(error, Exception):
                    raise
                raise CaptureError(f"{type(error).__name__}: {error}") from error
        self.milliseconds = 1e3 * (time.perf_counter() - start)

    def _record(self, device: GraphDevice, walk: Callable[[], Walk], scope: str) -> Tensor:
        plan = self._plan
        self._ends, run = plan.pieces("loop" if scope == "loop" else "step"), walk()
        self._steps = [plan.step_at(begin) for begin in (0, *self._ends[:-1])]
        for end in self._ends:
            graph, _ = device.capture(lambda end=end: run.advance(end))  # type: ignore[misc]
            self.graphs.append(graph)
            if scope == "auto" and len(self._ends) * (graph.nodes or 0) <= MAX_LOOP_NODES:
                if self._ends != plan.pieces("loop"):
                    self.reset()
                    return self._record(device, walk, "loop")
                scope = "step"
        return run.final

    def replay(self, executor: Executor, request: Request) -> Tensor:
        """Run with the request's values and the executor's numbers: the final state, in memory of its own."""
        self._load(executor, request)
        plan, rows = executor.plan, request.rows
        for end, step, graph in zip(self._ends, self._steps, self.graphs):
            if request.tick is not None and step is not None:
                request.tick(step)
            graph.replay()
            last = plan.items[end - 1]
            if request.report is not None and isinstance(last, Call) and isinstance(last.event, Report):
                seen = [static[:rows].clone() for static, _ in zip(self._reported, last.slots)]
                request.report(last.event.step, last.event.level, seen[0], seen[1] if len(seen) > 1 else None)
        assert self._final is not None
        return self._final[:rows].clone()

    def _load(self, executor: Executor, request: Request) -> None:
        """Put what a call brings into the static memory."""
        if self._executor is not executor:
            self._executor = None  # until all of them are there
            self._numbers.copy_(executor.numbers)
            self._executor = executor
        self._seeds.copy_(request.seeds)
        for name, tensor in request.given.items():
            self._given[name].copy_(tensor)
        for static, leaf in zip(self._leaves, flatten(request.cond)[0]):
            if isinstance(static, Tensor):
                static.copy_(leaf)

    def _keep_reported(self, step: int, level: Level | None, x: Tensor, denoised: Tensor | None) -> None:
        for static, value in zip(self._reported, (x, denoised)):
            if value is not None:
                static.copy_(value)

    def reset(self) -> None:
        """Free the graphs and what they return."""
        self._final = None
        for graph in self.graphs:
            graph.reset()
        self.graphs = []

    @property
    def nodes(self) -> int:
        """Operations in all graphs, as far as they are known."""
        return sum(graph.nodes or 0 for graph in self.graphs)


@contextmanager
def _generators_left_alone(device: torch.device) -> Iterator[None]:
    """Warm-ups draw for a network with dropout; the same seed of PyTorch's must give the run that comes the same."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


@contextmanager
def weights_cast_in_every_call(device: torch.device) -> Iterator[None]:
    """Autocast without its cache: a cast kept from outside a graph would be stale, or freed, inside it."""
    before = torch.is_autocast_cache_enabled()
    if torch.is_autocast_enabled(device.type):
        torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
