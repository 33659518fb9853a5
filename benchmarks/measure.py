"""How times are taken, for loops and for kernels.

Loops: host wall time around one call that ends in a synchronisation (latency), the time until the call returned (issue)
and calls back to back with one synchronisation (throughput). The implementations of a cell are interleaved A-B-B-A, so
that a drifting clock touches all alike; medians and 10th to 90th percentiles are kept.

Kernels: device time per launch inside one captured graph, over buffers that rotate through more than twice the L2
(`cold`), and over one set of buffers (`hot`). On the CPU the calls are timed as they are.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastdiff.graphs.device import graph_device

Function = Callable[[], Any]


class Budget:
    """Seconds that a part of the run may take; what comes when they are spent is skipped, and said to be."""

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def part(self, share: float) -> Budget:
        """A budget of `share` seconds, or of what is left."""
        return Budget(min(share, self.left))


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(seconds: Sequence[float], scale: float = 1e3) -> dict[str, float]:
    """Median, 10th and 90th percentile and count; in milliseconds, unless scaled otherwise."""
    ordered = sorted(seconds)
    at = lambda share: ordered[round(share * (len(ordered) - 1))] * scale  # noqa: E731
    return {"median": statistics.median(ordered) * scale, "p10": at(0.1), "p90": at(0.9), "count": len(ordered)}


def timed(call: Function, device: torch.device) -> tuple[float, float]:
    """Seconds until `call` returned, and until its work was done."""
    synchronize(device)
    start = time.perf_counter()
    call()
    issued = time.perf_counter()
    synchronize(device)
    return issued - start, time.perf_counter() - start


def interleaved(
    calls: dict[str, Function], device: torch.device, seconds: float, least: int = 4, most: int = 50
) -> dict[str, dict[str, Any]]:
    """Latency, issue time and throughput of functions that do the same: A-B-C-C-B-A rounds until the time is spent.

    Args:
        calls: by name, warm already.
        seconds: aimed at, for all of them together; every one is called at least `least` times all the same.
        least, most: measurements of each.

    Returns:
        for every name `latency_ms` and `issue_ms` (see `spread`) and `throughput_ms`, milliseconds per call.
    """
    latencies: dict[str, list[float]] = {name: [] for name in calls}
    issues: dict[str, list[float]] = {name: [] for name in calls}
    end = time.monotonic() + 0.75 * seconds
    for turn in range(most):
        if turn >= least and time.monotonic() > end:
            break
        order = list(calls) if turn % 2 == 0 else list(calls)[::-1]
        for name in order:
            issued, done = timed(calls[name], device)
            issues[name].append(issued)
            latencies[name].append(done)
    results: dict[str, dict[str, Any]] = {}
    for name, call in calls.items():
        latency = statistics.median(latencies[name])
        repeats = int(max(1, min(200, 0.25 * seconds / len(calls) / latency)))

        def many(call: Function = call, repeats: int = repeats) -> None:
            for _ in range(repeats):
                call()

        results[name] = {
            "latency_ms": spread(latencies[name]),
            "issue_ms": spread(issues[name]),
            "throughput_ms": timed(many, device)[1] / repeats * 1e3,
        }
    return results


def first_call(call: Function, device: torch.device) -> dict[str, float]:
    """What a call costs the first time: milliseconds and, on a GPU, memory reserved at the peak and after it (MiB)."""
    if device.type != "cuda":
        return {"first_call_ms": timed(call, device)[1] * 1e3}
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_reserved(device)
    seconds = timed(call, device)[1]
    peak = torch.cuda.max_memory_reserved(device) - before
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved(device) - before
    return {"first_call_ms": seconds * 1e3, "peak_mib": peak / 2**20, "held_mib": held / 2**20}


# -- kernels ----------------------------------------------------------------------------------------------------------


def per_launch(launches: Sequence[Function], device: torch.device, seconds: float) -> dict[str, float]:
    """Microseconds per launch (see `spread`) of the launches, run one after the other.

    On a GPU they are captured into one graph; a replay is timed by events, so launching costs nothing on the host.
    """
    if device.type != "cuda":
        return _repeat(launches, seconds)
    machine = graph_device(device)

    def work() -> None:
        for launch in launches:
            launch()

    for _ in range(2):
        machine.warm_up(work)
    graph, _ = machine.capture(work)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def replay() -> float:
        events[0].record()
        graph.replay()
        events[1].record()
        events[1].synchronize()
        return events[0].elapsed_time(events[1]) * 1e-3

    once = statistics.median(replay() for _ in range(3))
    repeats = int(max(10, min(200, seconds / once)))
    times = [replay() / len(launches) for _ in range(repeats)]
    graph.reset()
    return spread(times, 1e6)


def _repeat(launches: Sequence[Function], seconds: float) -> dict[str, float]:
    times = []
    end = time.monotonic() + seconds
    while not times or (time.monotonic() < end and len(times) < 200):
        start = time.perf_counter()
        for launch in launches:
            launch()
        times.append((time.perf_counter() - start) / len(launches))
    return spread(times, 1e6)


def rotation(bytes_moved: int, device: torch.device, most: int = 64) -> int:
    """How many sets of buffers make their traffic exceed twice the L2; 0 if more than `most` would be needed."""
    l2 = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 32 << 20
    sets = 2 * l2 // bytes_moved + 1
    return sets if sets <= most else 0


def hot_and_cold(
    launch: Callable[[int], Any], sets: int, device: torch.device, seconds: float
) -> dict[str, dict[str, float]]:
    """`launch(i)` on set i of the buffers: `hot_us` always on set 0, `cold_us` on all in turn.

    Without sets (see `rotation`) there is no cold figure; with one, larger than the cache, no hot one.
    """
    result = {}
    if sets != 1:
        result["hot_us"] = per_launch([lambda: launch(0)] * 20, device, seconds / 2)
    if sets:
        turns = [lambda i=i: launch(i) for i in range(sets)] * max(1, 8 // sets)  # type: ignore[misc]
        result["cold_us"] = per_launch(turns, device, seconds / 2)
    return result
