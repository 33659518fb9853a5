"""Tables of result files, and whether a newer one is slower.

    python -m benchmarks.compare                            the tables of every file in benchmarks/results
    python -m benchmarks.compare FILE [--sizes S ...]       of one file (sizes: rows of pytest-benchmark's table)
    python -m benchmarks.compare OLD NEW                    ratios that fell by more than 5 %; then the exit status is 1

Only ratios within a file are compared between files (to the floor, to a baseline, to the copy bandwidth): absolute
times depend on the clocks of the day.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import targets
from benchmarks.tables import _group, _label, floor, kernel_time, latency, matrix_tables, of_copy, operations_table

RESULTS = Path(__file__).parent / "results"
FALL = 0.05

Result = dict[str, Any]


def show(result: Result, sizes: list[str]) -> str:
    """All tables of one file."""
    if "benchmarks" in result:
        return operations_table(result, sizes)
    parts = [matrix_tables(result)]
    if "stages" in result:
        parts.append(stages_line(result))
    if result["system"]["device"]["type"] == "cuda":
        parts.append(f"Figures to reach:\n\n```\n{targets.report(result)}\n```")
    return "\n\n".join(parts)


def stages_line(result: Result) -> str:
    """The outcome of every stage of `benchmarks/gpu.sh`."""
    outcomes = [f"{name} {stage['status']} ({stage['seconds']:.0f} s)" for name, stage in result["stages"].items()]
    return "Stages: " + ", ".join(outcomes)


def ratios(result: Result) -> dict[str, float]:
    """Every ratio of a file by name; larger is better."""
    if "benchmarks" in result:
        return _operation_ratios(result)
    found: dict[str, float] = {}
    for record in result.get("kernels", []):
        name = f"{record['kernel']} {record['precision']} {record['elements']}"
        for backend in ("cuda", "triton", "cpu"):
            own = kernel_time(record, backend)
            share = of_copy(result, record, backend)
            if share is not None:
                found[f"{name}: {backend}, share of copy bandwidth"] = share
            for other in ("eager", "compile"):
                time = kernel_time(record, other)
                if own and time:
                    found[f"{name}: {backend} against {other}"] = time / own
    for cell in result.get("loops", []):
        name = f"{cell['workload']} {cell['solver']} {cell['steps']} batch {cell['batch']} {cell['kind']}"
        alone = floor(cell)
        for way in cell["ways"]:
            own = latency(cell, way)
            if not way.startswith("fastdiff") or not own:
                continue
            if alone:
                found[f"{name}: {way}, floor over time"] = alone / own
            for other in cell["ways"]:
                time = latency(cell, other)
                if not other.startswith("fastdiff") and time:
                    found[f"{name}: {way} against {other}"] = time / own
    return found


def _operation_ratios(result: Result) -> dict[str, float]:
    groups: dict[tuple[str, str], dict[str, float]] = {}
    for bench in result["benchmarks"]:
        groups.setdefault(_group(bench), {})[_label(bench)] = bench["stats"]["min"]
    found = {}
    for (kind, size), times in groups.items():
        for label, seconds in times.items():
            if label != "fastdiff" and "fastdiff" in times:
                found[f"{kind} {size}: fastdiff against {label}"] = seconds / times["fastdiff"]
    return found


def fallen(old: Result, new: Result, by: float = FALL) -> list[str]:
    """A line for every ratio in both files that fell by more than a share."""
    before, after = ratios(old), ratios(new)
    lines = []
    for name in before:
        if name in after and after[name] < (1 - by) * before[name]:
            lines.append(f"{name}: {before[name]:.3f} -> {after[name]:.3f} ({after[name] / before[name] - 1:+.0%})")
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--sizes", nargs="+", default=[], help="rows of an operations table, such as 1x3x32x32 16M")
    given = parser.parse_args(arguments)
    if len(given.files) > 2:
        parser.error("one file to print, or two to compare")
    files = given.files or sorted(RESULTS.glob("*.json"))
    loaded = [json.loads(file.read_text()) for file in files]
    if len(given.files) == 2:
        common = ratios(loaded[0]).keys() & ratios(loaded[1]).keys()
        lines = fallen(*loaded)
        print("\n".join([f"{len(lines)} of {len(common)} ratios fell by more than {FALL:.0%}", *lines]))
        return 1 if lines or not common else 0
    for file, result in zip(files, loaded):
        print(f"## {file.name}\n\n{show(result, given.sizes)}\n" if len(files) > 1 else show(result, given.sizes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
