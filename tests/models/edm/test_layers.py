"""Layers of the EDM networks where the recordings do not go: refusals, and both forms of the same filter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastdiff.models.edm.layers import Conv2d, UNetBlock
from tests.models.contract import randomise

SAME = 2e-6


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_means_and_neighbours_are_the_filter_of_ones(fused: bool, way: str, kernel: int):
    """[1, 1] takes functions of its own; [0, 1, 1, 0] is the same filter, with another padding, and does not."""
    options: dict[str, Any] = {way: True, "fused_resample": fused}
    short = Conv2d(3, 4, kernel, **options)
    long = Conv2d(3, 4, kernel, resample_filter=[0, 1, 1, 0], **options)
    long.load_state_dict({**short.state_dict(), "resample_filter": long.resample_filter})
    x = torch.randn(2, 3, 16, 18, generator=torch.Generator().manual_seed(1))
    inner = (..., slice(3, -3), slice(3, -3)) if fused else ...  # at the border a shared padding is another
    torch.testing.assert_close(short(x)[inner], long(x)[inner], rtol=0, atol=SAME)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 3, -1), "kernel must not be negative, got -1"),
        ((3, 4, 0), "kernel 0 keeps the channels, got 3 in and 4 out"),
        ((0, 4, 3), "channels must be at least 1, got 0 and 4"),
        ((3, 3, 3, True, True, True), "up and down must not both be set"),
    ],
)
def test_convolutions_that_cannot_be(arguments: tuple[Any, ...], message: str):
    with pytest.raises(ValueError, match=message):
        Conv2d(*arguments)


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match="num_heads must divide 16 channels, got 3"):
        UNetBlock(16, 16, 8, attention=True, num_heads=3)


def test_fewer_channels_than_a_head_have_no_attention():
    names = UNetBlock(32, 32, 8, attention=True).state_dict()
    assert not any(name.startswith(("norm2", "qkv", "proj")) for name in names)
    assert "skip.resample_filter" in UNetBlock(16, 16, 8, up=True).state_dict()
    assert not {"skip.weight", "skip.bias"} & UNetBlock(16, 16, 8, up=True).state_dict().keys()


@pytest.mark.parametrize("adaptive", [False, True])
def test_one_embedding_for_all(adaptive: bool):
    block = randomise(UNetBlock(8, 16, 4, adaptive_scale=adaptive))
    x, emb = torch.randn(3, 8, 4, 4), torch.randn(1, 4)
    torch.testing.assert_close(block(x, emb), block(x, emb.expand(3, -1)), rtol=0, atol=SAME)
