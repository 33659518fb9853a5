"""Discriminator guidance's networks: the contract, published sizes, both as one, and as guidance."""

from __future__ import annotations

import pytest
import torch

import fastdiff
from fastdiff.guidance import DiscriminatorGuidance
from fastdiff.models import DGDiscriminator, DGEncoderUNetModel, EncoderUNetModel
from fastdiff.models.network import build
from fastdiff.opening import judge_options

from ..contract import check_network, randomise

WIRING = {"num_res_blocks": 1, "use_scale_shift_norm": True, "resblock_updown": True, "pool": "attention"}
EXTRACTOR = WIRING | {
    "image_size": 8, "in_channels": 3, "model_channels": 32, "out_channels": 5, "attention_resolutions": [0, 1],
    "channel_mult": [1, 2], "num_head_channels": 16,
}  # fmt: skip
HEAD = WIRING | {
    "image_size": 4, "in_channels": 64, "model_channels": 64, "out_channels": 1, "attention_resolutions": [0, 0, 1],
    "channel_mult": [1], "num_head_channels": 8,
}  # fmt: skip
CLASSES = {"condition": True, "num_class": 3}
GENERATOR = torch.Generator().manual_seed(0)
Y, TAU = torch.randn(2, 3, 8, 8, generator=GENERATOR), torch.tensor([0.1, 0.7])
LABELS = torch.tensor([0, 2])


def judge(**options):
    """With weights large enough for it to have an opinion."""
    network = randomise(DGDiscriminator(EXTRACTOR, HEAD | options))
    for parameter in network.parameters():
        parameter *= 4 if parameter.ndim > 1 else 1
    return network


def test_the_contract_of_networks(tmp_path):
    check_network(judge(**CLASSES), (Y, TAU, LABELS), tmp_path)
    check_network(randomise(DGEncoderUNetModel(**EXTRACTOR)), (Y, TAU), tmp_path, {"feature": True})


def test_published_sizes():
    """Kim et al. 2023: the extractor's 47.8 M and the head's 2.88 M parameters."""
    wiring = {**WIRING, "model_channels": 128, "num_head_channels": 64}
    small = {"image_size": 8, "in_channels": 512, "num_res_blocks": 2, "channel_mult": [1]}
    large = {"image_size": 32, "in_channels": 3, "num_res_blocks": 4, "channel_mult": [1, 2, 4]}
    head = wiring | small | {"attention_resolutions": [0, 0, 1], "out_channels": 1}
    extractor = wiring | large | {"attention_resolutions": [1, 2, 4], "out_channels": 1000}
    classes = {"condition": True, "num_class": 10}

    def count(name, config):
        return sum(parameter.numel() for parameter in build(name, config).parameters())

    assert count("DGEncoderUNetModel", extractor) == 47_771_112
    assert count("DGEncoderUNetModel", head) == 2_883_841
    assert count("DGEncoderUNetModel", head | classes) == 2_888_961
    both = count("DGDiscriminator", {"extractor": extractor, "head": head})
    assert both == 47_771_112 + 2_883_841


def test_it_is_adms_encoder_told_another_time():
    network = randomise(DGEncoderUNetModel(**EXTRACTOR))
    other = randomise(EncoderUNetModel(**EXTRACTOR))
    other.load_state_dict(network.state_dict())
    assert torch.equal(network(Y, TAU), other(Y, 999 * TAU))
    assert torch.equal(network(Y, TAU, sigmoid=True), other(Y, 999 * TAU).sigmoid())
    assert torch.equal(network(Y, TAU, LABELS), network(Y, TAU))  # without classes: not looked at
    assert network(Y, TAU, feature=True).shape == (2, 64, 4, 4)
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(network(Y, TAU[0]), network(Y, TAU[:1].expand(2)), **close)


def test_classes_as_numbers_and_as_rows():
    network = judge(**CLASSES)
    want = network(Y, TAU, LABELS)
    rows = torch.tensor([[0.9, 0.0, 0.1], [0.0, 0.4, 0.6]])
    assert torch.equal(network(Y, TAU, rows), want)
    assert (network(Y, TAU, LABELS.flip(0)) - want).abs().min() > 1e-5
    with pytest.raises(ValueError, match="labels must be given"):
        network(Y, TAU)
    with pytest.raises(ValueError, match="labels must be"):
        network(Y, TAU, rows[:, :2])
    assert (network.label_dim, judge().label_dim) == (3, 0)


def test_both_as_one():
    network = judge()
    features = network.extractor(Y, TAU, feature=True)
    assert torch.equal(network(Y, TAU), network.head(features, TAU)[:, 0])
    torch.testing.assert_close(network(Y.double(), TAU.double()), network(Y, TAU))
    network.train()
    assert network.head.training and not network.extractor.training
    fresh = DGDiscriminator(EXTRACTOR, HEAD)
    assert not any(p.requires_grad for p in fresh.extractor.parameters())
    assert all(p.requires_grad for p in fresh.head.parameters())
    assert DGDiscriminator(network.extractor, network.head).config == network.config


def test_images_of_64_pixels_are_judged_in_the_cosine_time():
    wide = EXTRACTOR | {"image_size": 64}
    head = HEAD | {"image_size": 32}
    assert judge_options(build("DGDiscriminator", {"extractor": wide, "head": head})) == {"time": "cosine"}
    assert judge_options(judge()) == {"time": "vp"}
    assert judge_options(lambda y, tau, labels: y) == {}


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_as_guidance(solver):
    """Compiled and readable; the discriminator moves the samples."""
    network = judge(**CLASSES)
    found = {}
    for guidance in (None, DiscriminatorGuidance(network, 2.0, 1.0)):
        for compiled in (True, False):
            sampler = fastdiff.Sampler(
                lambda x, sigma, labels: 0.1 * x,
                solver=solver, steps=4, guidance=guidance, compiled=compiled, shape=(3, 8, 8), dtype=torch.float64,
            )  # fmt: skip
            found[guidance is None, compiled] = sampler(2, seeds=0, labels=[0, 2])
    for free in (True, False):
        scale = found[free, False].abs().max()
        assert (found[free, True] - found[free, False]).abs().max() <= 1e-5 * scale
    assert (found[True, True] - found[False, True]).abs().max() > 1e-4 * scale


@pytest.mark.parametrize(
    ("extractor", "head", "wanted"),
    [
        (CLASSES, {}, "extractor must be without classes"),
        ({}, {"out_channels": 2}, "head must have 1 output"),
        ({}, {"in_channels": 32}, "head must have in_channels 64"),
        ({}, {"image_size": 8}, "image_size 4"),
        ({}, {"condition": 1}, "condition must be"),
        ({}, {"num_class": 0}, "num_class must be"),
        ({"pool": "most"}, {}, "pool must be"),
    ],
)
def test_bad_configuration_is_refused_by_name(extractor, head, wanted):
    with pytest.raises(ValueError, match=wanted):
        build("DGDiscriminator", {"extractor": EXTRACTOR | extractor, "head": HEAD | head})


def test_parts_of_another_kind():
    with pytest.raises(TypeError, match="head must be a DGEncoderUNetModel"):
        DGDiscriminator(EXTRACTOR, torch.nn.Linear(1, 1))
