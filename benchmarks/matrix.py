"""Sampling loops on any device, and GPU kernels: `python -m benchmarks.matrix [--device cpu] [--quick]` -> one JSON.

The other half is `python -m benchmarks`, pytest-benchmark on single operations of the CPU. Loops, which are compared
with a floor and with each other, and kernels, which are timed inside graphs over rotating buffers, are here alone.
`python -m benchmarks.compare` prints the tables of both.

Parts: limits (copy bandwidth, an empty node, a matrix product), kernels (`benchmarks.kernels`) and loops
(`benchmarks.workloads`). What does not fit into `--seconds` is listed as skipped; the most telling comes first.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import kernels, measure, system
from benchmarks.measure import Budget
from benchmarks.tables import matrix_tables
from benchmarks.workloads import ESSENTIAL, Cell, Way, Workload, cells, check, ways
from fastdiff.graphs import has_graphs

RESULTS = Path(__file__).parent / "results"
PARTS = ("limits", "kernels", "loops")
KERNELS = 0.35  # of the time, at most
LONG = 0.4  # seconds of a call; a longer one is measured for its time alone


def limits(device: torch.device, quick: bool = False) -> dict[str, Any]:
    """The device's ceilings in this run: what a copy, an empty graph node and a large matrix product take."""
    sizes = (2**12,) if quick else kernels.SIZES
    found: dict[str, Any] = {"copy": kernels.copies(sizes, device)}
    if device.type == "cuda":
        nodes = 1000
        found["empty_node_us"] = measure.per_launch([lambda: torch.cuda._sleep(0)] * nodes, device, 0.1)
        a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
        product = measure.per_launch([lambda: a @ b], device, 0.1)
        found["bf16_matmul_tflops"] = 2 * 8192**3 / product["median"] * 1e-6
        for _ in range(600):  # a second of work, to read the clocks in
            a @ b
        found["clocks_when_busy"] = system.clocks()
        measure.synchronize(device)
    return found


def loop_floor(work: Workload, cell: Cell, evaluations: int, seconds: float) -> dict[str, Any]:
    """N times the network alone: back-to-back replays of one evaluation's graph, and all N in one graph."""
    if not has_graphs(work.device):
        x, t, cond = torch.randn(cell.batch, *work.shape), work.time(cell.batch), work.cond(cell.batch)
        one = work.evaluation()

        def alone() -> None:
            for _ in range(evaluations):
                one(x, t, **cond)

        return {"eager": measure.interleaved({"x": alone}, work.device, seconds)["x"]["latency_ms"]}
    graph = work.floor(cell.batch)

    def replays() -> None:
        for _ in range(evaluations):
            graph.replay()

    calls: dict[str, Callable[[], Any]] = {"replays": replays}
    if work.guide is None and cell.kind != "brief":
        chain = work.chain(cell.batch, evaluations)
        calls["one_graph"] = chain.replay
    for call in calls.values():
        call()
    times = measure.interleaved(calls, work.device, seconds, least=3)
    graph.reset()
    if "one_graph" in calls:
        chain.reset()
    return {name: times[name]["latency_ms"] for name in calls}


def measure_cell(
    work: Workload, cell: Cell, budget: Budget, seconds: float | None = None
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """(the record of a cell: its floor and every way of running it, what was skipped).

    Args:
        budget: for building the ways, and if `seconds` are not given for measuring them.
    """
    found, missing = ways(work, cell)
    name = f"{cell.workload} {cell.solver} {cell.steps} steps, batch {cell.batch}"
    missing = [skip | {"what": f"{name}: {skip['what']}"} for skip in missing]
    evaluations = work.sampler(cell, graph="off").plan().evaluations
    record: dict[str, Any] = {
        "workload": cell.workload,
        "solver": cell.solver,
        "steps": cell.steps,
        "batch": cell.batch,
        "kind": cell.kind,
        "evaluations": evaluations,
        "parameters": work.parameters,
        "ways": {},
    }
    calls: dict[str, Callable[[], Tensor]] = {}
    outputs: dict[str, Tensor] = {}
    for way_name, way in found.items():
        if budget.left <= 0 and way_name not in ESSENTIAL:
            missing.append({"what": f"{name}: {way_name}", "why": "time budget"})
            continue
        try:
            first, call, output = _first(way, work.device)
        except Exception as error:  # one way that fails must not cost the others
            missing.append({"what": f"{name}: {way_name}", "why": f"{type(error).__name__}: {str(error)[:500]}"})
            continue
        record["ways"][way_name] = {"table": way.table} | first | _stats(way)
        calls[way_name], outputs[way_name] = call, output
    for way_name, way in found.items():
        if way.equal_to in outputs and way_name in outputs:
            record["ways"][way_name]["bit_equal"] = outputs[way_name].equal(outputs[way.equal_to])
            # Backward passes of some networks are not deterministic, whatever runs them.
            record["ways"][way_name]["eager_repeats"] = outputs[way.equal_to].equal(calls[way.equal_to]())
    if measure.timed(calls["eager"], work.device)[1] < LONG:
        for way_name, difference in check(work, cell).items():
            if way_name in record["ways"]:
                record["ways"][way_name] |= difference
    for call in calls.values():  # what was built after them has emptied the allocator's cache
        call()
    share = max(0.5, budget.left) if seconds is None else seconds
    for way_name, times in measure.interleaved(calls, work.device, 0.7 * share, least=3).items():
        record["ways"][way_name] |= times
    calls.clear()
    outputs.clear()
    record["floor_ms"] = loop_floor(work, cell, evaluations, 0.2 * share)
    return record, missing


def _first(way: Way, device: torch.device) -> tuple[dict[str, float], Callable[[], Tensor], Tensor]:
    """(what building and the first call cost, the call, a sample of a second call)."""
    made: list[Any] = []

    def build_and_call() -> None:
        made.append(way.build())
        made.append(made[0]())

    costs = measure.first_call(build_and_call, device)
    return costs, made[0], made[0]()


def _stats(way: Way) -> dict[str, Any]:
    """What the graphs of a fastdiff way have cost, and why a capture failed if one did."""
    if way.sampler is None:
        return {}
    stats = way.sampler.stats()
    if not (stats.captures or stats.fallbacks):
        return {}
    counts = {"captures": stats.captures, "fallbacks": stats.fallbacks, "graph_nodes": stats.nodes}
    return counts | {"capture_ms": stats.milliseconds, "graph_mib": stats.bytes / 2**20, "reasons": stats.reasons}


@torch.no_grad()
def run_loops(
    device: torch.device, budget: Budget, wanted: tuple[Cell, ...], tiny: bool, save: Callable[[dict[str, Any]], None]
) -> None:
    """Every cell, until the budget ends; networks are built once. `save` is called with all records after each cell."""
    records: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    made: dict[str, Workload] = {}
    for done, cell in enumerate(wanted):
        if budget.left <= 0:
            skipped.append(
                {"what": f"loops, the last {len(wanted) - done} of {len(wanted)} cells", "why": "time budget"}
            )
            save({"loops": records, "skipped": skipped})
            return
        if cell.workload not in made:
            made[cell.workload] = Workload(cell.workload, device, tiny)
        start = time.monotonic()
        share = budget if tiny else budget.part(cell.seconds)
        try:
            record, missing = measure_cell(made[cell.workload], cell, share, 0.2 if tiny else None)
            records.append(record | {"seconds": time.monotonic() - start})
        except Exception as error:  # one cell that fails must not cost the others
            missing = [{"what": str(cell), "why": f"{type(error).__name__}: {str(error)[:500]}"}]
        skipped += missing
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        print(f"  {cell}: {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
        save({"loops": records, "skipped": skipped})


def run(
    device: torch.device,
    seconds: float,
    parts: list[str],
    quick: bool,
    only: str = "",
    save: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """The whole matrix; `save` is called with what there is so far, so that a run cut short leaves something."""
    budget = Budget(seconds)
    result: dict[str, Any] = {"system": system.describe(device), "quick": quick, "skipped": []}
    result["clocks"] = {"before": system.clocks()}
    if "limits" in parts:
        result["limits"] = limits(device, quick)
        save(result)
    if "kernels" in parts:
        sizes, part = (2**12,) if quick else kernels.SIZES, budget.part(KERNELS * seconds)
        records = list(kernels.run(device, part, sizes, 0.002 if quick else 0.06, compile_too=not quick))
        result["kernels"] = [record for record in records if "why" not in record]
        result["skipped"] += [record for record in records if "why" in record]
        save(result)
    if "loops" in parts:
        before = list(result["skipped"])

        def keep(found: dict[str, Any]) -> None:
            result.update(loops=found["loops"], skipped=before + found["skipped"])
            save(result)

        run_loops(device, budget, cells(device, quick, only), quick, keep)
    result["clocks"]["after"] = system.clocks()
    result["seconds"] = seconds - budget.left
    return result


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.matrix", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="tiny networks, seconds: does everything run?")
    parser.add_argument("--seconds", type=float, default=240.0, help="for everything")
    parser.add_argument("--parts", default="", help="of limits,kernels,loops; default: all on a GPU, loops on the CPU")
    parser.add_argument("--only", default="", help="loops of one workload: mlp, unet1d, unet or guided")
    parser.add_argument(
        "--out", type=Path, help="result file; default: benchmarks/results/loops-DEVICE.json, for --quick none"
    )
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("benchmarks.matrix: torch sees no GPU; use --device cpu")
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    parts = given.parts.split(",") if given.parts else list(PARTS) if device.type == "cuda" else ["loops"]
    out = given.out or (None if given.quick else RESULTS / f"loops-{system.slug(device)}.json")

    def save(result: dict[str, Any]) -> None:
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(result, indent=1) + "\n")

    result = run(device, given.seconds, parts, given.quick, given.only, save)
    save(result)
    print(matrix_tables(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
