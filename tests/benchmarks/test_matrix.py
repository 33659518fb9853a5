"""Every code path of the benchmark matrix on the CPU: tiny networks, and the emulator in place of CUDA graphs."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import compare, kernels, matrix, measure, targets, workloads
from benchmarks.measure import Budget
from benchmarks.tables import TITLES
from benchmarks.workloads import Cell, Workload
from fastdiff.graphs import GRAPH_DEVICES
from fastdiff.graphs.device import graph_device
from tests.graphs.emulator import Emulator

CPU = torch.device("cpu")


@pytest.fixture
def emulated(monkeypatch):
    """Graphs on the CPU."""
    graph_device.cache_clear()
    monkeypatch.setitem(GRAPH_DEVICES, "cpu", Emulator)
    yield
    graph_device.cache_clear()


@pytest.fixture
def uncompiled(monkeypatch):
    """torch.compile takes longer than all else here."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


@pytest.fixture
def quick(monkeypatch):
    """Few repeats."""
    taken = measure.interleaved
    monkeypatch.setattr(measure, "interleaved", lambda *a, **_: taken(*a[:2], 0.0, least=1, most=1))


CELLS = {  # with the ways a machine with graphs and without other libraries has
    Cell("mlp", "ddpm", 3, 2): {"eager", "fastdiff", "fastdiff-loop", "fastdiff-step", "network-graph"},
    Cell("unet1d", "ddim", 2, 1): {"eager", "fastdiff", "fastdiff-loop", "fastdiff-step", "network-graph"},
    Cell("unet", "heun", 2, 1): {
        *("eager", "lean", "fastdiff", "fastdiff-loop", "fastdiff-step", "network-graph", "fastdiff-raw")
    },
    Cell("guided", "heun", 2, 1, kind="brief"): {"eager", "fastdiff", "fastdiff-loop"},
    Cell("mlp", "ddpm", 2, 1, kind="compiled"): set(workloads.COMPILED),
}


@pytest.mark.usefixtures("emulated", "uncompiled", "quick")
@pytest.mark.parametrize("cell", CELLS, ids=lambda c: f"{c.workload}-{c.solver}-{c.kind}")
@torch.no_grad()
def test_every_way_of_a_cell(cell):
    work = Workload(cell.workload, CPU, tiny=True)
    record, missing = matrix.measure_cell(work, cell, Budget(60))
    assert set(record["ways"]) - {"diffusers", "k-diffusion"} == CELLS[cell]
    assert all("is not installed" in skip["why"] or "does not import" in skip["why"] for skip in missing)
    for name, way in record["ways"].items():
        assert way["latency_ms"]["median"] > 0
        if "bit_equal" in way:
            assert way["bit_equal"], name
        if "max_abs_difference" in way:
            assert way["max_abs_difference"] < 2e-4 * max(1, way["max_abs"]), name
    assert {"fastdiff-loop"} <= {name for name, way in record["ways"].items() if way.get("bit_equal")}
    assert record["ways"]["fastdiff-loop"]["captures"] == 1
    assert record["ways"]["fastdiff-loop"]["fallbacks"] == 0
    assert record["floor_ms"]["replays"]["median"] > 0
    json.dumps(record)


@pytest.mark.usefixtures("uncompiled", "quick")
def test_a_run_without_graphs_saves_as_it_goes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(workloads, "QUICK", tuple(CELLS)[:2])
    out = tmp_path / "result.json"
    arguments = ["--device", "cpu", "--quick", "--parts", "limits,kernels,loops", "--out", str(out)]
    assert matrix.main(arguments) == 0
    result = json.loads(out.read_text())
    others = {"diffusers", "k-diffusion"}  # where installed
    assert [set(cell["ways"]) - others for cell in result["loops"]] == [{"eager", "fastdiff"}] * 2
    assert {record["kernel"] for record in result["kernels"]} == {kernel.name for kernel in kernels.KERNELS}
    assert "MLP policy" in capsys.readouterr().out
    assert compare.main([str(out)]) == 0
    assert compare.main([str(out), str(out)]) == 0
    assert all("not measured" in line for line in targets.report(result | {"kernels": []}).splitlines())


def test_what_the_time_is_too_short_for_is_named():
    records = list(kernels.run(CPU, Budget(0), (4096,), compile_too=False))
    assert records[-1]["why"] == "time budget"
    result = matrix.run(CPU, 0.0, ["loops"], quick=True)
    assert result["loops"] == []
    assert result["skipped"][-1]["why"] == "time budget"


@pytest.mark.usefixtures("quick")
@torch.no_grad()
def test_a_way_that_fails_does_not_cost_the_others(monkeypatch):
    monkeypatch.setattr(workloads.loops, "lean_heun", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(matrix, "check", lambda work, cell: {})
    record, missing = matrix.measure_cell(Workload("unet", CPU, tiny=True), Cell("unet", "heun", 2, 1), Budget(60))
    assert {"eager", "fastdiff"} <= set(record["ways"])
    assert any("ZeroDivisionError" in skip["why"] for skip in missing)


def test_a_cell_or_a_kernel_that_fails_does_not_cost_the_others(monkeypatch):
    measured = matrix.measure_cell

    def fails_once(work, cell, *arguments):
        if cell == next(iter(CELLS)):
            raise RuntimeError("no graph today")
        return measured(work, cell, *arguments)

    monkeypatch.setattr(matrix, "measure_cell", fails_once)
    monkeypatch.setattr(kernels.Case, "check", lambda case, backends: 1 / 0)
    saved = {}
    matrix.run_loops(CPU, Budget(60), tuple(CELLS)[:2], True, saved.update)
    assert [cell["workload"] for cell in saved["loops"]] == ["unet1d"]
    assert any(skip["why"] == "RuntimeError: no graph today" for skip in saved["skipped"])
    monkeypatch.setattr(kernels, "backends", lambda device: (["cpu"], []))
    records = list(kernels.run(CPU, Budget(60), (4096,), 0.001, compile_too=False))
    assert len(records) == len(kernels.KERNELS) * len(kernels.PRECISIONS)
    assert all(record["why"].startswith("ZeroDivisionError") for record in records)


@pytest.mark.parametrize("precision", kernels.PRECISIONS)
@pytest.mark.parametrize("kernel", kernels.KERNELS, ids=lambda k: k.name)
def test_kernels_compute_their_formulas(kernel, precision):
    case = kernels.Case(kernel, 4096, precision, CPU)
    usable, _ = kernels.backends(CPU)
    outputs = case.eager()(0)
    assert [y.dtype for y in outputs] == case.writes
    assert len(outputs) == kernel.writes
    if usable:
        found = case.check(usable)
        assert found["backends_bit_equal"]
        if not kernel.draws:
            assert found["max_abs_error"] < (1e-6 if precision == "fp32" else 0.05)
    else:
        case.combine("reference")(0)


def test_cells():
    for quick in (False, True):
        assert {cell.workload for cell in workloads.cells(torch.device("cuda"), quick)} == set(TITLES)
    assert {cell.workload for cell in workloads.cells(CPU)} == set(workloads.POLICIES)
    assert {cell.workload for cell in workloads.cells(torch.device("cuda"), only="unet")} == {"unet"}
    assert len(set(workloads.CELLS)) == len(workloads.CELLS)


def test_interleaving():
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = measure.interleaved(calls, CPU, 0.0, least=4)
    assert order[:8] == list("abbaabba")
    assert times["a"]["latency_ms"]["count"] == 4
    spread = measure.spread([1.0, 2.0, 3.0, 4.0, 100.0], 1.0)
    assert (spread["median"], spread["p10"], spread["p90"]) == (3.0, 1.0, 100.0)


def test_rotation_exceeds_the_cache():
    cache = 32 << 20
    assert measure.rotation(1 << 30, CPU) == 1
    sets = measure.rotation(8 << 20, CPU)
    assert sets * (8 << 20) > 2 * cache
    assert measure.rotation(1 << 10, CPU) == 0
