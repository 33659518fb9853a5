"""`fastdiff sweep`: a grid from flags or YAML, resumed, split by torchrun's variables, refused before any work."""

from __future__ import annotations

import csv

import pytest
import torch
from click.testing import CliRunner

from fastdiff.cli import main

from .test_sample import make_network

pytest.importorskip("sklearn")
pytest.importorskip("torchmetrics")
pytest.importorskip("prdc")
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@pytest.fixture
def flags(tmp_path):
    network = make_network(tmp_path / "net.safetensors", label_dim=3)
    torch.manual_seed(0)
    features = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    torch.jit.script(features).save(tmp_path / "features.pt")
    common = f"--network={network} --data=digits8 --features={tmp_path / 'features.pt'} --samples=10 --ranges=2"
    return [*common.split(), "--batch=10", "--solver=euler"]


def sweep(out, flags, env=None):
    return CliRunner().invoke(main, ["sweep", f"--out={out}", *flags], env=env)


def test_flags_give_a_grid_and_a_second_run_does_nothing(flags, tmp_path):
    out = tmp_path / "out"
    grid = [*flags, "--steps=3,4", "--epsilon-scale=0.97,1"]
    result = sweep(out, grid)
    assert result.exit_code == 0, result.output
    assert "8 cells of 10 samples, 0 finished before" in result.stderr
    rows = list(csv.DictReader((out / "sweep.csv").read_text().splitlines()))
    assert [(row["steps"], row["epsilon_scale"], row["range"]) for row in rows[:3]] == [
        ("3", "0.97", "0"), ("3", "0.97", "1"), ("3", "1.0", "0"),
    ]  # fmt: skip
    assert "EDM-ES" in (out / "best.md").read_text()
    before = (out / "sweep.csv").read_bytes()
    again = sweep(out, grid)
    assert "8 finished before" in again.stderr
    assert (out / "sweep.csv").read_bytes() == before


def test_the_same_from_yaml(flags, tmp_path):
    lines = [flag.removeprefix("--").replace("=", ": ") for flag in flags]
    (tmp_path / "sweep.yaml").write_text("\n".join([*lines, "steps: 3", "epsilon_scale: [0.97, 1.0]"]))
    assert sweep(tmp_path / "a", [f"--config={tmp_path / 'sweep.yaml'}", "--steps=4"]).exit_code == 0
    assert sweep(tmp_path / "b", [*flags, "--steps=4", "--epsilon-scale=.97,1"]).exit_code == 0
    assert (tmp_path / "a/sweep.csv").read_bytes() == (tmp_path / "b/sweep.csv").read_bytes()


def test_torchrun_splits_the_cells_and_the_last_writes_the_results(flags, tmp_path):
    out = tmp_path / "out"
    grid = [*flags, "--steps=3,4"]
    first = sweep(out, grid, {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"})
    assert first.exit_code == 0, first.output
    assert not (out / "sweep.csv").exists()
    assert sweep(out, grid, {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}).exit_code == 0
    assert sweep(tmp_path / "alone", grid).exit_code == 0
    assert (out / "sweep.csv").read_bytes() == (tmp_path / "alone/sweep.csv").read_bytes()


REFUSALS = [
    (["--steps=1"], "steps must be at least 2"),
    (["--steps=five"], "--steps: expected values"),
    (["--solver=magic"], "solver must be one of"),
    (["--epsilon-scale=0"], "epsilon_scale"),
    (["--w-1st=1"], "discriminator must be given"),
    (["--ranges=0"], "ranges must be"),
    (["--features=absent.pt"], "absent.pt"),
    (["--network=absent.safetensors"], "absent.safetensors: no such file"),
    (["--discriminator=absent.safetensors"], "absent.safetensors: no such file"),
    (["--discriminator=digits"], "not a discriminator of samples of shape"),
    (["--data=mnist"], "data must be one of"),
    (["--network=digits"], "has images of shape [1, 8, 8], the network draws [1, 16, 16]"),
    (["--device=tpu"], "device"),
    (["--config=absent.yaml"], "absent.yaml"),
]


@pytest.mark.parametrize(("extra", "wanted"), REFUSALS, ids=[" ".join(extra) for extra, _ in REFUSALS])
def test_refused_in_one_line_with_nothing_left_behind(flags, tmp_path, extra, wanted):
    result = sweep(tmp_path / "out", [*flags, "--steps=3", *extra])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("fastdiff: error: ")
    assert wanted in line
    assert not (tmp_path / "out").exists()


def test_unknown_keys_name_the_nearest(flags, tmp_path):
    (tmp_path / "sweep.yaml").write_text("epsilon_scales: [1]")
    result = sweep(tmp_path / "out", [*flags, f"--config={tmp_path / 'sweep.yaml'}"])
    assert "did you mean epsilon_scale?" in result.stderr


def test_too_few_samples_are_refused_in_one_line(flags, tmp_path):
    result = sweep(tmp_path / "out", [*flags, "--steps=2", "--samples=4"])
    assert result.exit_code == 2
    assert result.stderr == "fastdiff: error: samples must be an integer of at least 5, got 4\n"
    assert not (tmp_path / "out").exists()
