"""`fastdiff exposure`: what it writes, that flags and files mean the same, and what it refuses before any work."""

from __future__ import annotations

import csv
import json
import os

import pytest
from click.testing import CliRunner
from PIL import Image

from fastdiff import EDMPrediction, Sampler
from fastdiff.cli import main
from fastdiff.data import digits8
from fastdiff.exposure import measure_drift
from fastdiff.models import load

from .test_sample import make_network

for package in ("sklearn", "scipy", "matplotlib"):
    pytest.importorskip(package)


@pytest.fixture
def network(tmp_path):
    return make_network(tmp_path / "net.safetensors", label_dim=10)


def exposure(network, out, *flags):
    fixed = [f"--network={network}", "--data=digits8", "--seeds=0-5", "--probe=4", f"--out={out}", "--no-progress"]
    return CliRunner().invoke(main, ["exposure", *fixed, "--steps=3", *flags])


def table(out):
    with open(out / "drift.csv") as file:
        return list(csv.DictReader(file))


def test_writes_the_table_the_curves_and_how(network, tmp_path):
    out = tmp_path / "out"
    result = exposure(network, out, "--solver=euler", "--epsilon-scale=1.02", "--batch=4", "--split=test")
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir(out)) == ["config.json", "drift.csv", "drift.png"]
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["sigma", "|eps|"]
    assert lines[-1] == f"wrote {', '.join(str(out / name) for name in ('drift.csv', 'drift.png', 'config.json'))}"
    assert Image.open(out / "drift.png").size[0] > 1000

    model = load(network)
    sampler = Sampler(
        model, prediction=EDMPrediction(0.5), solver="euler", steps=3, epsilon_scale=1.02, rho=7.0, process="edm"
    )
    data = digits8("test")
    known = measure_drift(sampler, data.images, seeds=range(6), labels=data.labels, batch=4, probe=4)
    rows = table(out)
    assert [float(row["eps_norm_sampling"]) for row in rows[:-1]] == pytest.approx(known.eps_norm_sampling[:-1])
    assert [float(row["variance_error"]) for row in rows] == pytest.approx(known.variance_error)
    assert [row["shapiro_dimensions"] for row in rows] == ["4", "4", "4", "0"]
    config = json.loads((out / "config.json").read_text())
    assert config["epsilon_scale"] == [1.02] * 3
    assert config["digests"] == {"network": model.metadata["digest"]}
    assert {"solver": "euler", "split": "test", "batch": 4, "seeds": "0-5"}.items() <= config.items()
    assert {"fastdiff", "device"} <= config.keys()


def test_a_file_and_flags_are_one_configuration(network, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "run.yaml").write_text("solver: euler\nepsilon_scale: [1.0, 1.01, 1.02]\nS_churn: 1.0\nsteps: 9\n")
    by_file = exposure(network, tmp_path / "a", f"--config={tmp_path / 'run.yaml'}", "--unconditional", "--probe=0")
    assert by_file.exit_code == 0, by_file.output
    config = json.loads((tmp_path / "a/config.json").read_text())
    assert config["steps"] == 3  # the flag
    assert config["epsilon_scale"] == [1.0, 1.01, 1.02]
    rows = table(tmp_path / "a")
    assert float(rows[0]["sigma"]) == pytest.approx(80 * (1 + 1 / 3))  # churned
    assert rows[0]["shapiro_w"] == ""


REFUSALS = [
    (["--steps=1"], "steps must be at least 2"),
    (["--solver=magic"], "solver"),
    (["--solver=ddim_inversion"], "ddim_inversion"),
    (["--seeds=5-3"], "seeds: the range 5-3 runs backwards"),
    (["--seeds=5"], "seeds must be two or more"),
    (["--epsilon-scale=0"], "epsilon_scale"),
    (["--epsilon-scale=absent.json"], "absent.json"),
    (["--batch=0"], "batch must be at least 1"),
    (["--probe=-1"], "probe must be at least 0"),
    (["--data=digits16"], "samples of shape [1, 16, 16]"),
    (["--data=imagenet"], "data must be one of"),
    (["--split=all"], "split must be one of train, test"),
    (["--network=absent.safetensors"], "absent.safetensors: no such file"),
    (["--discriminator=absent.safetensors"], "absent.safetensors: no such file"),
    (["--S_churn=-1"], "S_churn"),
    (["--device=tpu"], "--device"),
    (["--config=absent.yaml"], "absent.yaml: cannot be read"),
]


@pytest.mark.parametrize(("flags", "wanted"), REFUSALS, ids=[flags[0] for flags, _ in REFUSALS])
def test_refused_in_one_line_with_nothing_left_behind(network, tmp_path, flags, wanted):
    result = exposure(network, tmp_path / "new/out", *flags)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("fastdiff: error: ")
    assert wanted in line
    assert os.listdir(tmp_path) == ["net.safetensors"]


def test_unknown_keys_other_networks_and_classes_are_refused(network, tmp_path):
    (tmp_path / "run.yaml").write_text("solvr: euler\n")
    assert "did you mean solver?" in exposure(network, tmp_path / "o", f"--config={tmp_path / 'run.yaml'}").stderr
    few = make_network(tmp_path / "few.safetensors", label_dim=3)
    assert "10 classes, the network 3" in exposure(few, tmp_path / "o").stderr
    assert "not a discriminator" in exposure(network, tmp_path / "o", f"--discriminator={network}").stderr
    assert not (tmp_path / "o").exists()


CHAIN = {"prediction": "eps", "process": {"name": "vp", "betas": "linear", "T": 50}, "variance": "fixed_small"}


@pytest.mark.parametrize(
    ("metadata", "solver"),
    [
        (CHAIN, "ddpm"),
        ({"prediction": "eps", "process": {"name": "sde", "sde": "vp"}}, "ddim"),
        ({"prediction": "flow", "process": {"name": "flow"}}, "ddim"),
    ],
    ids=["chain", "sde", "flow"],
)
def test_networks_of_other_processes(metadata, solver, tmp_path):
    network = make_network(tmp_path / "other.safetensors", metadata)
    result = exposure(network, tmp_path / "out", "--steps=3")
    assert result.exit_code == 0, result.output
    described = json.loads((tmp_path / "out/config.json").read_text())
    assert (described["solver"], described["steps"], described["sigma_min"]) == (solver, 3, None)


def test_a_diverging_network_fails_in_one_line_with_nothing_left_behind(tmp_path):
    wild = make_network(tmp_path / "wild.safetensors", scale=1e6, label_dim=10)
    result = exposure(wild, tmp_path / "out")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "seeds" in line
    assert not (tmp_path / "out").exists()


def test_weights_without_a_discriminator_are_refused(network, tmp_path):
    result = exposure(network, tmp_path / "out", "--w_1st=1")
    assert result.exit_code == 2
    assert result.stderr == "fastdiff: error: --w_1st needs --discriminator\n"
