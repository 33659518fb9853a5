"""Tables, ratios and targets from result files."""

from __future__ import annotations

import json

import pytest

from benchmarks import compare, targets
from benchmarks.tables import operations_table


def time(median: float) -> dict[str, float]:
    return {"median": median, "p10": median, "p90": median, "count": 9}


def way(milliseconds: float, table: str = "same", **more: object) -> dict[str, object]:
    spread = {"latency_ms": time(milliseconds), "issue_ms": time(milliseconds), "throughput_ms": milliseconds}
    return {"table": table, "first_call_ms": 9.0, "peak_mib": 100.0, **spread, **more}


def result(own: float = 1.0, update: float = 1.0) -> dict:
    """A file with one loop and one kernel: fastdiff takes `own` ms, its update `update` times the ideal."""
    size = 2**26
    copy = {"cold_us": time(100.0), "cold_gbs": 4000.0}
    record = {
        "kernel": "K1",
        "precision": "fp32",
        "elements": size,
        "bytes": 12 * size,
        "sets": 1,
        "times": {
            "cuda": {"cold_us": time(200.0 * update), "cold_gbs": 4000.0 / update},
            "compile": {"cold_us": time(210.0), "cold_gbs": 3800.0},
        },
    }
    cell = {"workload": "mlp", "solver": "ddpm", "steps": 100, "batch": 1, "kind": "full", "evaluations": 100}
    ways = {"eager": way(10.0), "fastdiff": way(9.0), "fastdiff-loop": way(own, bit_equal=True, capture_ms=5.0)}
    ways["network-graph"] = way(4.0, "best")
    floors = {"replays": time(0.9), "one_graph": time(0.8)}
    device = {"name": "a GPU", "type": "cuda"}
    return {
        "system": {"device": device, "packages": {"torch": "2.11.0"}, "smi": {"driver_version": "580"}},
        "stages": {"build": {"status": "passed", "seconds": 3.0}},
        "limits": {"copy": {str(size): copy}, "empty_node_us": time(1.2), "bf16_matmul_tflops": 770.0},
        "kernels": [record],
        "loops": [cell | {"ways": ways, "floor_ms": floors}],
        "skipped": [{"what": "diffusers loop", "why": "diffusers is not installed"}],
    }


@pytest.fixture
def files(tmp_path):
    def write(*results: dict) -> list[str]:
        paths = [tmp_path / f"{i}.json" for i in range(len(results))]
        for path, content in zip(paths, results):
            path.write_text(json.dumps(content))
        return [str(path) for path in paths]

    return write


def test_the_two_tables_are_apart(files, capsys):
    assert compare.main(files(result())) == 0
    shown = capsys.readouterr().out
    same, best = shown.split("Best of each side")
    assert "fastdiff, one graph" in same.split("Same network call")[1]
    assert "network in a graph" in best and "network in a graph" not in same
    assert "1.11x / 1.25x" in same
    assert "Not measured (diffusers is not installed): diffusers loop." in shown
    assert "build passed (3 s)" in shown


def test_a_ratio_that_fell_is_named(files, capsys):
    assert compare.main(files(result(), result(own=1.04))) == 0
    assert compare.main(files(result(), result(own=1.1))) == 1
    shown = capsys.readouterr().out
    assert "mlp ddpm 100 batch 1 full: fastdiff-loop, floor over time: 0.900 -> 0.818 (-9%)" in shown
    assert compare.main(files(result(), result(update=1.1))) == 1
    assert "K1 fp32 67108864: cuda, share of copy bandwidth: 1.000 -> 0.909 (-9%)" in capsys.readouterr().out
    assert compare.main(files(result(own=1.1), result())) == 0


def test_absolute_times_are_not_compared(files):
    slow = json.loads(json.dumps(result()), parse_float=lambda text: 3 * float(text))
    assert compare.fallen(result(), slow) == []


def test_files_with_nothing_in_common_are_no_success(files):
    assert compare.main(files(result(), result() | {"loops": [], "kernels": []})) == 1


def test_targets():
    lines = targets.report(result(update=1.1)).splitlines()
    assert any(line.startswith("MISSED") and "deterministic update" in line and "0.909" in line for line in lines)
    assert any(line.startswith("reached") and "MLP loop over its floor: 1.111" in line for line in lines)
    assert any(line.startswith("reached") and "MLP, batch <= 64" in line and "eager loop" in line for line in lines)
    assert any(line.startswith("reached") and "memory" in line for line in lines)
    assert any(line.startswith("not measured") and "CIFAR U-Net, batch 512" in line for line in lines)


def test_committed_results_print(capsys):
    assert compare.main([]) == 0
    shown = capsys.readouterr().out
    assert "HeunStep" in shown


def test_sizes_of_an_operations_table():
    results = json.loads((compare.RESULTS / "cpu.json").read_text())
    rows = operations_table(results, ["1x4x7"]).splitlines()
    assert len(rows) == 4
    assert all("Overhead" in row for row in rows[2:])
    assert compare.ratios(results)
