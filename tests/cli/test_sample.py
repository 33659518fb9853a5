"""`fastdiff sample`: what it writes, that seeds decide it, and what it refuses before any work."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from fastdiff.cli import main
from fastdiff.exposure.choice import Calibration, Candidate
from fastdiff.models import MLP, Discriminator, UNet, save


def make_network(path, metadata=None, scale=0.05, **config):
    torch.manual_seed(0)
    model = UNet(image_size=8, patch=1, width=8, embedding=8, **config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    save(path, model, {"prediction": "edm", "sigma_data": 0.5} if metadata is None else metadata)
    return str(path)


@pytest.fixture
def network(tmp_path):
    return make_network(tmp_path / "net.safetensors", label_dim=3)


def sample(network, outdir, *flags):
    arguments = ["sample", f"--network={network}", f"--outdir={outdir}", "--steps=4", "--seeds=0-4", "--no-progress"]
    return CliRunner().invoke(main, [*arguments, *flags])


def arrays(outdir):
    return dict(np.load(outdir / "samples.npz", allow_pickle=False))


def test_writes_a_grid_an_array_and_one_line(network, tmp_path):
    out = tmp_path / "out"
    result = sample(network, out, "--epsilon-scale=1.01", "--S_churn=2")
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    assert "5 images in" in line
    assert "images per second" in line
    assert sorted(os.listdir(out)) == ["grid.png", "samples.npz"]
    assert Image.open(out / "grid.png").size == (3 * 64, 2 * 64)
    written = arrays(out)
    assert written["images"].shape == (5, 8, 8, 1)
    assert written["images"].dtype == np.uint8
    assert written["seeds"].tolist() == [0, 1, 2, 3, 4]
    assert written["labels"].tolist() == [0, 1, 2, 0, 1]
    config = json.loads(written["config"].item())
    expected = {"network": network, "steps": 4, "solver": "heun", "epsilon_scale": 1.01, "S_churn": 2.0, "rho": 7.0}
    assert expected.items() <= config.items()
    assert {"fastdiff", "torch", "digest", "sigma_min", "sigma_max", "device"} <= config.keys()


def test_seeds_decide_the_images_whatever_the_batch(network, tmp_path):
    sample(network, tmp_path / "a", "--batch=2", "--S-churn=5")
    sample(network, tmp_path / "b", "--seeds=4,1", "--S_churn=5")
    a, b = arrays(tmp_path / "a")["images"].astype(int), arrays(tmp_path / "b")["images"].astype(int)
    assert np.abs(a[[4, 1]] - b).max() <= 1
    assert np.abs(a[0] - a[1]).max() > 1


def test_class_and_solver(network, tmp_path):
    for solver in ("euler", "ddim"):
        assert sample(network, tmp_path / solver, "--class=2", f"--solver={solver}").exit_code == 0
        assert arrays(tmp_path / solver)["labels"].tolist() == [2] * 5


def test_a_network_without_classes(tmp_path):
    network = make_network(tmp_path / "plain", label_dim=0)
    assert sample(network, tmp_path / "out").exit_code == 0
    assert arrays(tmp_path / "out")["labels"].tolist() == [-1] * 5
    assert "unconditional" in sample(network, tmp_path / "out", "--class=0").stderr


def test_an_existing_folder_keeps_its_other_files(network, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    assert sample(network, tmp_path / "out").exit_code == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["grid.png", "notes.txt", "samples.npz"]


REFUSALS = [
    (["--seeds=3-1"], "runs backwards"),
    (["--seeds=one"], "expected numbers and ranges"),
    (["--steps=0"], "steps must be"),
    (["--steps=1"], "steps must be at least 2"),
    (["--steps=many"], "--steps"),
    (["--solver=magic"], "solver"),
    (["--epsilon-scale=0"], "epsilon_scale"),
    (["--epsilon-scale=nan"], "epsilon_scale"),
    (["--class=3"], "--class must be 0 to 2, got 3"),
    (["--class=-1"], "--class must be 0 to 2, got -1"),
    (["--batch=0"], "--batch"),
    (["--sigma_min=100"], "sigma_min"),
    (["--sigma_max=-1"], "sigma_max"),
    (["--rho=0"], "rho"),
    (["--S_churn=-1"], "S_churn"),
    (["--S_churn=1", "--solver=ddim"], "S_churn"),
    (["--device=tpu"], "--device"),
    (["--network=absent.safetensors"], "absent.safetensors: no such file"),
    (["--stepz=3"], "--stepz"),
]


@pytest.mark.parametrize(("flags", "wanted"), REFUSALS, ids=[flags[0] for flags, _ in REFUSALS])
def test_refused_in_one_line_with_nothing_left_behind(network, tmp_path, flags, wanted):
    out = tmp_path / "new/out"
    result = sample(network, out, *flags)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("fastdiff: error: ")
    assert wanted in line
    assert not out.parent.exists()


def test_refuses_damaged_and_undescribed_networks(network, tmp_path):
    with open(network, "r+b") as file:
        file.truncate(500)
    undescribed = make_network(tmp_path / "undescribed", metadata={"prediction": "eps"})
    for path, wanted in ((network, "the file has 500"), (undescribed, "how its output is read")):
        result = sample(path, tmp_path / "out")
        assert result.exit_code == 2
        (line,) = result.stderr.splitlines()
        assert wanted in line
        assert path in line
    assert not (tmp_path / "out").exists()


def test_refuses_a_network_of_points(tmp_path):
    save(tmp_path / "points.safetensors", MLP(width=8, embedding=8), {"prediction": "edm", "sigma_data": 0.5})
    result = sample(tmp_path / "points.safetensors", tmp_path / "out")
    assert result.exit_code == 2
    assert "--network must draw images, got one of samples [2]" in result.stderr
    assert not (tmp_path / "out").exists()


def test_refuses_an_output_folder_that_cannot_be_written(network, tmp_path):
    (tmp_path / "file").write_text("")
    result = sample(network, tmp_path / "file/out")
    assert result.exit_code == 2
    assert "--outdir: cannot write to" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_diverging_network_fails_in_one_line_with_nothing_left_behind(tmp_path):
    network = make_network(tmp_path / "wild", scale=1e6)
    result = sample(network, tmp_path / "out")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "seeds" in line
    assert not (tmp_path / "out").exists()


def test_help_lists_the_commands_without_loading_them():
    code = (
        "import sys; from fastdiff.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print([m for m in ('omegaconf', 'PIL', 'sklearn', 'fastdiff.models') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "sample" in result.stdout
    assert "train" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"


def test_unknown_command_is_one_line():
    result = CliRunner().invoke(main, ["sampel"])
    assert result.exit_code == 2
    assert result.stderr == "fastdiff: error: No such command 'sampel'.\n"


def make_discriminator(path, image_size=8):
    torch.manual_seed(1)
    judge = Discriminator(image_size=image_size, patch=1, width=8, embedding=8, hidden=8)
    for parameter in judge.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save(path, judge, {})
    return str(path)


def test_a_discriminator_guides(network, tmp_path):
    judge = make_discriminator(tmp_path / "judge.safetensors")
    plain = sample(network, tmp_path / "plain")
    zero = sample(network, tmp_path / "zero", f"--discriminator={judge}", "--w_1st=0")
    guided = sample(network, tmp_path / "guided", f"--discriminator={judge}", "--w-1st=3", "--boosting")
    assert [r.exit_code for r in (plain, zero, guided)] == [0, 0, 0], guided.output
    images = [arrays(tmp_path / name)["images"] for name in ("plain", "zero", "guided")]
    assert (images[0] == images[1]).all()
    assert (images[0] != images[2]).any()
    provenance = json.loads(str(arrays(tmp_path / "guided")["config"]))
    assert provenance["w_1st"] == 3.0
    assert provenance["boosting"] is True
    assert len(provenance["discriminator"]) == 64


def test_lambda_from_a_calibrations_file(network, tmp_path):
    candidate = Candidate(1.05, (1.0,), (0.5,), (0.5,))
    Calibration("search", 1.05, (candidate,), 0.0).save(tmp_path / "lambda.json")
    from_file = sample(network, tmp_path / "file", f"--epsilon-scale={tmp_path / 'lambda.json'}")
    number = sample(network, tmp_path / "number", "--epsilon-scale=1.05")
    assert (from_file.exit_code, number.exit_code) == (0, 0), from_file.output
    assert (arrays(tmp_path / "file")["images"] == arrays(tmp_path / "number")["images"]).all()
    assert json.loads(str(arrays(tmp_path / "file")["config"]))["epsilon_scale"] == 1.05


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--epsilon-scale=missing.json"], "missing.json: neither a number nor a file of fastdiff calibrate"),
        (["--w_1st=1"], "--w_1st needs --discriminator"),
        (["--boosting"], "--boosting needs --discriminator"),
        (["--discriminator={network}"], "not a discriminator of samples of shape [1, 8, 8]"),
        (["--discriminator={other}"], "not a discriminator of samples of shape [1, 8, 8]"),
        (["--discriminator=missing"], "--discriminator: missing: no such file"),
    ],
)
def test_exposure_flags_are_checked_before_any_work(network, tmp_path, flags, message):
    other = make_discriminator(tmp_path / "other.safetensors", 16)
    flags = [flag.format(network=network, other=other) for flag in flags]
    result = sample(network, tmp_path / "out", *flags)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_options_of_the_solver(network, tmp_path):
    flags = ["--solver=dpmpp_2m_sde", "-o", "eta=0.5", "--option", "solver_type=heun", "-o", "schedule=exponential"]
    result = sample(network, tmp_path / "out", *flags, "-o", "clip_denoised=[-1, 1]", "-o", "thresholding=False")
    assert result.exit_code == 0, result.output
    config = json.loads(arrays(tmp_path / "out")["config"].item())
    given = {
        "solver": "dpmpp_2m_sde",
        "eta": 0.5,
        "solver_type": "heun",
        "clip_denoised": [-1, 1],
        "thresholding": False,
    }
    assert given.items() <= config.items()
    assert "rho" not in config  # which is Karras's


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-o", "eta"], "expected NAME=VALUE"),
        (["-o", "eta=1"], "for solver 'heun', got 'eta'"),
        (["-o", "S_churn=1"], "give --S_churn"),
        (["-o", "model=1"], "got 'model'"),
        (["--solver=nothing"], "--solver must be one of"),
    ],
)
def test_options_that_are_none(network, tmp_path, flags, message):
    result = sample(network, tmp_path / "out", *flags)
    assert result.exit_code != 0
    assert message in result.output
    assert not (tmp_path / "out").exists()
