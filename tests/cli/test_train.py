"""`fastdiff train`: from a configuration to a model that `fastdiff sample` draws with."""

from __future__ import annotations

import csv
import os

import pytest
from click.testing import CliRunner

from fastdiff.cli import main

pytest.importorskip("sklearn")

CONFIG = """
data: digits8
model: {width: 8, patch: 1, embedding: 16}
iterations: 4
batch: 8
log_every: 2
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    return str(path)


def train(config, outdir, *arguments):
    return CliRunner().invoke(main, ["train", f"--config={config}", f"--outdir={outdir}", *arguments])


def test_trains_logs_and_samples(config, tmp_path):
    out = tmp_path / "run"
    result = train(config, out, "model.width=16")
    assert result.exit_code == 0, result.output
    assert f"wrote {out / 'model.safetensors'}, held-out loss" in result.stdout
    assert "loss=" in result.stderr
    assert "img/s=" in result.stderr
    with open(out / "loss.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["iteration"]) for row in rows] == [2, 4]
    assert 0.1 < float(rows[-1]["heldout_loss"]) < 3
    arguments = [f"--network={out / 'model.safetensors'}", f"--outdir={tmp_path / 's'}", "--steps=2", "--seeds=0-1"]
    assert CliRunner().invoke(main, ["sample", *arguments]).exit_code == 0


def test_resumes_only_when_asked(config, tmp_path):
    out = tmp_path / "run"
    assert train(config, out, "--no-progress").exit_code == 0
    again = train(config, out, "--no-progress")
    assert again.exit_code == 2
    assert "--resume" in again.stderr
    assert train(config, out, "--no-progress", "--resume").exit_code == 0
    other = train(config, out, "--resume", "seed=5")
    assert other.exit_code == 2
    assert "seed is 5, but" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["iteration=3"], "unknown key iteration; did you mean iterations?"),
        (["batch=-1"], "batch must be at least 1"),
        (["data=imagenet"], "data must be one of digits8, digits16"),
        (["model.width=9"], "width"),
        (["--config=absent.yaml"], "absent.yaml: cannot be read"),
        (["--resume"], "checkpoint.safetensors: no such file"),
    ],
)
def test_refused_in_one_line_with_nothing_left_behind(config, tmp_path, arguments, wanted):
    result = train(config, tmp_path / "run", *arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert wanted in line
    assert os.listdir(tmp_path) == ["run.yaml"]


def test_an_output_folder_that_cannot_be_written(config, tmp_path):
    (tmp_path / "file").write_text("")
    result = train(config, tmp_path / "file/run")
    assert result.exit_code == 2
    assert "--outdir: cannot write to" in result.stderr


def test_divergence_is_reported_in_one_line(config, tmp_path):
    result = train(config, tmp_path / "run", "--no-progress", "learning_rate=1e30", "iterations=20", "warmup=0")
    assert result.exit_code == 1
    assert "try a lower learning_rate" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "run/model.safetensors").exists()
