"""Result files as markdown tables: pytest-benchmark's (operations on the CPU) and `benchmarks.matrix`'s (the rest)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Result = dict[str, Any]
Row = Sequence[object]

WAYS = {
    "eager": "eager loop",
    "lean": "eager loop, float32, levels on the host",
    "diffusers": "diffusers scheduler",
    "k-diffusion": "k-diffusion",
    "fastdiff": "fastdiff, eager",
    "fastdiff-step": "fastdiff, a graph a step",
    "fastdiff-loop": "fastdiff, one graph",
    "network-graph": "network in a graph, eager loop",
    "compile": "torch.compile, eager loop",
    "reduce-overhead": "torch.compile reduce-overhead, eager loop",
    "fastdiff-raw": "fastdiff, one graph, preconditioning folded in",
    "fastdiff-compiled": "fastdiff, one graph, torch.compile",
    "fastdiff-compile": "fastdiff, one graph, compile=True",
}
TITLES = {
    "mlp": "MLP policy",
    "unet1d": "1-D U-Net policy",
    "unet": "CIFAR-10 U-Net",
    "guided": "CIFAR-10 U-Net + discriminator",
}
TABLES = {
    "same": "Same network call, only the loop differs",
    "best": "Best of each side: what was done to the network differs too",
}
FLOORS = "floors: the network's evaluations alone, each a graph replayed / all in one graph"


def markdown(head: Row, rows: Iterable[Row]) -> str:
    """A table; an empty string without rows."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(map(str, head)) + " |", "|" + "---|" * len(head), *lines]) if lines else ""


# -- operations, from pytest-benchmark --------------------------------------------------------------------------------


def operations_table(result: Result, sizes: Sequence[str] = ()) -> str:
    """One row a measurement, minimum times, of all sizes or some, compared with fastdiff's of the same run."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for bench in result["benchmarks"]:
        groups.setdefault(_group(bench), []).append(bench)
    rows = []
    for (kind, size), benches in groups.items():
        if sizes and size not in sizes:
            continue
        own = [b for b in benches if _label(b).startswith("fastdiff")]
        for bench in benches:
            seconds, elements, rate = bench["stats"]["min"], bench["extra_info"]["elements"], _rate(bench)
            ratio = ""
            if bench not in own and own:
                ratio = f"{seconds / min(b['stats']['min'] for b in own):.2f}x its speed"
                if kind == "Bandwidth":
                    ratio = f"at {_rate(own[0]) / rate:.0%} of its bandwidth"
            numbers = f"{seconds * 1e6:.1f}", f"{seconds * 1e9 / elements:.3g}", f"{rate:.1f}" if rate else ""
            rows.append((kind, size, _label(bench), *numbers, ratio))
    return markdown(("what", "size", "implementation", "µs", "ns/element", "GB/s", "fastdiff is"), rows)


def _label(bench: Result) -> str:
    """The implementation measured: the test's name and, if it has one, its variant."""
    name = bench["name"].split("[")[0].removeprefix("test_").replace("_", " ")
    identifiers = bench["param"] or ""
    for variant in ("as_published", "without_its_draw"):
        if variant in identifiers:
            return f"{name} ({variant.replace('_', ' ')})"
    return name


def _group(bench: Result) -> tuple[str, str]:
    parameters = bench["params"] or {}
    threads = parameters.get("threads")
    kind = bench["fullname"].split("::")[-2].removeprefix("Test")
    return kind + (f", {threads} thread{'s' * (threads > 1)}" if threads else ""), parameters.get("size", "1x4x7")


def _rate(bench: Result) -> float:
    """GB/s, 0 where the bytes moved are not counted."""
    info = bench["extra_info"]
    return (info["bytes_per_element"] or 0) * info["elements"] / bench["stats"]["min"] / 1e9


# -- loops and kernels, from benchmarks.matrix ------------------------------------------------------------------------


def matrix_tables(result: Result) -> str:
    """Everything of one file: what it was measured on, limits, kernels, both tables of loops, what was skipped."""
    parts = [_machine(result), _limits_table(result), _kernel_table(result)]
    parts += [loop_table(result, table) for table in TABLES] + [_cost_table(result), _skipped(result)]
    return "\n\n".join(part for part in parts if part)


def _machine(result: Result) -> str:
    system = result["system"]
    versions = ", ".join(f"{name} {version}" for name, version in system["packages"].items())
    driver = system.get("smi", {}).get("driver_version", "")
    quick = " (quick: tiny networks, no figure means anything)" if result.get("quick") else ""
    return f"{system['device']['name']}{f', driver {driver}' if driver else ''}, {versions}{quick}"


def _limits_table(result: Result) -> str:
    limits = result.get("limits", {})
    rows: list[Row] = [
        (f"copy of {int(n):,} float32, GB/s", _number(c.get("cold_gbs")), _number(c.get("hot_gbs")))
        for n, c in sorted(limits.get("copy", {}).items(), key=lambda item: int(item[0]))
    ]
    if "empty_node_us" in limits:
        rows.append(("empty graph node, µs", _number(limits["empty_node_us"]["median"]), ""))
        rows.append(("bfloat16 product of 8192 x 8192, TFLOP/s", _number(limits["bf16_matmul_tflops"]), ""))
    return markdown(("limit", "cold", "in L2"), rows)


def kernel_time(record: Result, name: str) -> float | None:
    """Median microseconds a launch: cold if it could be measured, else hot."""
    times = record["times"].get(name, {})
    chosen = times.get("cold_us") or times.get("hot_us")
    return chosen["median"] if chosen else None


def of_copy(result: Result, record: Result, name: str) -> float | None:
    """The share of the bandwidth that a copy of as many elements reaches in the same run."""
    copy = result.get("limits", {}).get("copy", {}).get(str(record["elements"]), {})
    times = record["times"].get(name, {})
    for kind in ("cold_gbs", "hot_gbs"):
        if kind in copy and kind in times:
            return times[kind] / copy[kind]
    return None


def _kernel_table(result: Result) -> str:
    rows = []
    order = sorted(result.get("kernels", []), key=lambda r: (r["kernel"], r["precision"], r["elements"]))
    names = list(dict.fromkeys(name for record in order for name in record["times"]))
    for record in order:
        cells = []
        for name in names:
            time, share = kernel_time(record, name), of_copy(result, record, name)
            cells.append("" if time is None else f"{time:.2f}" + (f" ({share:.0%})" if share else ""))
        rows.append((record["kernel"], record["precision"], f"{record['elements']:,}", *cells))
    head = [f"{name}, µs (of copy)" for name in names]
    return markdown(("kernel", "precision", "elements", *head), rows)


def floor(cell: Result, kind: str = "replays") -> float | None:
    """Median milliseconds of N network evaluations alone; None where there are no graphs.

    Args:
        kind: "replays", one evaluation's graph N times, or "one_graph", all N in one.
    """
    times = cell.get("floor_ms", {}).get(kind)
    return times["median"] if times else None


def latency(cell: Result, way: str) -> float | None:
    """Median milliseconds of one call."""
    times = cell["ways"].get(way, {}).get("latency_ms")
    return times["median"] if times else None


def cell_name(cell: Result) -> str:
    """A cell in words."""
    title = TITLES[cell["workload"]] + (" (with torch.compile)" if cell["kind"] == "compiled" else "")
    return f"{title}, {cell['solver']} {cell['steps']} steps (NFE {cell['evaluations']}), batch {cell['batch']}"


def loop_table(result: Result, table: str) -> str:
    """One of the two tables of loops."""
    rows = []
    for cell in result.get("loops", []):
        base, first = latency(cell, "eager"), cell_name(cell)
        floors = [alone for kind in ("replays", "one_graph") if (alone := floor(cell, kind))]
        for name, way in cell["ways"].items():
            if way["table"] != table or "latency_ms" not in way:
                continue
            ms = way["latency_ms"]
            spread = f"{ms['median']:.3g} ({ms['p10']:.3g} to {ms['p90']:.3g})"
            speed = f"{base / ms['median']:.2f}x" if base else ""
            above = " / ".join(f"{ms['median'] / alone:.2f}x" for alone in floors)
            rows.append((first, WAYS[name], spread, f"{way['throughput_ms']:.3g}", speed, above, _agreement(way)))
            first = ""
    head = (
        "loop",
        "how",
        "latency, ms (p10 to p90)",
        "back to back, ms",
        "eager's speed",
        "times the floors",
        "result",
    )
    shown = markdown(head, rows)
    legend = f" ({FLOORS})" if any(map(floor, result.get("loops", []))) else ""
    return f"**{TABLES[table]}**{legend}\n\n{shown}" if shown else ""


def _agreement(way: Result) -> str:
    if "bit_equal" in way:
        if way["bit_equal"]:
            return "same bits as eager fastdiff"
        return "OTHER BITS than eager fastdiff" + ("" if way["eager_repeats"] else ", which does not repeat its own")
    if "max_abs_difference" in way:
        return f"within {way['max_abs_difference']:.1g} of fastdiff (largest {way['max_abs']:.2g})"
    return ""


def _cost_table(result: Result) -> str:
    """What graphs cost: capture, first call, memory."""
    rows = []
    for cell in result.get("loops", []):
        for name, way in cell["ways"].items():
            if name in ("eager", "fastdiff") or "capture_ms" in way:
                memory = _number(way.get("peak_mib")), _number(way.get("held_mib"))
                numbers = _number(way.get("capture_ms")), _number(way["first_call_ms"]), way.get("graph_nodes", "")
                rows.append((cell_name(cell), WAYS[name], *numbers, *memory))
    head = ("loop", "how", "capture, ms", "first call, ms", "nodes", "peak, MiB", "kept, MiB")
    return markdown(head, rows) if any(row[2] for row in rows) else ""


def _skipped(result: Result) -> str:
    counts: dict[str, list[str]] = {}
    for skip in result.get("skipped", []):
        counts.setdefault(skip["why"], []).append(skip["what"])
    return "\n".join(f"Not measured ({why}): {'; '.join(what)}." for why, what in counts.items())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
