"""Augmentation: what the labels say is what was done; probabilities; draws that depend on a sample's seed only."""

from __future__ import annotations

import math

import pytest
import torch

from fastdiff.data import AUGMENT_LABELS, Augment, flip

from ..tolerances import CUBIC_SHIFT

SCALE = 0.2 * math.log(2)


def batch(count: int, height: int = 9, width: int = 14) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, height, width, generator=generator) * 2 - 1, torch.arange(count) * 7 - 50


def test_nothing_is_done_at_0():
    images, seeds = batch(5)
    found, labels = Augment(0)(images, seeds)
    assert torch.equal(found, images) and labels.dtype == torch.float32
    assert torch.equal(labels, torch.zeros(5, AUGMENT_LABELS))


def test_an_image_with_zero_labels_keeps_its_bits():
    images, seeds = batch(400)
    found, labels = Augment(0.2)(images, seeds)
    untouched = (labels == 0).all(1)
    # Six transformations left out, or flips that come out as no flip.
    assert 0.8**4 * 0.9**2 * 400 == pytest.approx(untouched.sum().item(), abs=4 * (400 * 0.25) ** 0.5)
    assert torch.equal(found[untouched], images[untouched])
    mirrored = (labels[:, :2] != 0).any(1) & (labels[:, 2:] == 0).all(1)
    for image, original, label in zip(found[mirrored], images[mirrored], labels[mirrored]):
        assert torch.equal(image, original.flip([3 - k - 1 for k in (0, 1) if label[k]]))
    assert found.abs().max() <= 1 and not torch.equal(found[~untouched], images[~untouched])


def test_flips_alone():
    images, seeds = batch(300)
    found, labels = Augment(0, x_flip=1)(images, seeds)
    assert labels[:, 1:].eq(0).all() and 100 < labels[:, 0].sum() < 200
    assert torch.equal(found, torch.where(labels[:, 0, None, None, None] > 0, images.flip(3), images))
    plain = flip(images, seeds)
    mirrored = (plain == images.flip(3)).flatten(1).all(1)
    assert 100 < mirrored.sum() < 200 and torch.equal(plain[~mirrored], images[~mirrored])


def test_draws_depend_on_the_seed_only():
    images, seeds = batch(65)
    for function in (Augment(0.7), flip):
        whole = function(images, seeds)
        order = torch.randperm(65, generator=torch.Generator().manual_seed(1))
        shuffled = function(images[order], seeds[order])
        parts = [function(image, seed) for image, seed in zip(images.split(7), seeds.split(7))]
        if function is flip:
            whole, shuffled, parts = (whole,), (shuffled,), [(part,) for part in parts]
        for k, wanted in enumerate(whole):
            assert torch.equal(shuffled[k], wanted[order])
            assert torch.equal(torch.cat([part[k] for part in parts]), wanted)


def test_distribution_of_the_labels():
    count, p = 40_000, 0.3
    labels = Augment(p)(torch.zeros(count, 1, 1, 1), torch.arange(count))[1].double()
    groups = [labels[:, columns] for columns in ([0], [1], [2], [3, 4], [5, 6], [7, 8])]
    shares = torch.stack([(group != 0).any(1).double().mean() for group in groups])
    wanted = torch.tensor([p / 2, p / 2, p, p, p, p], dtype=torch.float64)
    assert ((shares - wanted).abs() < 4 * (wanted * (1 - wanted) / count) ** 0.5).all()
    error = 4 * (2 / (p * count)) ** 0.5
    for k in (2, 7, 8):
        assert labels[labels[:, k] != 0, k].square().mean() == pytest.approx(1, abs=error)
    turned = groups[3][groups[3][:, 1] != 0]
    assert torch.allclose((turned[:, 0] + 1) ** 2 + turned[:, 1] ** 2, torch.ones(1).double(), atol=1e-6)
    assert turned[:, 0].mean() == pytest.approx(-1, abs=error)
    stretch = groups[4][(groups[4] != 0).any(1)]
    assert stretch.square().sum(1).mean() == pytest.approx(1, abs=error)
    pairs = torch.corrcoef(torch.stack([(group != 0).any(1).double() for group in groups]))
    assert (pairs - torch.eye(6)).abs().max() < 4 / count**0.5


def test_labels_say_what_was_done():
    """A blob goes where the labels say, and is deformed as they say; compared around it, away from mirror images."""
    height, width, deviation = 81, 97, 3.0
    start = torch.tensor([5.0, -3.0], dtype=torch.float64)
    axes = [torch.arange(n, dtype=torch.float64) + 0.5 - n / 2 for n in (width, height)]
    position = torch.stack(torch.meshgrid(*axes, indexing="xy"), -1)

    def blob(at: torch.Tensor) -> torch.Tensor:
        return torch.exp((at - start).square().sum(-1) / (-2 * deviation**2))

    count, checked = 60, torch.zeros(9)
    found, labels = Augment(0.6)((blob(position) - 0.5).expand(count, 1, height, width), torch.arange(count))
    for image, label in zip(found[:, 0] + 0.5, labels.double()):
        turn, axis, size = torch.atan2(label[4], label[3] + 1), torch.atan2(label[6], label[5]) / 2, label[5:7].norm()
        along = torch.outer(*2 * [torch.stack([axis.cos(), axis.sin()])])
        stretch = (SCALE * size).exp() * along + (-SCALE * size).exp() * (torch.eye(2) - along)
        rotate = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()]).view(2, 2)
        forward = stretch @ rotate * (SCALE * label[2]).exp() @ torch.diag(1 - 2 * label[:2])
        shift = label[7:] / 8 * torch.tensor([width, height])
        near = (position - forward @ start - shift).norm(dim=-1) < 8
        if near.sum() < 190:  # it has left the image
            continue
        checked += label != 0
        wanted = blob((position - shift) @ torch.linalg.inv(forward).T)
        assert (image - wanted)[near].abs().max() < CUBIC_SHIFT * 2**0.5 * math.exp(-0.5) / deviation
    assert (checked > 10).all()


def test_empty_and_strided_batches():
    found, labels = Augment(0.5)(torch.zeros(0, 3, 4, 4), torch.zeros(0, dtype=torch.int64))
    assert found.shape == (0, 3, 4, 4) and labels.shape == (0, AUGMENT_LABELS)
    images, seeds = batch(12)
    strided = images.to(memory_format=torch.channels_last)
    assert torch.allclose(Augment(0.9)(strided, seeds)[0], Augment(0.9)(images, seeds)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((1.5,), r"p must be in \[0, 1\], got 1.5"), ((0.5, -1), r"x_flip must be in \[0, 1\], got -1")],
)
def test_bad_probabilities(arguments, message):
    with pytest.raises(ValueError, match=message):
        Augment(*arguments)


def test_bad_arguments():
    images, seeds = batch(3)
    for function in (Augment(0.5), flip):
        with pytest.raises(ValueError, match=r"images must be \[B, C, H, W\], got \[3, 9, 14\]"):
            function(images[0], seeds)
        with pytest.raises(ValueError, match=r"seeds must be int64 \[3\], got torch.float32 \[3\]"):
            function(images, seeds.float())
