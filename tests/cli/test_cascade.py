"""`fastdiff cascade`: two and three networks in one command; what it writes and what it refuses before any work."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from fastdiff import EDMPrediction, Sampler
from fastdiff.cascade import Cascade, Stage
from fastdiff.cli import main
from fastdiff.models import load, save
from fastdiff.models.adm import SuperResModel
from fastdiff.opening import network_sampler
from tests.models.contract import randomise

from .test_sample import arrays, make_network

VP = {"prediction": "eps", "process": {"name": "vp", "betas": "linear", "T": 1000}, "variance": "learned_range"}


def make_upsampler(path, size=16, classes=3, metadata=None, **config):
    shape = {"image_size": size, "in_channels": 1, "model_channels": 32, "out_channels": 2, "channel_mult": [1]}
    model = SuperResModel(**shape, num_res_blocks=0, attention_resolutions=[], num_classes=classes, **config)
    save(path, randomise(model), VP if metadata is None else metadata)
    return str(path)


@pytest.fixture
def base(tmp_path):
    return make_network(tmp_path / "base.safetensors", label_dim=3)


@pytest.fixture
def upsampler(tmp_path):
    return make_upsampler(tmp_path / "up.safetensors")


def cascade(outdir, *arguments, steps="4,3", seeds="0-4"):
    flags = [f"--outdir={outdir}", f"--steps={steps}", f"--seeds={seeds}", "--no-progress"]
    return CliRunner().invoke(main, ["cascade", *arguments, *flags])


def test_two_networks_draw_what_the_library_draws(base, upsampler, tmp_path):
    result = cascade(tmp_path / "out", base, upsampler, "--noise=0.5", "--batch=3", "--solver=euler,-")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("5 images in ")
    with Image.open(tmp_path / "out/grid.png") as grid:
        assert grid.width == 3 * grid.height // 2
    written = arrays(tmp_path / "out")
    assert written["images"].shape == (5, 16, 16, 1) and written["images"].dtype == np.uint8
    assert written["seeds"].tolist() == [0, 1, 2, 3, 4]
    assert written["labels"].tolist() == [0, 1, 2, 0, 1]

    small = Sampler(load(base), prediction=EDMPrediction(0.5), solver="euler", steps=4)
    stage = Stage(network_sampler(load(upsampler), steps=3), noise=0.5, clip=True)
    images = Cascade(small, stage)(5, seeds=0, labels=[0, 1, 2, 0, 1]).clamp(-1, 1)
    expected = ((images + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(expected - written["images"]).max() <= 1
    assert written["images"].std() > 1

    first, second = json.loads(written["config"].item())["cascade"]
    assert first.items() >= {"network": base, "solver": "euler", "steps": 4}.items()
    assert second.items() >= {"network": upsampler, "solver": "ddpm", "steps": 3, "resize": "bilinear"}.items()
    assert second["noise"] == pytest.approx(stage.level.sigma_ve) == pytest.approx(0.5, abs=0.02)


def test_three_networks_and_settings_for_each(base, upsampler, tmp_path):
    last = make_upsampler(tmp_path / "last.safetensors", size=32, classes=None)
    out = tmp_path / "out"
    flags = ["--noise=0.5,0", "--resize=bicubic,area", "--class=2", "--device=cpu"]
    assert cascade(out, base, upsampler, last, *flags, steps="4,2,ddim3").exit_code == 0
    written = arrays(out)
    assert written["images"].shape == (5, 32, 32, 1)
    assert written["labels"].tolist() == [2] * 5
    told = json.loads(written["config"].item())["cascade"]
    assert [each["steps"] for each in told] == [4, 2, "ddim3"]
    assert [each.get("resize") for each in told] == [None, "bicubic", "area"]
    assert told[2]["noise"] == 0
    less = tmp_path / "less"
    assert cascade(less, base, upsampler, last, *flags, "--batch=1", steps="4,2,ddim3", seeds="3,1").exit_code == 0
    assert np.abs(arrays(less)["images"].astype(int) - written["images"][[3, 1]]).max() <= 1
    assert np.abs(written["images"][3].astype(int) - written["images"][1]).max() > 1


def test_networks_without_classes(tmp_path):
    base = make_network(tmp_path / "base.safetensors", label_dim=0)
    upsampler = make_upsampler(tmp_path / "up.safetensors", classes=None)
    assert cascade(tmp_path / "out", base, upsampler).exit_code == 0
    assert arrays(tmp_path / "out")["labels"].tolist() == [-1] * 5
    assert "unconditional" in cascade(tmp_path / "out", base, upsampler, "--class=0").stderr


REFUSALS = [
    (["--noise=0.1,0.2"], "--noise must have one value, or one for each upsampler (1), got 2"),
    (["--noise=loud"], "expected values separated by commas, got 'loud'"),
    (["--noise=-1"], "noise must be at least 0"),
    (["--steps=4,3,2"], "--steps must have one value, or one for each network (2), got 3"),
    (["--steps=many"], "--steps"),
    (["--steps=0"], "steps must be"),
    (["--solver=magic"], "solver"),
    (["--resize=lanczos"], "resize must be one of bilinear"),
    (["--condition=low res"], "condition must be the name of a keyword"),
    (["--told=level"], "a network that takes level=, and its network does not"),
    (["--told=low_res"], "told must be another keyword"),
    (["--class=3"], "--class must be 0 to 2, got 3"),
    (["--device=tpu"], "--device"),
    (["absent.safetensors"], "absent.safetensors: no such file"),
]


@pytest.mark.parametrize(("flags", "wanted"), REFUSALS, ids=[flags[0] for flags, _ in REFUSALS])
def test_refused_in_one_line_with_nothing_left_behind(base, upsampler, tmp_path, flags, wanted):
    arguments = ["cascade", base, upsampler, f"--outdir={tmp_path / 'new/out'}", "--seeds=0", *flags]
    refused(CliRunner().invoke(main, arguments), wanted, tmp_path)


def refused(result, wanted, tmp_path):
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("fastdiff: error: ")
    assert wanted in line
    assert not (tmp_path / "new").exists()


def test_networks_that_do_not_go_together_are_refused(base, tmp_path):
    more = make_upsampler(tmp_path / "more.safetensors", classes=5)
    dark = make_upsampler(tmp_path / "dark.safetensors", metadata={**VP, "range": [0, 1]})
    odd = make_upsampler(tmp_path / "odd.safetensors", metadata={**VP, "range": "wide"})
    for networks, wanted in (
        ([base], "networks must be a base and at least one upsampler, got 1"),
        ([base, more], "the networks must have the same classes, got 3, 5"),
        ([base, dark], "must know values in the range of the network before it"),
        ([base, odd], "its range must be the values of black and white, got 'wide'"),
        ([base, base], "sampler must be of a network that takes low_res=, and its network does not"),
    ):
        refused(cascade(tmp_path / "new/out", *networks, steps="3"), wanted, tmp_path)
