"""pytest-benchmark's JSON as a table: minimum times, and how they compare with fastdiff's in the same run.

`python -m benchmarks.table FILE [SIZE ...]` prints the rows of some sizes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def _label(bench: dict[str, Any]) -> str:
    """The implementation measured: the test's name and, if it has one, its variant."""
    name = bench["name"].split("[")[0].removeprefix("test_").replace("_", " ")
    identifiers = bench["param"] or ""
    for variant in ("as_published", "without_its_draw"):
        if variant in identifiers:
            return f"{name} ({variant.replace('_', ' ')})"
    return name


def _group(bench: dict[str, Any]) -> tuple[str, str]:
    parameters = bench["params"] or {}
    threads = parameters.get("threads")
    kind = bench["fullname"].split("::")[-2].removeprefix("Test")
    return kind + (f", {threads} thread{'s' * (threads > 1)}" if threads else ""), parameters.get("size", "1x4x7")


def table(results: dict[str, Any], sizes: list[str] | None = None) -> str:
    """Markdown, one row a measurement, of all sizes or some."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for bench in results["benchmarks"]:
        groups.setdefault(_group(bench), []).append(bench)
    lines = ["| what | size | implementation | µs | ns/element | GB/s | fastdiff is |", "|---|---|---|---|---|---|---|"]
    for (kind, size), benches in groups.items():
        if sizes and size not in sizes:
            continue
        own = [b for b in benches if _label(b).startswith("fastdiff")]
        for bench in benches:
            seconds, info = bench["stats"]["min"], bench["extra_info"]
            rate = _rate(bench)
            ratio = ""
            if bench not in own and own:
                best = min(b["stats"]["min"] for b in own)
                ratio = f"{seconds / best:.2f}x its speed"
                if kind == "Bandwidth":
                    ratio = f"at {_rate(own[0]) / rate:.0%} of its bandwidth"
            numbers = f"{seconds * 1e6:.1f} | {seconds * 1e9 / info['elements']:.3g} | {f'{rate:.1f}' if rate else ''}"
            lines.append(f"| {kind} | {size} | {_label(bench)} | {numbers} | {ratio} |")
    return "\n".join(lines)


def _rate(bench: dict[str, Any]) -> float:
    """GB/s, 0 where the bytes moved are not counted."""
    info = bench["extra_info"]
    return (info["bytes_per_element"] or 0) * info["elements"] / bench["stats"]["min"] / 1e9


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2:]))
