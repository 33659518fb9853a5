"""The stages of benchmarks/gpu.sh as far as a machine without a GPU goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import sanitize, stages
from fastdiff.graphs import GRAPH_DEVICES
from fastdiff.graphs.device import graph_device
from fastdiff.ops import native
from tests.graphs.emulator import Emulator

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.skipif(os.name != "posix", reason="a shell script")
@pytest.mark.parametrize("python", [sys.executable, "/nonexistent/python"])
def test_the_script_stops_early_with_one_line(python):
    done = subprocess.run(
        [str(ROOT / "benchmarks" / "gpu.sh")],
        env=os.environ | {"PYTHON": python},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "benchmarks/gpu.sh:" in line


def test_a_process_that_takes_too_long_is_killed_with_its_children():
    script = "import subprocess, sys; print('begun', flush=True); subprocess.run(['sleep', '60'])"
    stage = stages.Process([sys.executable, "-c", script], 1.5).wait()
    assert stage["status"] == "timeout"
    assert stage["seconds"] < 10
    assert "begun" in stage["output"]


def test_status_and_output():
    passed = stages.Process([sys.executable, "-c", "print('a\\nb\\nc\\nd\\ne')"], 20, FASTDIFF_BUILD="none").wait()
    failed = stages.Process([sys.executable, "-c", "import sys; print('a\\nb'); sys.exit(3)"], 20).wait()
    assert (passed["status"], failed["status"], failed["code"]) == ("passed", "failed", 3)
    assert stages.shortened(passed, 60)["output"] == ["c", "d", "e"]
    assert stages.shortened(failed, 1)["output"] == ["b"]


def test_tests_are_counted_and_none_is_a_failure(tmp_path):
    file = tmp_path / "test_some.py"
    file.write_text(
        "import pytest\ndef test_a(): pass\n@pytest.mark.skip\ndef test_b(): pass\ndef test_c(): assert 0\n"
    )
    stage = stages.tests(30, "not cuda", [str(file)])
    assert stage["status"] == "failed"
    assert stage["counts"] == {"tests": 3, "failures": 1, "errors": 0, "skipped": 1, "passed": 1}
    assert stages.tests(30, "cuda", [str(file)])["status"] == "failed"
    assert stages.tests(30, "cuda", [])["status"] == "skipped"


def test_a_failed_stage_is_recorded_and_the_next_one_runs(tmp_path, monkeypatch, capsys):
    def matrix(limit: float, out: Path, extra: list[str]) -> stages.Stage:
        out.write_text(json.dumps({"loops": [1], "system": {"device": "measured"}}))
        assert extra == ["--only", "mlp"]
        return {"status": "passed", "seconds": 1.0, "output": "tables"}

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(stages, "described", lambda: {"device": "described"})
    monkeypatch.setattr("benchmarks.system.slug", lambda device: "gpu")
    monkeypatch.setattr(stages, "build", lambda limit, capability: {}["nothing"])
    monkeypatch.setattr(stages, "sanitizer", lambda limit: {"status": "skipped", "seconds": 0.0, "output": "no tool"})
    monkeypatch.setattr(stages, "matrix", matrix)
    out = tmp_path / "gpu.json"
    assert stages.main(["--stages", "build,sanitizer,benchmarks", "--out", str(out), "--only", "mlp"]) == 1
    result = json.loads(out.read_text())
    assert {name: stage["status"] for name, stage in result["stages"].items()} == {
        "build": "failed",
        "sanitizer": "skipped",
        "benchmarks": "passed",
    }
    assert "KeyError" in result["stages"]["build"]["output"][0]
    assert result["loops"] == [1] and result["system"] == {"device": "measured"}
    assert "failed: build" in capsys.readouterr().out


@pytest.mark.skipif(not native.available("cpu"), reason=native.reason("cpu"))
@pytest.mark.parametrize("mode", ["off", "loop"])
def test_the_program_for_the_sanitizer_runs(monkeypatch, mode):
    monkeypatch.setattr(sanitize, "DEVICE", "cpu")
    monkeypatch.setattr(sanitize, "SHAPES", ((1, 1), (2, 3, 257)))
    if mode == "loop":
        graph_device.cache_clear()
        monkeypatch.setitem(GRAPH_DEVICES, "cpu", Emulator)
    else:
        sanitize.operators("cpu")
    sanitize.samplers("cpu", mode)
    graph_device.cache_clear()


def test_the_sanitizers_filters(monkeypatch):
    assert sanitize.filters()[0] == "kns=fastdiff"
    pytest.importorskip("triton")
    monkeypatch.setattr(native, "available", lambda *_: True)
    assert {"kne=combine_kernel", "kne=normal_kernel", "kne=sum_squares_kernel"} <= set(sanitize.filters())


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
@pytest.mark.parametrize("errors", [0, 2])
def test_every_tool_of_the_sanitizer_runs_on_both_programs(tmp_path, monkeypatch, errors):
    program = tmp_path / "compute-sanitizer"
    program.write_text(
        '#!/bin/sh\ncase "$1" in --help) echo "  --kernel-name arg";; *) echo "ran $*"; '
        f'echo "========= ERROR SUMMARY: {errors} errors"; [ "$2" != racecheck ] || exit {min(errors, 1)};; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    stage = stages.sanitizer(60)
    assert stage["status"] == ("failed" if errors else "passed")
    assert list(stage["runs"]) == [f"{tool} {mode}" for tool in stages.TOOLS for mode in ("eager", "graph")]
    for name, run in stage["runs"].items():
        assert run["status"] == ("failed" if errors and "racecheck" in name else "passed")
        assert run["summary"] == f"ERROR SUMMARY: {errors} errors"
        assert "--error-exitcode 1 --kernel-name kns=fastdiff" in run["output"][0]
        assert run["output"][0].endswith(f"-m benchmarks.sanitize {name.split()[1]}")


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_a_device_the_sanitizer_does_not_support_is_no_failure(tmp_path, monkeypatch):
    program = tmp_path / "compute-sanitizer"
    program.write_text('#!/bin/sh\n[ "$1" = --help ] || { echo "========= Error: Device not supported"; exit 1; }\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    stage = stages.sanitizer(60)
    assert stage["status"] == "skipped" and "does not support" in stage["output"]
