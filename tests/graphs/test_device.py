"""CUDA's graph device over a stand-in for `torch.cuda`: what it calls, in which order, and what it leaves behind.

The stand-in keeps PyTorch 2.11's rules: ending a capture that an error has cut off raises, and leaves the allocator
recording, the random generator in capture mode and the capture stream current; a pool without graphs may not be used
again; neither waiting nor freeing is allowed while something is captured.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import threading
import weakref
from types import SimpleNamespace

import pytest
import torch

from fastdiff.graphs import device as devices

GPU = torch.device("cuda", 1)


class Cuda:
    """A GPU, number 1 of two, as far as graphs go."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.numbers = itertools.count()
        self.current, self.device = {0: Stream(self, 0), 1: Stream(self, 1)}, 0
        self.capturing: Graph | None = None
        self.cut_off = False
        self.recording: set[tuple[int, int]] = set()
        self.users: dict[tuple[int, int], int] = {}
        self.generator_captures = False

    def forbidden(self, what: str) -> None:
        if self.capturing is not None:
            self.cut_off = True
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({what})")

    def synchronize(self, device: torch.device | None = None) -> None:
        self.forbidden("synchronize")
        self.log.append("synchronize")

    def empty_cache(self) -> None:
        self.forbidden("empty_cache")
        if self.recording:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    def draw(self) -> None:
        if self.generator_captures and self.capturing is None:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")

    def set_stream(self, stream: Stream) -> None:
        self.device = stream.index
        self.current[stream.index] = stream

    def current_stream(self, device: torch.device | None = None) -> Stream:
        return self.current[self.device if device is None else device.index]

    @contextlib.contextmanager
    def on(self, device: torch.device):
        before, self.device = self.device, device.index
        try:
            yield
        finally:
            self.device = before

    def end_allocate(self, index: int, pool: tuple[int, int]) -> None:
        if pool not in self.recording:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.recording.discard(pool)

    def release(self, index: int, pool: tuple[int, int]) -> None:
        self.users[pool] -= 1
        assert self.users[pool] >= 0

    def snapshot(self) -> list[dict]:
        segments = [{"segment_pool_id": pool, "total_size": 1000} for pool in self.users if self.users[pool]]
        return [*segments, {"segment_pool_id": (0, 0), "total_size": 7}]


class Stream:
    def __init__(self, cuda: Cuda, index: int):
        self.cuda, self.index, self.number = cuda, index, next(cuda.numbers)
        self.device = torch.device("cuda", index)

    def wait_stream(self, other: Stream) -> None:
        self.cuda.log.append(f"{self.number} waits for {other.number}")

    def wait_event(self, event: Event) -> None:
        self.cuda.log.append(f"{self.number} waits for what {event.stream.number} did")


class Event:
    stream: Stream

    def record(self, stream: Stream) -> None:
        self.stream = stream


class Graph:
    """`torch.cuda.CUDAGraph`."""

    def __init__(self, cuda: Cuda):
        self.cuda, self.ended = cuda, False

    def capture_begin(self, pool: tuple[int, int], capture_error_mode: str, **later_options: bool) -> None:
        cuda = self.cuda
        assert capture_error_mode == "thread_local" and cuda.device == 1
        cuda.generator_captures = True
        assert cuda.users.get(pool, 1) > 0, "use_count > 0 INTERNAL ASSERT FAILED"
        cuda.users[pool] = cuda.users.get(pool, 0) + 1
        cuda.recording.add(pool)
        self._pool, cuda.capturing, cuda.cut_off = pool, self, False
        cuda.log.append(f"capture on {cuda.current_stream().number}")

    def capture_end(self) -> None:
        cuda = self.cuda
        cuda.capturing = None
        if cuda.cut_off:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        cuda.recording.discard(self._pool)
        cuda.generator_captures, self.ended = False, True

    def instantiate(self) -> None:
        assert self.ended

    def pool(self) -> tuple[int, int]:
        assert self.ended
        return self._pool

    def replay(self) -> None:
        self.cuda.log.append("replay")

    def reset(self) -> None:
        self.cuda.forbidden("cudaGraphExecDestroy")
        if self.ended:
            self.cuda.users[self._pool] -= 1
        self.ended = False

    __del__ = reset


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    fake = Cuda()
    handles = itertools.count(1)
    for name, value in {
        "Stream": lambda device: Stream(fake, device.index),
        "Event": Event,
        "CUDAGraph": lambda keep_graph: Graph(fake),
        "graph_pool_handle": lambda: (0, next(handles)),
        "current_stream": fake.current_stream,
        "set_stream": fake.set_stream,
        "device": fake.on,
        "synchronize": fake.synchronize,
        "empty_cache": fake.empty_cache,
        "memory_snapshot": fake.snapshot,
        "_get_device_index": lambda device, optional: fake.device,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name, function in {
        "_host_emptyCache": lambda: None,
        "_cuda_endAllocateToPool": fake.end_allocate,
        "_cuda_releasePool": fake.release,
    }.items():
        monkeypatch.setattr(torch._C, name, function, raising=False)
    monkeypatch.setattr(devices.torch, "zeros", lambda *size, device: fake.draw())
    monkeypatch.setattr(devices, "_count_nodes", lambda graph: 5)
    monkeypatch.setattr(devices, "_broken", [])
    return fake


@pytest.fixture
def machine(cuda: Cuda) -> devices.CudaGraphs:
    return devices.CudaGraphs(GPU)


def fail(cuda: Cuda) -> None:
    """What `.item()` does in a capture."""
    cuda.forbidden("item")


def is_healthy(cuda: Cuda) -> bool:
    """What every program does after a capture works again, and the streams are those of before."""
    cuda.empty_cache()
    cuda.draw()
    return cuda.device == 0 and not cuda.recording and gc.isenabled() and not devices._one_capture.locked()


def test_warm_up_and_capture_are_on_one_stream_and_leave_the_current_one(cuda, machine):
    seen = []
    before = cuda.current_stream(GPU)
    machine.warm_up(lambda: seen.append(cuda.current_stream()))
    graph, result = machine.capture(lambda: (seen.append(cuda.current_stream()), 3)[1])
    assert result == 3 and graph.nodes == 5
    assert seen[0] is seen[1] is not before and cuda.current_stream(GPU) is before
    own = seen[0].number
    assert cuda.log[:2] == [f"{own} waits for {before.number}", f"{before.number} waits for {own}"]
    assert is_healthy(cuda)


def test_a_warm_up_that_fails_is_waited_for_too(cuda, machine):
    with pytest.raises(ZeroDivisionError):
        machine.warm_up(lambda: 1 / 0)
    assert len(cuda.log) == 2 and is_healthy(cuda)


def test_an_interrupt_is_not_hidden_by_the_capture_it_cut_off(cuda, machine):
    def function() -> None:
        cuda.cut_off = True
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        machine.capture(function)
    assert is_healthy(cuda)


@pytest.mark.parametrize("kept", [0, 1], ids=["first", "beside another graph"])
def test_a_capture_that_was_cut_off_leaves_pytorch_as_it_was(cuda, machine, kept):
    graphs = [machine.capture(lambda: None)[0] for _ in range(kept)]
    before = cuda.current_stream(GPU)
    with pytest.raises(RuntimeError, match="item"):  # the cause, not what ending the capture said
        machine.capture(lambda: fail(cuda))
    assert cuda.current_stream(GPU) is before and is_healthy(cuda)
    assert sum(cuda.users.values()) == kept
    graphs.append(machine.capture(lambda: None)[0])
    for graph in graphs:
        graph.reset()
    assert not any(cuda.users.values()) and is_healthy(cuda)


def test_an_error_of_the_function_ends_the_capture_as_usual(cuda, machine):
    gc.collect()
    gc.disable()  # what is freed is freed at once
    try:
        with contextlib.suppress(ZeroDivisionError):
            machine.capture(lambda: 1 / 0)
        assert not any(cuda.users.values()) and not devices._broken
    finally:
        gc.enable()
    assert is_healthy(cuda)
    with pytest.raises(ZeroDivisionError):
        machine.capture(lambda: 1 / 0)


def test_graphs_share_a_pool_that_is_renewed_when_its_last_graph_has_gone(cuda, machine):
    first, second = machine.capture(lambda: None)[0], machine.capture(lambda: None)[0]
    assert first.pool == second.pool and machine.memory() == 1000
    first.reset()
    assert machine.memory() == 1000
    second.reset()
    assert machine.memory() == 0
    third = machine.capture(lambda: None)[0]
    assert third.pool != first.pool and machine.memory() == 1000


def test_a_pool_may_empty_while_graphs_of_an_older_one_live(cuda, machine):
    first = machine.capture(lambda: None)[0]
    with pytest.raises(RuntimeError):
        machine.capture(lambda: fail(cuda))
    second = machine.capture(lambda: None)[0]
    second.reset()
    third = machine.capture(lambda: None)[0]
    assert len({first.pool, second.pool, third.pool}) == 3 and machine.memory() == 2000


def test_a_graph_given_up_during_a_capture_is_freed_after_it(cuda, machine):
    old = [machine.capture(lambda: None)[0] for _ in range(2)]
    during = []

    def function() -> None:
        for graph in old:
            thread = threading.Thread(target=graph.reset)
            thread.start()
            thread.join()
        during.append(sum(cuda.users.values()))

    graph, _ = machine.capture(function)
    assert during == [3] and sum(cuda.users.values()) == 1
    assert not devices._given_up and is_healthy(cuda) and graph.pool == old[0].pool


def test_nothing_is_collected_during_a_capture(cuda, machine):
    class Cycle:
        pass

    cycle = Cycle()
    cycle.own, cycle.graph = cycle, machine.capture(lambda: None)[0]
    alive = weakref.ref(cycle)
    del cycle
    junk = SimpleNamespace(items=[])

    def function() -> bool:
        junk.items += [[] for _ in range(100_000)]  # enough for a collection
        return alive() is not None

    assert machine.capture(function)[1]
    gc.collect()
    assert alive() is None and is_healthy(cuda)


def test_the_lock_orders_the_streams_of_its_holders(cuda, machine):
    with machine.lock, machine.lock:  # again, by the same thread
        pass
    first, second = cuda.current_stream(GPU), Stream(cuda, 1)
    cuda.log.clear()
    cuda.current[1] = second
    with machine.lock:
        pass
    assert cuda.log == [f"{second.number} waits for what {first.number} did"]


def test_a_branch_begins_after_and_is_joined_before(cuda, machine):
    def function() -> list:
        main = cuda.current_stream()
        with machine.branch() as branch:
            side = cuda.current_stream()
        assert cuda.current_stream() is main
        branch.join()
        return [main.number, side.number]

    main, side = machine.capture(function)[1]
    assert main != side
    assert cuda.log[-2:] == [f"{side} waits for {main}", f"{main} waits for {side}"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the stand-in has PyTorch 2.11's rules, a GPU has its own")
def test_on_a_gpu_a_capture_that_was_cut_off_leaves_pytorch_as_it_was():
    device = torch.device("cuda", torch.cuda.current_device())
    machine, x = devices.CudaGraphs(device), torch.zeros(3, device=device)
    before = torch.cuda.current_stream(device)
    machine.warm_up(lambda: (x + 1, torch.rand(1000, device=device)))
    for _ in range(3):
        with pytest.raises(RuntimeError, match="captur"):
            machine.capture(lambda: (x + 1).sum().item())
        assert torch.cuda.current_stream(device) == before
        torch.cuda.empty_cache()
        assert torch.randn(3, device=device).isfinite().all()
        graph, noise = machine.capture(lambda: (x.add_(1), torch.rand(1000, device=device))[1])
        graph.replay()
        first = noise.clone()
        graph.replay()
        assert not first.equal(noise), "its random numbers are drawn anew"
        graph.reset()
    assert x.tolist() == [6.0] * 3
    assert machine.memory() == 0
