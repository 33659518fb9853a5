"""The swiss roll at an eighth of its budget: the samples are near unseen data, and the rows mean what they say."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from fastdiff.data import draw_points
from fastdiff.evaluation import sliced_wasserstein
from fastdiff.models import MLP

from ..threads import one_thread
from ..tolerances import SWISS_ROLL_DISTANCE

__all__ = ["one_thread"]

COUNT = 2000
FILE = Path(__file__).parents[2] / "examples" / "swiss_roll.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("swiss_roll", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def unseen():
    return draw_points("swiss_roll", COUNT, split="test")[0]


def test_samples_are_near_unseen_data(example, unseen, tmp_path):
    """Other data are nearer than the bound; a Gaussian of the data's size and an untrained network are not."""
    samples = example.sample(example.train(tmp_path, 400, progress=False), COUNT)[0]
    assert sliced_wasserstein(samples, unseen) < SWISS_ROLL_DISTANCE

    assert sliced_wasserstein(draw_points("swiss_roll", COUNT)[0], unseen) < SWISS_ROLL_DISTANCE / 2
    gaussian = torch.randn(COUNT, 2, generator=torch.Generator().manual_seed(0))
    assert sliced_wasserstein(gaussian, unseen) > 1.5 * SWISS_ROLL_DISTANCE
    untrained = example.sample(MLP(2, width=16, depth=1).requires_grad_(False), COUNT)[0]
    assert sliced_wasserstein(untrained, unseen) > 1.5 * SWISS_ROLL_DISTANCE


def test_the_reverse_process_and_its_drift_have_closed_forms_for_a_gaussian(example):
    """For N(0, I) data the noise to predict is sigma x: states stay N(0, I), and a step's mean is sqrt(1 - beta) x."""
    process = example.PROCESS

    def network(x, time):
        step = (time * example.T / 1000).round().long()
        return torch.from_numpy(1 - process.alphas_cumprod).sqrt().float()[step, None] * x

    states = example.sample(network, COUNT)
    assert states.shape == (example.T + 1, COUNT, 2)
    assert not torch.equal(states[0], states[-1])
    for t in example.TIMES.values():
        x = states[t]
        assert x.std().item() == pytest.approx(1, abs=0.05)
        beta = process.betas[max(t, 1) - 1]
        torch.testing.assert_close(example.drift(network, x, t), ((1 - beta) ** 0.5 - 1) * x, rtol=1e-3, atol=1e-5)


def test_the_forward_process_begins_at_the_data_and_ends_in_noise(example, unseen):
    assert torch.equal(example.diffuse(unseen, 0), unseen)
    assert sliced_wasserstein(example.diffuse(unseen, 1), unseen) < 0.02
    noise = torch.randn(COUNT, 2, generator=torch.Generator().manual_seed(0))
    assert sliced_wasserstein(example.diffuse(unseen, example.T), noise) < 0.1
    assert sliced_wasserstein(example.diffuse(unseen, example.T // 10), noise) > 0.1


def test_the_command_draws_the_picture(example, tmp_path):
    out = tmp_path / "roll.png"
    result = CliRunner().invoke(example.main, ["--out", str(out), "--iterations", "2", "--samples", "20"])
    assert result.exit_code == 0, result.output
    assert "sliced Wasserstein distance to unseen data:" in result.output
    header = out.read_bytes()[:24]
    width, height = struct.unpack(">II", header[16:])
    assert header.startswith(b"\x89PNG") and width > height > 500


def test_a_missing_folder_is_refused_before_any_work(example, tmp_path):
    result = CliRunner().invoke(example.main, ["--out", str(tmp_path / "none" / "roll.png")])
    assert result.exit_code == 2 and "no such folder" in result.output
