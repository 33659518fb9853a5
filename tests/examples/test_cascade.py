"""The cascade of digits at a small part of its budget: it learns, and its command writes what it says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from fastdiff.cascade import stage_seeds
from fastdiff.cli import main as fastdiff_main
from fastdiff.data import digits16

from ..threads import one_thread

__all__ = ["one_thread"]

FILE = Path(__file__).parents[2] / "examples" / "cascade.py"
ITERATIONS = ["--iterations", "3", "3"]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("cascade_example", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_upsampler_learns_and_looks_at_the_small_image(example):
    """At a middle step: a network that predicts nothing has about 1, small images of others cost more."""
    data = digits16("test")
    images, labels, seeds = data.images[:64], data.labels[:64], torch.arange(64)
    network = example.train_upsampler(25)
    stage, chain = example.stage_of(network, 5), example.Chain(example.VP.linear(example.T))

    def loss(small):
        cond = {"labels": labels, **stage.conditioning(small, stage_seeds(seeds, 1))}
        return (
            example.ddpm_loss(network, images, torch.full((64,), 300), seeds, chain, prediction="v", cond=cond)
            .loss.mean()
            .item()
        )

    own = loss(example.smaller(images))
    assert own < 0.4
    assert loss(example.smaller(images.flip(0))) > 1.1 * own


def test_the_command_writes_networks_and_a_picture_and_they_make_a_cascade(example, tmp_path, monkeypatch):
    monkeypatch.setattr(example, "Evaluator", lambda reference: lambda images: f"{list(images.shape)}")  # seconds less
    out = tmp_path / "cascade"
    result = CliRunner().invoke(example.main, ["--outdir", str(out), *ITERATIONS, "--samples", "10"])
    assert result.exit_code == 0, result.output
    assert "8x8 digits, enlarged: [10, 1, 16, 16]" in result.output
    with Image.open(out / "cascade.png") as picture:
        assert picture.size == (4 * 64, 10 * 64)
    networks = [str(out / name) for name in ("base.safetensors", "upsampler.safetensors")]
    flags = ["--noise=0.3", "--steps=3", "--seeds=0-1", f"--outdir={tmp_path / 'out'}", "--no-progress"]
    result = CliRunner().invoke(fastdiff_main, ["cascade", *networks, *flags])
    assert result.exit_code == 0, result.output
