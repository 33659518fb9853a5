"""The graphs of a sampler: which call gets one, which ones are kept, and what they have cost."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from weakref import WeakSet, finalize

from torch import Tensor

from ..errors import warn
from ..executor import Executor
from ..plan import Same
from ..request import Request
from .captured import CapturedRun, CaptureError
from .device import GraphDevice, exclusive, graph_device, is_captured, is_running
from .key import flags, layout, weights

_T = TypeVar("_T")

_REMEMBERED = 1024  # signatures called once, or that failed
_RESTLESS = 5  # captures in a row that were for nothing, because tensors of the model were others in the next call


@dataclass
class GraphStats:
    """What a sampler's graphs have done.

    Attributes:
        hits: calls that replayed a graph kept from before.
        misses: calls of a signature without a graph.
        captures: graphs made (a run captured step by step counts once); milliseconds: they took, warm-up included.
        evictions: graphs given up for others.
        fallbacks: calls that wanted a graph and ran eagerly, because a capture had failed or could not be tried.
        padded: samples drawn in addition to fill up buckets.
        graphs, nodes: kept now, and the operations in them, as far as they are known.
        bytes: of device memory that the pool of all samplers' graphs holds.
        reasons: why captures failed.
    """

    hits: int = 0
    misses: int = 0
    captures: int = 0
    milliseconds: float = 0.0
    evictions: int = 0
    fallbacks: int = 0
    padded: int = 0
    graphs: int = 0
    nodes: int = 0
    bytes: int = 0
    reasons: list[str] = field(default_factory=list)


@dataclass
class _History:
    """How often in a row the model's tensors were others than in the call before, and no graph could be replayed."""

    state: Hashable
    changes: int = 0


@dataclass
class _Entry:
    key: Hashable
    run: CapturedRun
    history: _History
    kept: list[Any]  # what the graph reads or was recorded from: it must not be freed before the graph


class GraphCache:
    """Captured runs by signature, least recently used first.

    Args:
        max_graphs: kept at most.
        max_bytes: that the pool, shared by all samplers of a device, may hold. A capture that makes it larger empties
            the pool first; one that needs more by itself is not kept.
    """

    def __init__(self, max_graphs: int, max_bytes: int):
        self._max_graphs, self._max_bytes = max_graphs, max_bytes
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._failed: OrderedDict[Hashable, None] = OrderedDict()
        self._state: Hashable = None
        self._histories: OrderedDict[Hashable, _History] = OrderedDict()
        self._device: GraphDevice | None = None
        self._stats = GraphStats()
        _caches.add(self)
        finalize(self, _reset, self._entries).atexit = False

    def __reduce__(self) -> tuple[Any, ...]:
        return GraphCache, (self._max_graphs, self._max_bytes)  # graphs belong to this process and these weights

    def run(self, executor: Executor, request: Request, scope: str, waits: bool) -> Tensor | None:
        """The final state from a graph, or None: the caller runs eagerly.

        Args:
            scope: see `CapturedRun`.
            waits: capture at the second call of a signature, not at the first.
        """
        device = self._device = graph_device(executor.device)
        if is_running(device) or is_captured(executor.device):  # called by a callback of a replay, or in a capture
            return None
        try:
            work, state, tensors = self._key(executor, request, scope)
        except ValueError as error:
            self._stats.misses += 1
            self._fail((executor.structure, str(error)), str(error))
            return None
        key = work, state
        with exclusive(device):
            entry = self._entries.get(key)
            if entry is not None:
                self._stats.hits += 1
                entry.history.changes = 0
            else:
                entry = self._miss(device, work, state, executor, request, scope, waits, tensors)
                if entry is None:
                    return None
            self._entries.move_to_end(entry.key)  # the same object, so that nothing is compared again
            self._stats.padded += request.shape[0] - request.rows
            return entry.run.replay(executor, request)

    def _key(self, executor: Executor, request: Request, scope: str) -> tuple[Hashable, Hashable, list[Tensor]]:
        """(the work, the state of the model and of whatever else is called, the weights)."""
        called = request.called
        given, more = layout(request.cond, executor.device)
        for gives in request.gives:  # a null conditioning's tensors are read in place
            fixed, functions = layout(gives, executor.device)
            given, more = (given, fixed), [*more, gives, *functions]
        tensors, state = weights([*called, *executor.functions, *more])
        run = executor.structure, tuple(request.shape), tuple(request.given), tuple(map(Same, called)), request.kinds
        return (scope, run, given, flags(executor.device)), state, tensors

    def _miss(
        self,
        device: GraphDevice,
        work: Hashable,
        state: Hashable,
        executor: Executor,
        request: Request,
        scope: str,
        waits: bool,
        tensors: list[Tensor],
    ) -> _Entry | None:
        """A new graph for (work, state), unless it is too early, or known to be in vain."""
        if state == self._state:
            state = self._state  # one of a thousand keys' states is as long as the list of the weights
        self._state, key = state, (work, state)
        self._stats.misses += 1
        if key in self._failed or work in self._failed:
            self._stats.fallbacks += 1
            return None
        history = self._histories.get(work) or _remember(self._histories, work, _History(state))
        if history.state != state:
            history.state, history.changes = state, history.changes + 1
        if history.changes >= _RESTLESS:
            reason = "tensors of the model were others in every call: it keeps what it computes, or is loaded each time"
            self._fail(work, reason)
            return None
        if waits and key not in self._seen:
            _remember(self._seen, key, None)
            return None
        return self._capture(device, key, executor, request, scope, tensors, history)

    def _capture(
        self,
        device: GraphDevice,
        key: Hashable,
        executor: Executor,
        request: Request,
        scope: str,
        tensors: list[Tensor],
        history: _History,
    ) -> _Entry | None:
        try:
            run = CapturedRun(device, executor, request, scope)
            if device.memory() > self._max_bytes:
                run.reset()
                _empty_pool(device)
                run = CapturedRun(device, executor, request, scope)
            needed = device.memory()
            if needed > self._max_bytes:
                run.reset()
                raise CaptureError(f"it needs {needed / 2**20:.0f} MiB, more than max_graph_bytes")
        except CaptureError as error:
            self._fail(key, str(error))
            return None
        storages = [tensor.untyped_storage() for tensor in tensors]  # of a tensor whose .data may be replaced
        entry = self._entries[key] = _Entry(key, run, history, [request.model, request.terms, *storages])
        self._stats.captures += 1
        self._stats.milliseconds += run.milliseconds
        while len(self._entries) > self._max_graphs:
            self._evict()
        return entry

    def _evict(self) -> None:
        _, entry = self._entries.popitem(last=False)
        entry.run.reset()
        self._stats.evictions += 1

    def clear(self) -> None:
        """Give up every graph."""
        while self._entries:
            self._evict()

    def _fail(self, key: Hashable, reason: str) -> None:
        self._stats.fallbacks += 1
        if key in self._failed:
            return
        _remember(self._failed, key, None)
        self._stats.reasons.append(reason)
        warn(f"fastdiff runs this loop eagerly, because it could not be captured in a graph: {reason}")

    def stats(self) -> GraphStats:
        """The counts so far."""
        if self._device is None:
            return replace(self._stats, reasons=[])
        with self._device.lock:  # not amid a capture by another thread
            runs = [entry.run for entry in self._entries.values()]
            held, nodes = self._device.memory() if runs else 0, sum(run.nodes for run in runs)
            reasons = list(self._stats.reasons)
            return replace(self._stats, graphs=len(runs), nodes=nodes, bytes=held, reasons=reasons)


_caches: WeakSet[GraphCache] = WeakSet()


def _empty_pool(device: GraphDevice) -> None:
    """Give up every graph on a device, so that its pool goes back."""
    for cache in list(_caches):
        if cache._device is device:
            cache.clear()


def _reset(entries: OrderedDict[Hashable, _Entry]) -> None:
    """Free the graphs of a cache that nobody uses any more."""
    while entries:
        entries.popitem()[1].run.reset()


def _remember(things: OrderedDict[Hashable, _T], key: Hashable, value: _T) -> _T:
    things[key] = value
    if len(things) > _REMEMBERED:
        things.popitem(last=False)
    return value
