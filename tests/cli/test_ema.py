"""`fastdiff ema`: from a run's snapshots to a model file."""

from __future__ import annotations

import os

import pytest
import torch
from click.testing import CliRunner

from fastdiff.cli import main
from fastdiff.models import UNet, load
from fastdiff.training.ema import Averages, reconstruct, save_snapshots, snapshot_files


@pytest.fixture
def run(tmp_path):
    """A run's folder with snapshots of two widths at three times."""
    model = UNet(4, 1, width=8, mults=[1], attention=[], patch=1, embedding=8)
    averages = Averages(model, [], [0.05, 0.1])
    for iteration in range(30):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1)
        averages.update(model, iteration)
        if iteration % 10 == 9:
            save_snapshots(tmp_path / "run/snapshots", averages, iteration + 1, {"prediction": "edm"})
    return tmp_path / "run"


def ema(*arguments):
    return CliRunner().invoke(main, ["ema", *map(str, arguments)])


@pytest.mark.parametrize("folder", ["", "snapshots"])
def test_writes_the_average(run, tmp_path, folder):
    out = tmp_path / "model.safetensors"
    result = ema(run / folder, "--sigma-rel=0.08", "--out", out, "--iteration=20")
    assert result.exit_code == 0, result.output
    assert f"wrote {out}: sigma_rel 0.08 at iteration 20 from 6 snapshots, profile error 0.0" in result.stdout
    expected = reconstruct(snapshot_files(run / "snapshots"), 0.08, 20)
    assert all(torch.equal(tensor, expected.tensors[name]) for name, tensor in load(out).state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--sigma-rel=0.5", "--out=m.safetensors"], "sigma_rel must be in (0, 12^(-1/2) = 0.2887], got 0.5"),
        (["--sigma-rel=0.1", "--out=m.safetensors", "--iteration=31"], "newest snapshot's, 30, got 31"),
        (["--sigma-rel=0.1", "--out=absent/m.safetensors"], "--out must be a file in a folder that exists"),
        (["--out=m.safetensors"], "--sigma-rel"),
    ],
)
def test_refused_in_one_line(run, tmp_path, monkeypatch, arguments, wanted):
    monkeypatch.chdir(tmp_path)
    result = ema(run, *arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert wanted in line
    assert os.listdir(tmp_path) == ["run"]


def test_a_folder_without_snapshots(tmp_path):
    result = ema(tmp_path, "--sigma-rel=0.1", "--out", tmp_path / "m.safetensors")
    assert result.exit_code == 2
    assert "no snapshots in" in result.stderr


def test_a_damaged_snapshot_is_named(run, tmp_path):
    file = snapshot_files(run / "snapshots")[0]
    file.write_bytes(file.read_bytes()[:-5])
    result = ema(run, "--sigma-rel=0.1", "--out", tmp_path / "m.safetensors")
    assert result.exit_code == 2
    assert file.name in result.stderr
    assert not (tmp_path / "m.safetensors").exists()
