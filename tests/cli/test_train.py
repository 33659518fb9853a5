"""`fastdiff train`: from a configuration to a model that `fastdiff sample` draws with."""

from __future__ import annotations

import os

import pytest
from click.testing import CliRunner

from fastdiff.cli import main
from fastdiff.training.log import read_log

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


@pytest.mark.parametrize("objective", ["edm", "ddpm"])
def test_trains_logs_and_samples(config, tmp_path, objective):
    out = tmp_path / "run"
    result = train(config, out, "model.width=16", f"objective.name={objective}")
    assert result.exit_code == 0, result.output
    assert f"wrote {out / 'model.safetensors'}, held-out loss" in result.stdout
    assert "1,500 samples, device cpu" in result.stderr
    assert "loss=" in result.stderr
    assert "img/s=" in result.stderr
    rows = read_log(out / "log.jsonl")
    assert [row["iteration"] for row in rows] == [2, 4]
    assert 0.1 < rows[-1]["heldout_loss"] < 3
    arguments = [f"--network={out / 'model.safetensors'}", f"--outdir={tmp_path / 's'}", "--steps=2", "--seeds=0-1"]
    assert CliRunner().invoke(main, ["sample", *arguments]).exit_code == 0


def test_resumes_only_when_asked(config, tmp_path):
    out = tmp_path / "run"
    first = train(config, out, "--no-progress", "--resume")
    assert first.exit_code == 0
    assert f"no checkpoint in {out}: from the beginning" in first.stderr
    again = train(config, out, "--no-progress")
    assert again.exit_code == 2
    assert "--resume" in again.stderr
    resumed = train(config, out, "--no-progress", "--resume")
    assert resumed.exit_code == 0
    assert "from the beginning" not in resumed.stderr
    other = train(config, out, "--resume", "seed=5")
    assert other.exit_code == 2
    assert "seed is 5, but" in other.stderr


def test_a_dry_run_reports_a_step_and_writes_nothing(config, tmp_path):
    result = train(config, tmp_path / "run", "--dry-run")
    assert result.exit_code == 0, result.output
    loss, memory = result.stdout.splitlines()
    assert loss.startswith("one iteration: loss ")
    assert memory.startswith("memory: ")
    assert "parameters" in result.stderr
    assert os.listdir(tmp_path) == ["run.yaml"]


def test_a_preset_is_a_base_for_file_and_overrides(config, tmp_path):
    small = ["model.mults=[1]", "model.blocks=1", "model.heads=1", "model.attention=[]", "augment=0", "warmup=0"]
    result = train(config, tmp_path / "run", "--preset=adm-ip-imagenet32", "--dry-run", *small)
    assert result.exit_code == 0, result.output
    assert "preset adm-ip-imagenet32: published FID 2.72" in result.stderr
    listed = CliRunner().invoke(main, ["train", "--list-presets"])
    assert listed.exit_code == 0
    assert "adm-ip-imagenet32" in listed.stdout


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["iteration=3"], "unknown key iteration; did you mean iterations?"),
        (["batch=-1"], "batch must be at least 1"),
        (["data=imagenet"], "imagenet"),
        (["model.width=9"], "width"),
        (["objective.name=gan"], "objective.name must be one of"),
        (["objective.gamma=-1"], "objective.gamma must be a number of at least 0"),
        (["--config=absent.yaml"], "absent.yaml: cannot be read"),
        (["--preset=cifar"], "preset must be a published run"),
        (["init=absent"], "absent: no such file"),
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
    options = ["learning_rate=1e30", "iterations=20", "warmup=0", "nonfinite_limit=3"]
    result = train(config, tmp_path / "run", "--no-progress", *options)
    assert result.exit_code == 1
    assert "3 in a row that are not finite; try a lower learning_rate" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "run/model.safetensors").exists()
