"""Two hundred damaged and hostile files; thousands by `python -m tests.importing.fuzz`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdiff.importing import load
from fastdiff.models import ModelFileError

from . import fuzz, made
from .mutations import mutated

HOME = Path(__file__).parents[2]


def test_two_hundred_files(tmp_path: Path):
    """In a process of its own: its memory is limited, and an audit hook cannot be taken off again."""
    report = tmp_path / "report"
    command = [
        sys.executable,
        "-m",
        "tests.importing.fuzz",
        "--count",
        "200",
        "--memory",
        "2G",
        "--report",
        str(report),
    ]
    environment = os.environ | {"PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=HOME, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(report.read_text().splitlines()) == 200


def test_mutations_are_those_of_their_seeds():
    bases = {name: data for name, (data, _) in fuzz.made_bases().items()}
    found = [mutated(seed, bases) for seed in range(40)]
    assert found == [mutated(seed, bases) for seed in range(40)]
    assert sum(data != bases[name] for name, _, data in found) > 35


@pytest.mark.parametrize("name", fuzz.made_bases())
def test_files_load_undamaged(name: str, tmp_path: Path):
    data, config = fuzz.made_bases()[name]
    (tmp_path / "file").write_bytes(data)
    network = load(tmp_path / "file", config=config)
    assert torch.isfinite(network(torch.ones(1, 1, 8, 8), torch.ones(1))).all()


@pytest.mark.parametrize("change", [{"architecture": "x"}, {"architecture": 3}, {"config": None}])
def test_descriptions_of_own_files(change: dict[str, object], tmp_path: Path):
    """Seeds 5339 and 5913: the name of an architecture that there is not was blamed on an argument of the user's."""
    data, _ = fuzz.made_bases()["own.safetensors"]
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["fastdiff"] = json.dumps(json.loads(header["__metadata__"]["fastdiff"]) | change)
    (tmp_path / "file").write_bytes(made.safetensors_of(header, data[8 + length :]))
    with pytest.raises(ModelFileError, match=r"unknown architecture .*, or no configuration"):
        load(tmp_path / "file")


WATCHED = {
    "open": "open('other', 'w').close()",
    "exec": "exec('1')",
    "compile": "eval('1')",
    "import": "import this_is_no_module",
    "os.system": "__import__('os').system('true')",
    "pickle.find_class": "__import__('pickle').loads(b'cio\\nopen\\n.')",
}


def test_the_watch_sees(tmp_path: Path):
    """What would be a finding is one: otherwise none would mean nothing."""
    script = (
        "import contextlib, os, pathlib, pickle\nfrom tests.importing import fuzz\nwatch = fuzz.Watch()\n"
        "def load(file, config):\n  with contextlib.suppress(ImportError): exec(code, {})\n"
        "fuzz.load = load\n"
        f"for name, text in {WATCHED!r}.items():\n"
        "  code = compile(text, 'x', 'exec')\n"
        "  print(name, *fuzz.try_file(pathlib.Path('file'), None, 5.0, watch))"
    )
    environment = os.environ | {"PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    lines = dict(line.split(" ", 1) for line in ended.stdout.splitlines())
    assert lines.keys() == WATCHED.keys(), ended.stderr
    assert all(line.startswith("executed") and event in line for event, line in lines.items()), ended.stdout


@pytest.mark.parametrize("body", ["raise KeyError", "while True: pass"])
def test_errors_and_slow_files_are_findings(body: str, tmp_path: Path, monkeypatch):
    def late(file: Path, config: object) -> None:
        exec(body)

    class Idle:
        def __init__(self) -> None:
            self.seen: list[str] = []

        def over(self, file: Path):
            return contextlib.nullcontext()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fuzz, "load", late)
    outcome, seconds, _ = fuzz.try_file(tmp_path / "file", None, 0.2, Idle())
    assert outcome == ("error" if "Key" in body else "slow") and seconds < 5
