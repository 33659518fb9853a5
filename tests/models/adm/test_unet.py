"""guided-diffusion's U-Nets; that they compute what its code computes is in tests/conformance/test_checkpoints.py."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from fastdiff.models import SuperResModel, UNetModel
from fastdiff.models.network import build
from tests.tolerances import LAYOUT

from ..contract import check_network, randomise
from .configurations import NEW, SMALL

PUBLISHED = {
    "ADM CIFAR-10": (
        57_094_662,
        {
            "image_size": 32, "model_channels": 128, "num_res_blocks": 3, "channel_mult": [1, 2, 2, 2],
            "attention_resolutions": [2, 4], "num_heads": 4,
        },
    ),
    "ADM ImageNet 64x64": (
        295_904_454,
        {
            "image_size": 64, "model_channels": 192, "num_res_blocks": 3, "channel_mult": [1, 2, 3, 4],
            "attention_resolutions": [2, 4, 8], "num_head_channels": 64, "num_classes": 1000,
            "use_new_attention_order": True,
        },
    ),
}  # fmt: skip
SHARED = {"in_channels": 3, "out_channels": 6, "dropout": 0.1, "use_scale_shift_norm": True, "resblock_updown": True}
X, TIME = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([7, 901])


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_published_networks(name):
    count, config = PUBLISHED[name]
    assert sum(p.numel() for p in build("UNetModel", {**SHARED, **config}).parameters()) == count


@pytest.mark.parametrize(
    "options",
    [
        {"num_heads": 4, "num_heads_upsample": 2, "attention_resolutions": (1, 2)},
        NEW | {"num_classes": 5, "out_channels": 6},
    ],
    ids=["legacy", "new"],
)
def test_the_contract_of_networks(options, tmp_path):
    network = randomise(UNetModel(**SMALL | options))
    labels = (torch.tensor([1, 4]),) if "num_classes" in options else ()
    check_network(network, (X, TIME, *labels), tmp_path)


def test_the_contract_of_super_resolution(tmp_path):
    network = randomise(SuperResModel(**SMALL | {"num_res_blocks": 0, "out_channels": 6}))
    assert network.config["in_channels"] == 3 and network.sample_shape == (3, 8, 8)
    check_network(network, (X, TIME), tmp_path, {"low_res": torch.randn(2, 3, 3, 5)})


def test_means_and_neighbours_are_convolutions_with_such_weights():
    fractional = SMALL | {"model_channels": 64, "channel_mult": (0.5, 1)}
    means = randomise(UNetModel(**fractional | {"conv_resample": False}))
    learned = randomise(UNetModel(**fractional))
    weights = means.state_dict()
    weights["input_blocks.2.0.op.weight"] = torch.zeros(32, 32, 3, 3)
    weights["input_blocks.2.0.op.weight"][torch.arange(32), torch.arange(32), 1:, 1:] = 0.25
    weights["output_blocks.1.2.conv.weight"] = torch.zeros(64, 64, 3, 3)
    weights["output_blocks.1.2.conv.weight"][torch.arange(64), torch.arange(64), 1, 1] = 1.0
    weights |= {"input_blocks.2.0.op.bias": torch.zeros(32), "output_blocks.1.2.conv.bias": torch.zeros(64)}
    learned.load_state_dict(weights)
    torch.testing.assert_close(learned(X, TIME), means(X, TIME), rtol=LAYOUT, atol=LAYOUT)


def test_the_two_orders_of_attention_are_one_with_the_channels_moved():
    by_head, by_part = (randomise(UNetModel(**SMALL | {"use_new_attention_order": new})) for new in (False, True))
    assert not torch.allclose(by_head(X, TIME), by_part(X, TIME), rtol=LAYOUT, atol=LAYOUT)
    moved = {}
    for name, tensor in by_head.state_dict().items():
        if ".qkv." in name:
            tensor = tensor.unflatten(0, (2, 3, -1)).transpose(0, 1).flatten(0, 2)
        moved[name] = tensor
    by_part.load_state_dict(moved)
    torch.testing.assert_close(by_part(X, TIME), by_head(X, TIME), rtol=LAYOUT, atol=LAYOUT)


def test_heads_on_the_way_up():
    def output(**options):
        return randomise(UNetModel(**SMALL | options))(X, TIME)

    assert torch.equal(output(), output(num_heads_upsample=2))
    assert not torch.allclose(output(), output(num_heads_upsample=4), rtol=LAYOUT, atol=LAYOUT)
    per_head = output(num_head_channels=32, num_heads_upsample=4)  # the width of a head settles their number
    assert torch.equal(per_head, output(num_head_channels=32, num_heads=8))


def test_a_group_of_one_channel_hides_an_added_time():
    """32 channels are 32 groups, and a norm takes off whatever is added to all of a group."""
    narrow = SMALL | {"channel_mult": (1, 1)}
    for scaled in (False, True):
        network = randomise(UNetModel(**narrow, use_scale_shift_norm=scaled)).double()
        early, late = (network(X.double(), torch.full((2,), time)) for time in (0, 999))
        assert torch.allclose(early, late, rtol=0, atol=1e-9) is not scaled


def test_times_and_labels_in_their_forms():
    network = randomise(UNetModel(**SMALL | {"num_classes": 3}))
    labels, rows = torch.tensor([2, 0]), torch.tensor([[0.0, 0.1, 0.9], [1.0, 0.0, 0.0]])
    assert torch.equal(network(X, TIME, labels), network(X, TIME.double().float(), rows))
    assert torch.equal(network(X, torch.tensor(5), labels), network(X, torch.tensor([5.0, 5.0]), labels))
    assert not torch.equal(network(X, TIME, labels), network(X, TIME, labels.flip(0)))
    assert network.label_dim == 3
    other = network(torch.cat([X, X], dim=3), TIME, labels)  # sizes other than the image's
    assert other.shape == (2, 3, 8, 16)


def test_float64():
    network = randomise(UNetModel(**SMALL | NEW))
    exact = copy.deepcopy(network).double()(X.double(), TIME)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(network(X, TIME).double(), exact, rtol=LAYOUT, atol=LAYOUT)


def test_super_resolution_is_the_network_of_two_images():
    network = randomise(SuperResModel(**SMALL))
    plain = UNetModel(**SMALL | {"in_channels": 6})
    plain.load_state_dict(network.state_dict())
    low = torch.randn(2, 3, 3, 3)
    large = F.interpolate(low, (8, 8), mode="bilinear")
    assert torch.equal(network(X, TIME, low_res=low), plain.eval()(torch.cat([X, large], dim=1), TIME))


def test_what_is_not_kept():
    network = UNetModel(**SMALL | {"attention_resolutions": {2, 1}}, use_checkpoint=True, use_fp16=True)
    assert not network.config.keys() & {"use_checkpoint", "use_fp16", "dims"}
    assert network.config["attention_resolutions"] == [1, 2]
    assert {p.dtype for p in network.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"image_size": 9}, "image_size must be a multiple of 2 for 2 levels, got 9"),
        ({"image_size": 0}, "image_size must be an integer of at least 1"),
        ({"in_channels": 1.5}, "in_channels"),
        ({"model_channels": 48}, r"a positive multiple of 32, got 1 \* 48 = 48"),
        ({"out_channels": 0}, "out_channels"),
        ({"num_res_blocks": -1}, "num_res_blocks must be an integer of at least 0, got -1"),
        ({"attention_resolutions": (0.5,)}, "attention_resolutions"),
        ({"attention_resolutions": "16,8"}, "attention_resolutions"),
        ({"dropout": 1.0}, "dropout"),
        ({"channel_mult": ()}, "channel_mult"),
        ({"channel_mult": (1, -1)}, "channel_mult"),
        ({"conv_resample": 1}, "conv_resample"),
        ({"dims": 1}, "dims must be 2"),
        ({"num_classes": 0}, "num_classes"),
        ({"num_heads": 5}, "num_heads must divide the 64 channels"),
        ({"num_heads": 0}, "num_heads"),
        ({"num_head_channels": 48}, "num_head_channels must divide the 64 channels of a block with attention, got 48"),
        ({"num_head_channels": 0}, "num_head_channels"),
        ({"num_heads_upsample": 3}, "num_heads must divide"),
        ({"use_scale_shift_norm": "yes"}, "use_scale_shift_norm"),
    ],
)
def test_bad_configuration_is_refused_by_name(options, wanted):
    with pytest.raises(ValueError, match=wanted):
        UNetModel(**SMALL | options)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ((X[:, :2], TIME, torch.tensor([0, 1])), r"x must be \[B, 3, H, W\], H and W multiples of 2"),
        ((X[..., :7], TIME, torch.tensor([0, 1])), "multiples of 2, got"),
        ((X, torch.zeros(3), torch.tensor([0, 1])), r"time must be \[2\] or one number, got \[3\]"),
        ((X, TIME), "labels must be given"),
        ((X, TIME, torch.zeros(2)), "labels must be int64"),
        ((X, TIME, torch.tensor([1])), r"labels must be .* got torch.int64 \[1\]"),
    ],
)
def test_bad_input_is_refused(arguments, wanted):
    with pytest.raises(ValueError, match=wanted):
        UNetModel(**SMALL | {"num_classes": 2})(*arguments)


def test_labels_without_classes_are_refused():
    with pytest.raises(ValueError, match="unconditional"):
        UNetModel(**SMALL)(X, TIME, torch.tensor([0, 1]))


@pytest.mark.parametrize("low_res", [None, torch.zeros(1, 3, 4, 4), torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, 4)])
def test_a_small_image_that_does_not_fit_is_refused(low_res):
    with pytest.raises(ValueError, match=r"low_res must be \[2, 3, h, w\]"):
        SuperResModel(**SMALL)(X, TIME, low_res=low_res)
