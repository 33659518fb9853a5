"""What records and replays work on a device. `CudaGraphs` is CUDA's; the cache and the sampler know only the protocol.

The rules of capture (PyTorch's notes on CUDA graphs): addresses are frozen, so everything that varies lives in static
memory; nothing may synchronise; graphs that share a memory pool must replay one after the other, and what they return
must be copied out before another one replays.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")

_one_capture = threading.Lock()  # in a process, whatever the device
_given_up: list[_CudaGraph] = []  # to be freed when no capture is under way
_broken: list[Any] = []  # PyTorch's graphs whose capture was cut off: its allocators keep asking them


class Graph(Protocol):
    """Recorded work.

    Attributes:
        nodes: number of its operations, None if unknown.
    """

    nodes: int | None

    def replay(self) -> None:
        """Do the work again, on the current stream."""

    def reset(self) -> None:
        """Free it, after its last replay has ended."""


class Branch(Protocol):
    """Work inside `with` runs on a second stream, after what came before it."""

    def __enter__(self) -> Branch: ...

    def __exit__(self, *error: Any) -> None: ...

    def join(self) -> None:
        """What follows runs after the branch."""


class GraphDevice(Protocol):
    """Records on one device of one process: one capture stream, one memory pool."""

    @property
    def lock(self) -> contextlib.AbstractContextManager[Any]:
        """Held while a graph replays and its results are copied out; entering it also orders the current stream after
        the work of the last holder. The same thread may enter it again."""

    def warm_up(self, function: Callable[[], T]) -> T:
        """Run on the capture stream, after the current stream and before what follows on it."""

    def capture(self, function: Callable[[], T]) -> tuple[Graph, T]:
        """Record what the function launches. Raises what made the capture fail."""

    def branch(self) -> Branch:
        """A second stream, inside a capture."""

    def memory(self) -> int:
        """Bytes the pool holds."""

    def synchronize(self) -> None:
        """Wait until the device has nothing left to do."""


class CudaGraphs:
    """CUDA graphs on one GPU."""

    def __init__(self, device: torch.device):
        self._device = device
        self._graphs: weakref.WeakSet[_CudaGraph] = weakref.WeakSet()
        self.lock = _StreamOrderedLock(device)
        self._renew()

    def _renew(self) -> None:
        """A new pool and new streams: at the start, and after a failed capture has left the old ones in doubt."""
        self._stream, self._side = torch.cuda.Stream(self._device), torch.cuda.Stream(self._device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], T]) -> T:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                return function()
        finally:
            current.wait_stream(self._stream)

    def capture(self, function: Callable[[], T]) -> tuple[Graph, T]:
        try:
            with _one_capture, _no_collection(), torch.cuda.device(self._device):
                _free_all()
                return self._record(function)
        finally:
            _free_given_up()

    def _record(self, function: Callable[[], T]) -> tuple[Graph, T]:
        if self._pool not in {graph.pool for graph in self._graphs}:  # the pool went with its last graph
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph(keep_graph=True)  # kept so that its nodes can be counted
        current, cause = torch.cuda.current_stream(self._device), []
        try:
            with self._capturing(graph):
                try:
                    result = function()
                except BaseException as error:
                    cause.append(error)
                    raise
            graph.instantiate()
        except BaseException as error:
            # Ending a capture that an error has broken raises another, and leaves the capture stream current.
            self._recover(graph)
            torch.cuda.set_stream(current)
            first = cause.pop() if cause else error
            try:
                raise first from None
            finally:
                del first  # or it and this frame, with the graph and what the capture made, would keep each other
        recorded = _CudaGraph(graph, self)
        self._graphs.add(recorded)
        return recorded, result

    def _capturing(self, graph: torch.cuda.CUDAGraph) -> contextlib.AbstractContextManager[None]:
        # Of other threads (a loader that pins memory) only what they do to this capture may fail it.
        options: Any = {"pool": self._pool, "stream": self._stream, "capture_error_mode": "thread_local"}
        return torch.cuda.graph(graph, **options)

    def _recover(self, graph: torch.cuda.CUDAGraph) -> None:
        """Go on after a failed capture.

        When CUDA refuses to end one, PyTorch's `capture_end` gives up half-way: its allocator still records into the
        pool, so that the next `empty_cache` fails, and its random generator is still in capture mode, so that the next
        draw fails. What it left out is done here; the generator comes out of it with any capture that ends.
        """
        pool, index = self._pool, self._device.index
        self._renew()
        torch_c: Any = torch._C
        try:
            torch_c._cuda_endAllocateToPool(index, pool)
        except (AttributeError, RuntimeError):  # not recording: the capture did end, or never began
            return
        _broken.append(graph)
        with contextlib.suppress(AttributeError, RuntimeError):  # a broken device says so at the next call
            torch_c._cuda_releasePool(index, pool)
            with self._capturing(torch.cuda.CUDAGraph(keep_graph=True)):
                torch.zeros(1, device=self._device)

    def branch(self) -> _CudaBranch:
        return _CudaBranch(self._device, self._side)

    def freed(self, graph: _CudaGraph) -> None:
        """A graph is gone; with the last one, its memory goes back to the device."""
        self._graphs.discard(graph)
        if not self._graphs:
            torch.cuda.empty_cache()

    def memory(self) -> int:
        pools = {graph.pool for graph in self._graphs}
        segments = torch.cuda.memory_snapshot() if pools else []
        return sum(segment["total_size"] for segment in segments if tuple(segment["segment_pool_id"]) in pools)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)


class _CudaGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph, device: CudaGraphs):
        self._graph, self._device = graph, device
        self.pool = tuple(graph.pool())
        self.nodes = _count_nodes(graph)
        self.replay = graph.replay

    def reset(self) -> None:
        _given_up.append(self)
        _free_given_up()

    def free(self) -> None:
        """What `reset` does once no capture is under way."""
        self._device.synchronize()
        self._graph.reset()
        self._device.freed(self)


def _free_given_up() -> None:
    """Free what was given up, now or, if a capture is under way, after it.

    Graphs are given up at any time and in any thread (a sampler that is collected), and freeing one waits for the
    device, which would break a capture.
    """
    while _given_up and _one_capture.acquire(blocking=False):
        try:
            _free_all()
        finally:
            _one_capture.release()


def _free_all() -> None:
    while _given_up:
        _given_up.pop().free()


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Without Python's garbage collector: what it frees (another graph, an event) may do what breaks a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _CudaBranch:
    """No tensor needs `record_stream`: a branch begins after everything before it and is joined before its results are
    read, and the tensors it frees are taken again only by later branches."""

    def __init__(self, device: torch.device, side: torch.cuda.Stream):
        self._main, self._side = torch.cuda.current_stream(device), side
        self._inside = torch.cuda.stream(side)

    def __enter__(self) -> _CudaBranch:
        self._side.wait_stream(self._main)
        self._inside.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._inside.__exit__(*error)

    def join(self) -> None:
        self._main.wait_stream(self._side)


class _StreamOrderedLock(contextlib.AbstractContextManager):
    """A lock for the host that also makes the stream of each holder wait for the work of the one before."""

    def __init__(self, device: torch.device):
        self._device, self._lock = device, threading.RLock()
        self._done: torch.cuda.Event | None = None

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._done is not None:
            torch.cuda.current_stream(self._device).wait_event(self._done)

    def __exit__(self, *error: Any) -> None:
        try:
            self._done = self._done or torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(self._device))
        finally:
            self._lock.release()


def _count_nodes(graph: torch.cuda.CUDAGraph) -> int | None:
    """PyTorch does not say how many nodes a graph has; the CUDA runtime it has loaded does."""
    count = ctypes.c_size_t()
    try:
        runtime = ctypes.CDLL(f"libcudart.so.{str(torch.version.cuda).split('.')[0]}")
        failed = runtime.cudaGraphGetNodes(ctypes.c_void_p(graph.raw_cuda_graph()), None, ctypes.byref(count))
    except (OSError, AttributeError):
        return None
    return None if failed else count.value


GRAPH_DEVICES: dict[str, Callable[[torch.device], GraphDevice]] = {"cuda": CudaGraphs}
"""What records on the devices of a type."""


def has_graphs(device: torch.device) -> bool:
    """Whether work on a device can be captured."""
    return device.type in GRAPH_DEVICES


@cache
def graph_device(device: torch.device) -> GraphDevice:
    """The one `GraphDevice` of a device in this process."""
    return GRAPH_DEVICES[device.type](device)


_running = threading.local()


@contextlib.contextmanager
def exclusive(device: GraphDevice) -> Iterator[None]:
    """The device's turn: nothing else replays on it until the results are copied out."""
    with device.lock:
        outer = getattr(_running, "devices", ())
        _running.devices = (*outer, device)
        try:
            yield
        finally:
            _running.devices = outer


def is_running(device: GraphDevice) -> bool:
    """Whether this thread is inside a run on the device: a callback that draws samples itself."""
    return device in getattr(_running, "devices", ())


def is_captured(device: torch.device) -> bool:
    """Whether someone else captures what this thread launches on the device: no graph can be made or replayed there."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
