"""What the tensors of EDM's networks say of their configurations."""

from __future__ import annotations

from typing import Any

import pytest

from fastdiff.importing.infer import edm, infer
from fastdiff.models.network import build
from tests.models.edm.configurations import PUBLISHED, SMALL

ALL = {**SMALL, **{name: (architecture, config) for name, (architecture, config, _) in PUBLISHED.items()}}


def shapes(architecture: str, config: dict[str, Any], prefix: str = "") -> dict[str, tuple[int, ...]]:
    state = build(architecture, config).state_dict()
    return {prefix + name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("name", ALL)
def test_a_network_from_its_tensors(name: str):
    architecture, config = ALL[name]
    model: Any = build(architecture, config)
    found = infer(shapes(architecture, config))
    assert found.architecture == architecture and not found.missing
    assert found.config.keys() == found.found.keys() | found.assumed.keys()
    assert found.config.keys() == model.config.keys() - {"label_dropout"}
    known = {**model.config, "attn_resolutions": found.config["attn_resolutions"]}
    assert found.config == {name: known[name] for name in found.config}
    assert set(found.config["attn_resolutions"]) <= set(model.config["attn_resolutions"])
    assert shapes(architecture, found.config) == shapes(architecture, config)


def test_a_preconditioner_is_assumed_or_shown_or_given():
    architecture, config = SMALL["adm"]
    tensors = shapes(architecture, config, "model.")
    found = infer(tensors)
    assert found.architecture == "EDMPrecond" and "architecture" in found.assumed and "sigma_data" in found.assumed
    assert found.config["model_type"] == "DhariwalUNet" and found.config["img_channels"] == 3
    assert "in_channels" not in found.config and "out_channels" not in found.config
    assert found.config["model_channels"] == 32 and found.config["augment_dim"] == 3

    rounded = infer({**tensors, "u": (1001,)})
    assert rounded.architecture == "iDDPMPrecond" and rounded.config["M"] == 1000 and "u" in rounded.found.values()
    given = infer(tensors, {"architecture": "VEPrecond", "sigma_max": 80})
    assert given.architecture == "VEPrecond" and given.config["sigma_max"] == 80
    assert "sigma_data" not in given.config and "architecture" not in given.config


def test_what_is_given_goes_over_what_is_assumed():
    architecture, config = SMALL["ncsnpp"]
    found = infer(shapes(architecture, config), {"resample_filter": [1, 2, 2, 1], "dropout": 0.0})
    assert found.config["resample_filter"] == [1, 2, 2, 1] and found.config["dropout"] == 0.0
    assert not {"resample_filter", "dropout"} & (found.assumed.keys() | found.found.keys())


def test_a_filter_of_another_length_must_be_given():
    architecture, config = SMALL["ncsnpp"]
    tensors = shapes(architecture, {**config, "resample_filter": [1, 4, 6, 4, 1, 0]})
    assert infer(tensors).missing == ["resample_filter"]
    assert not infer(tensors, {"resample_filter": [1, 4, 6, 4, 1, 0]}).missing


def test_one_level_shows_no_ways():
    architecture, config = SMALL["ddpmpp"]
    found = infer(shapes(architecture, {**config, "channel_mult": [2]}))
    assert {"encoder_type", "decoder_type", "resample_filter"} <= found.assumed.keys()


@pytest.mark.parametrize("name", ["ddpmpp", "adm"])
def test_no_blocks_in_the_encoder(name):
    architecture, config = SMALL[name]
    tensors = shapes(architecture, {**config, "num_blocks": 0})
    found = infer(tensors)
    assert found.config["num_blocks"] == 0 and found.config["channel_mult"] == list(config["channel_mult"])
    assert shapes(architecture, {**found.config}) == tensors


def test_tensors_of_others_and_broken_ones():
    architecture, config = SMALL["ddpmpp"]
    tensors = shapes(architecture, config)
    assert edm.infer({"input_blocks.0.0.weight": (8, 3, 3, 3)}, {}) is None
    assert edm.infer(tensors, {"architecture": "UNetModel"}) is None
    for name, shape, message in (
        ("enc.8x8_conv.weight", (8, 3, 3), r"must have 4 axes of at least 1, got shape \[8, 3, 3\]"),
        ("map_layer0.weight", (33, 8), "33 must be a multiple of model_channels = 8"),
        ("dec.4x4_block0.conv1.weight", None, "'dec.4x4_block0.conv1.weight' must have 4 axes of at least 1, got none"),
        ("map_label.weight", (8, 0), r"got shape \[8, 0\]"),
    ):
        changed = {n: s for n, s in tensors.items() if n != name} | ({} if shape is None else {name: shape})
        with pytest.raises(ValueError, match=message):
            edm.infer(changed, {})
