"""Which way of running a sampler is fastest here: eager, network compiled, network as a graph, loop as a graph."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .graphs import GraphedNetwork, has_graphs
from .graphs.device import graph_device

if TYPE_CHECKING:
    from .sampler import Sampler

LEAST_GAIN = 0.03
"""What takes at least this much less time than an eager run is worth its memory and its capture."""


@dataclass
class Tuning:
    """What `Sampler.tune` found.

    Attributes:
        choice: the variant that calls of this shape use from now on: "eager", "compile", "network graph", "loop graph"
            or "compile + loop graph".
        milliseconds: median time of a call, by variant.
        failed: why a variant could not be measured, by variant.
        message: all of it in one line.
    """

    choice: str
    milliseconds: dict[str, float]
    failed: dict[str, str]
    message: str


def tune(sampler: Sampler, size: torch.Size, seconds: float, arguments: dict[str, Any]) -> tuple[Tuning, Sampler]:
    """Measure every variant on calls of one shape. Returns the findings and the sampler to use.

    Args:
        seconds: spent on measuring, warm-up and compilation apart.
        arguments: of the calls: seeds, labels, cond.
    """
    makers: dict[str, Callable[[], Sampler]] = {
        "eager": lambda: sampler.replace(graph="off", compile=False),
        "compile": lambda: sampler.replace(graph="off", compile=True),
    }
    if has_graphs(sampler.device):
        makers["network graph"] = lambda: _with_graphed_network(sampler, size, arguments)
        makers["loop graph"] = lambda: sampler.replace(graph="loop", compile=False)
        makers["compile + loop graph"] = lambda: sampler.replace(graph="loop", compile=True)
    ready: dict[str, Sampler] = {}
    failed: dict[str, str] = {}
    for name, make in makers.items():
        try:
            variant = make()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "fastdiff runs this loop eagerly")  # told in `failed`
                for _ in range(3):  # compiles, captures, warms up
                    before = variant.stats()
                    variant(size, **arguments)
            after = variant.stats()
            if after.fallbacks > before.fallbacks:  # what runs eagerly is no graph, however fast
                raise RuntimeError(after.reasons[-1])
            ready[name] = variant
        except Exception as error:
            if name == "eager":
                raise
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    times = _milliseconds(ready, size, seconds, arguments)
    best = min(times, key=times.__getitem__)
    gain = times["eager"] / times[best]
    listed = ", ".join(f"{name} {value:.3g} ms" for name, value in times.items())
    if times[best] > (1 - LEAST_GAIN) * times["eager"]:
        best, verdict = "eager", "no gain expected"
    else:
        verdict = f"{best} is {gain:.2f} times as fast as eager"
    return Tuning(best, times, failed, f"{list(size)}: {verdict} ({listed})"), ready[best]


def _with_graphed_network(sampler: Sampler, size: torch.Size, arguments: dict[str, Any]) -> Sampler:
    """The sampler run eagerly over one captured network evaluation."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def spy(*inputs: Any, **cond: Any) -> Any:
        seen.append((inputs, cond))
        return sampler.model(*inputs, **cond)

    like = {"model_dtype": sampler.model_dtype, "device": sampler.device, "shape": tuple(size[1:])}
    sampler.replace(model=spy, graph="off", compile=False, **like)(size, **arguments)
    inputs, cond = seen[0]
    return sampler.replace(model=GraphedNetwork(sampler.model, *inputs, **cond), graph="off", compile=False, **like)


def _milliseconds(
    variants: dict[str, Sampler], size: torch.Size, seconds: float, arguments: dict[str, Any]
) -> dict[str, float]:
    """Median time of a call, the device's work included; the variants take turns, so that they see the same machine."""
    device = next(iter(variants.values())).device
    wait = graph_device(device).synchronize if has_graphs(device) else lambda: None
    times: dict[str, list[float]] = {name: [] for name in variants}
    begin = time.perf_counter()
    while len(times["eager"]) < 3 or time.perf_counter() - begin < seconds:
        for name, variant in variants.items():
            start = time.perf_counter()
            variant(size, **arguments)
            wait()
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * float(np.median(values)) for name, values in times.items()}
