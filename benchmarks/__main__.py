"""`python -m benchmarks [--device cuda] [--out FILE] [pytest arguments]`: measure, write JSON, print the table."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def table(results: dict) -> str:  # type: ignore[type-arg]
    """Markdown: minimum time of every benchmark, ns per element, GB/s where it counts, and the ratio to fastdiff's."""
    rows: dict[tuple[str, str], dict[str, dict]] = {}  # type: ignore[type-arg]
    for bench in results["benchmarks"]:
        group = bench["fullname"].split("::")[-2].removeprefix("Test")
        parameters = bench["params"] or {}
        size = parameters.get("size", "1x4x7")
        variant = [str(v) for k, v in parameters.items() if k not in ("size", "threads")]
        named = bench["name"].split("[")[0].removeprefix("test_")
        extra = [p for p in bench["param"].split("-") if p in ("as_published", "without_its_draw", "combine", "combine_out")] if bench["param"] else []
        threads = parameters.get("threads")
        label = " ".join([named, *extra]) if extra or not variant else named
        key = (group + (f", {threads} thread{'s' if threads > 1 else ''}" if threads else ""), size)
        rows.setdefault(key, {})[label] = bench
    lines = ["| what | size | implementation | µs | ns/element | GB/s | fastdiff is |", "|---|---|---|---|---|---|---|"]
    for (group, size), benches in rows.items():
        own = [b for label, b in benches.items() if label.startswith("fastdiff")]
        best = min((b["stats"]["min"] for b in own), default=None)
        for label, bench in benches.items():
            seconds, info = bench["stats"]["min"], bench["extra_info"]
            traffic = f"{info['bytes_per_element'] * info['elements'] / seconds / 1e9:.1f}" if info["bytes_per_element"] else ""
            ratio = "" if label.startswith("fastdiff") or best is None else f"{seconds / best:.2f}x faster"
            if group == "Bandwidth" and label == "copy" and own:
                theirs = info["bytes_per_element"] / seconds
                ratio = f"at {own[0]['extra_info']['bytes_per_element'] / own[0]['stats']['min'] / theirs:.0%} of it"
            lines.append(f"| {group} | {size} | {label} | {seconds * 1e6:.1f} | {seconds * 1e9 / info['elements']:.3g} | {traffic} | {ratio} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cpu.json", help="pytest-benchmark's JSON")
    arguments, rest = parser.parse_known_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    fixed = ["-q", "-p", "no:cacheprovider", "--override-ini=python_files=bench_*.py", "--override-ini=addopts="]
    shown = ["--benchmark-json", str(arguments.out), "--benchmark-quiet", "--device", arguments.device]
    status = pytest.main([str(HERE), *fixed, *shown, *rest])
    if status == 0:
        print(table(json.loads(arguments.out.read_text())))
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
