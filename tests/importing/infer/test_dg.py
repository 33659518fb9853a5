"""Configurations of discriminator guidance's networks from the shapes of their tensors alone."""

from __future__ import annotations

import pytest

from fastdiff.importing.infer import infer
from fastdiff.models.network import build

WIRING = {"use_scale_shift_norm": True, "resblock_updown": True, "pool": "attention"}
EXTRACTOR = WIRING | {
    "image_size": 32, "in_channels": 3, "model_channels": 64, "out_channels": 1000, "num_res_blocks": 2,
    "attention_resolutions": [1, 2, 4], "channel_mult": [1, 2, 4], "num_head_channels": 64,
}  # fmt: skip
HEAD = WIRING | {
    "image_size": 8, "in_channels": 256, "model_channels": 64, "out_channels": 1, "num_res_blocks": 2,
    "attention_resolutions": [1], "channel_mult": [1], "num_head_channels": 64, "condition": True, "num_class": 10,
}  # fmt: skip


def shapes_of(architecture, config):
    return {name: tuple(tensor.shape) for name, tensor in build(architecture, config).state_dict().items()}


def test_a_discriminator_with_classes_is_known_by_them():
    shapes = shapes_of("DGEncoderUNetModel", HEAD)
    found = infer(shapes)
    assert (found.architecture, found.missing) == ("DGEncoderUNetModel", [])
    assert shapes_of("DGEncoderUNetModel", found.config) == shapes
    for name in ("image_size", "in_channels", "num_head_channels", "condition", "num_class"):
        assert found.config[name] == HEAD[name]
    assert found.found["num_class"] == found.found["condition"] == "label_emb.weight"
    assert set(found.assumed) >= {"num_head_channels", "use_new_attention_order"}


def test_one_without_is_guided_diffusions_unless_said_otherwise():
    shapes = shapes_of("DGEncoderUNetModel", EXTRACTOR)
    assert infer(shapes, {"num_head_channels": 64, "use_new_attention_order": False}).architecture == "EncoderUNetModel"
    found = infer(shapes, {"architecture": "DGEncoderUNetModel"})
    assert found.architecture == "DGEncoderUNetModel" and not found.missing
    assert found.config["condition"] is False and found.config["num_head_channels"] == 64
    assert shapes_of("DGEncoderUNetModel", found.config) == shapes
    given = {"architecture": "DGEncoderUNetModel", "num_head_channels": 32, "num_class": 7}
    assert infer(shapes, given).config.items() >= {"num_head_channels": 32, "num_class": 7}.items()
    assert not {"num_head_channels", "num_class"} & infer(shapes, given).assumed.keys()


def test_both_in_one_file():
    shapes = shapes_of("DGDiscriminator", {"extractor": EXTRACTOR, "head": HEAD})
    found = infer(shapes)
    assert found.architecture == "DGDiscriminator" and not found.missing
    assert shapes_of("DGDiscriminator", found.config) == shapes
    assert found.found["head.num_class"] == "head.label_emb.weight"
    given = {"head": {"num_head_channels": 32}}
    assert infer(shapes, given).config["head"]["num_head_channels"] == 32
    with pytest.raises(ValueError, match="extractor must be a mapping"):
        infer(shapes, {"extractor": 3})


def test_narrow_attention_leaves_the_heads_open():
    shapes = shapes_of("DGEncoderUNetModel", HEAD | {"model_channels": 32, "num_head_channels": 16})
    assert infer(shapes).missing == ["num_head_channels"]
    assert not infer(shapes, {"num_head_channels": 16}).missing


def test_a_network_with_a_way_up_is_not_one():
    options = {"image_size": 8, "in_channels": 3, "model_channels": 32, "out_channels": 3, "num_res_blocks": 1}
    shapes = shapes_of("UNetModel", options | {"attention_resolutions": [], "channel_mult": [1], "num_classes": 4})
    found = infer(shapes, {"num_heads": 1, "image_size": 8})
    assert found.architecture == "UNetModel"
