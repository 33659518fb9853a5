"""`python -m benchmarks [--out FILE] [pytest arguments]`: single operations on the CPU, measured by pytest-benchmark.

Loops on any device and kernels on a GPU are measured by `python -m benchmarks.matrix`; `python -m benchmarks.compare`
prints the tables of both.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from benchmarks.tables import operations_table

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cpu.json", help="pytest-benchmark's JSON")
    arguments, rest = parser.parse_known_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    fixed = ["-q", "-p", "no:cacheprovider", "--override-ini=python_files=bench_*.py", "--override-ini=addopts="]
    shown = ["--benchmark-json", str(arguments.out), "--benchmark-quiet"]
    status = pytest.main([str(HERE), *fixed, *shown, *rest])
    if status == 0:
        results = json.loads(arguments.out.read_text())
        for private in ("node", "release"):  # whose machine it was is nobody's business
            results["machine_info"].pop(private, None)
        results.pop("commit_info", None)
        for bench in results["benchmarks"]:
            bench["stats"].pop("data", None)
        arguments.out.write_text(json.dumps(results, indent=1))
        print(operations_table(results))
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
