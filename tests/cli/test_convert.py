"""`fastdiff convert`: what it prints, what it refuses."""

from __future__ import annotations

import json
import os

import pytest
import torch
from click.testing import CliRunner

from fastdiff.cli import main
from fastdiff.models import MLP, load
from tests.models.contract import randomise

CONFIG = {"dim": 2, "width": 4, "depth": 1, "embedding": 4}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A state dict, and what it does not say."""
    torch.save(randomise(MLP(**CONFIG)).state_dict(), tmp_path / "model.pt")
    (tmp_path / "kwargs.json").write_text(json.dumps({"cls": "MLP", "kwargs": CONFIG}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def convert(*arguments):
    return CliRunner().invoke(main, ["convert", *arguments])


def test_says_what_it_has_read_and_written(folder):
    result = convert(
        "model.pt", "out.safetensors", "--config=kwargs.json", "--set=time_scale=2", "--set=prediction=eps",
        "--set=process=vp", "--set=process.betas=linear",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "MLP (fastdiff: an MLP for points), read as torch"
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert rows["dim"] == ["2", "given"] and rows["time_scale"] == ["2", "given"]
    assert rows["dropout"] == ["0.0", "default"]
    network = load("out.safetensors")
    count = sum(parameter.numel() for parameter in network.parameters())
    assert f"  {count} parameters" in lines
    assert any("process VP, prediction Eps; by default solver ddpm, steps 100" in line for line in lines)
    digest = network.metadata["digest"][:16]
    assert lines[-1] == f"wrote out.safetensors (0.0 MB, digest {digest}) and out.json"
    assert network.config["time_scale"] == 2 and network.metadata["process"] == {"name": "vp", "betas": "linear"}
    assert sorted(os.listdir(folder)) == ["kwargs.json", "model.pt", "out.json", "out.safetensors"]


def test_says_that_it_does_not_know_how_the_output_is_read(folder):
    result = convert("model.pt", "out.safetensors", "--config=kwargs.json", "--dtype=bfloat16")
    assert "how its output is read is not known (no prediction, or no process beside it)" in result.stdout
    assert {tensor.dtype for tensor in load("out.safetensors").state_dict().values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["absent.pt", "out.safetensors"], "absent.pt: no such file"),
        (["model.pt", "absent/out.safetensors", "--config=kwargs.json"], "target must be in a folder that exists"),
        (["model.pt", "kwargs.safetensors", "--config=kwargs.json"], "would replace kwargs.json, which is being read"),
        (["model.pt", "out.safetensors", "--config=absent.json"], "config: cannot read absent.json"),
        (["model.pt", "out.safetensors", "--config=kwargs.json", "--set=width=8"], "model.pt: tensor "),
        (["model.pt", "out.safetensors", "--config=kwargs.json", "--set=widht=8"], "argument 'widht'"),
        (["model.pt", "out.safetensors", "--set=dtype=8"], "--set dtype: no argument of a network has this name"),
        (["model.pt", "out.safetensors", "--set=width"], "expected NAME=VALUE"),
        (["model.pt", "out.safetensors", "--weights=best"], "--weights"),
        (["model.pt"], "OUT"),
    ],
)
def test_refused_in_one_line(folder, arguments, wanted):
    before = sorted(os.listdir(folder))
    result = convert(*arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert wanted in line
    assert sorted(os.listdir(folder)) == before


def test_a_full_disk_is_no_refusal(folder, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastdiff.models.io.save_tensors", full)
    result = convert("model.pt", "out.safetensors", "--config=kwargs.json")
    assert result.exit_code == 1
    assert result.stderr == "fastdiff: error: out.safetensors: cannot be written: No space left on device\n"
    assert sorted(os.listdir(folder)) == ["kwargs.json", "model.pt"]
