"""Configurations of guided-diffusion's networks from the shapes of their tensors alone."""

from __future__ import annotations

from typing import Any

import pytest

from fastdiff.importing.infer import infer
from fastdiff.models.network import build

SMALL: dict[str, Any] = {
    "image_size": 8, "in_channels": 3, "model_channels": 32, "out_channels": 3, "num_res_blocks": 2,
    "attention_resolutions": [2], "dropout": 0.0, "channel_mult": [1, 2], "num_heads": 2, "num_head_channels": -1,
    "num_heads_upsample": -1, "use_new_attention_order": False,
}  # fmt: skip
HIDDEN = ("image_size", "num_heads", "num_head_channels", "num_heads_upsample", "use_new_attention_order", "dropout")
FRACTIONAL = {"model_channels": 160, "channel_mult": [0.6, 1.2], "use_scale_shift_norm": True}
DEEP = {"channel_mult": [1, 1, 2], "image_size": 16, "attention_resolutions": [1, 4]}
POOL = {"num_head_channels": 32, "num_heads": 1}


def shapes_of(architecture, config):
    return {name: tuple(tensor.shape) for name, tensor in build(architecture, config).state_dict().items()}


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("UNetModel", {}),
        ("UNetModel", {"num_res_blocks": 0, "channel_mult": [1, 2, 1], "attention_resolutions": [1]}),
        ("UNetModel", DEEP | {"resblock_updown": True, "num_classes": 7, "out_channels": 6}),
        ("UNetModel", DEEP | {"conv_resample": False}),
        ("UNetModel", {"channel_mult": [1], "attention_resolutions": []}),
        ("UNetModel", FRACTIONAL),
        ("SuperResModel", {"num_res_blocks": 0}),
        ("SuperResModel", DEEP | {"out_channels": 6, "resblock_updown": True}),
        ("EncoderUNetModel", DEEP | POOL | {"pool": "attention", "resblock_updown": True}),
        ("EncoderUNetModel", POOL | {"pool": "adaptive", "out_channels": 1000}),
        ("EncoderUNetModel", POOL | {"pool": "spatial", "conv_resample": False}),
        ("EncoderUNetModel", FRACTIONAL | {"pool": "spatial_v2"}),
    ],
)
def test_a_configuration_comes_back(architecture, options):
    config = SMALL | options
    given = {name: config[name] for name in HIDDEN}
    found = infer(shapes_of(architecture, config), given)
    assert found.architecture == architecture and not found.missing
    assert build(architecture, found.config).config == build(architecture, config).config
    assert not (found.found.keys() | found.assumed.keys()) & given.keys()
    assert {"model_channels", "channel_mult", "num_res_blocks", "use_scale_shift_norm"} <= found.found.keys()


def test_what_no_tensor_shows():
    found = infer(shapes_of("UNetModel", SMALL))
    assert found.missing == ["image_size", "num_head_channels or num_heads", "use_new_attention_order"]
    assert not found.config.keys() & {"image_size", "num_heads", "use_new_attention_order"}
    assert found.assumed.keys() == {"dropout", "num_heads_upsample"}
    one = infer(shapes_of("UNetModel", SMALL), {"num_heads": 1, "image_size": 8})
    assert not one.missing and "one head" in one.assumed["use_new_attention_order"]
    wide = infer(shapes_of("UNetModel", SMALL), {"num_head_channels": 64, "image_size": 8})
    assert not wide.missing and wide.config["use_new_attention_order"] is False


def test_positions_show_the_size_of_the_images():
    config = SMALL | POOL | {"pool": "attention"}
    found = infer(shapes_of("EncoderUNetModel", config), {"num_head_channels": 32, "use_new_attention_order": True})
    assert found.config["image_size"] == 8 and not found.missing
    assert infer(shapes_of("EncoderUNetModel", config), {"num_heads": 2}).missing[0] == "num_head_channels"


def test_levels_that_only_the_user_can_tell():
    """Residual blocks that change the size are named as the others are; without any other sign both readings fit."""
    config = SMALL | {"channel_mult": [1, 1], "num_res_blocks": 1, "attention_resolutions": [], "resblock_updown": True}
    shapes = shapes_of("EncoderUNetModel", config | {"pool": "adaptive"})
    assert {"num_res_blocks", "channel_mult"} <= set(infer(shapes).missing)
    given = {name: config[name] for name in HIDDEN} | {"num_res_blocks": 1}
    found = infer(shapes, given)
    assert not found.missing and found.config["channel_mult"] == [1, 1] and found.config["resblock_updown"]


def test_given_values_stand():
    found = infer(shapes_of("UNetModel", SMALL), {"num_res_blocks": 9, "model_channels": 64, "num_heads": 1})
    assert found.config["num_res_blocks"] == 9 and found.config["model_channels"] == 64
    six = shapes_of("UNetModel", SMALL | {"in_channels": 6, "out_channels": 6})
    assert infer(six).architecture == "SuperResModel" and "architecture" in infer(six).assumed
    assert infer(six, {"in_channels": 6}).architecture == "UNetModel"
    assert infer(six, {"architecture": "UNetModel"}).config["in_channels"] == 6


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"middle_block.0.emb_layers.1.weight": None}, "middle_block.0.emb_layers.1.weight.* is missing"),
        ({"time_embed.0.weight": (128,)}, r"time_embed.0.weight.* has shape \[128\]"),
        ({"output_blocks.99999.0.op.weight": (1,)}, "output_blocks.99999: there are only"),
        (dict.fromkeys(("input_blocks.1.0.out_layers.0.weight", "output_blocks.0.0.out_layers.0.weight")), "no number"),
    ],
)
def test_tensors_that_no_network_has(change, wanted):
    shapes = {name: shape for name, shape in {**shapes_of("UNetModel", SMALL), **change}.items() if shape is not None}
    with pytest.raises(ValueError, match=wanted):
        infer(shapes)
