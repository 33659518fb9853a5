"""Attention against its definition, in each layout of the channels and of memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastdiff.models.blocks import attend, attend_separately
from fastdiff.models.blocks.attention import LAYOUTS

EXACT = 1e-12


def parts(qkv: Tensor, heads: int, layout: str) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each [B, C, ...] with channels [head][C / heads], channel by channel."""
    channels = qkv.shape[1] // 3
    size = channels // heads
    index = {
        "interleaved": lambda head, c, j: (head * size + c) * 3 + j,
        "by_head": lambda head, c, j: (head * 3 + j) * size + c,
        "by_part": lambda head, c, j: (j * heads + head) * size + c,
    }[layout]
    picked = [[index(head, c, j) for head in range(heads) for c in range(size)] for j in range(3)]
    return qkv[:, picked[0]], qkv[:, picked[1]], qkv[:, picked[2]]


def defined(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    q, k, v = (x.flatten(2).unflatten(1, (heads, -1)) for x in (query, key, value))
    weights = torch.softmax(torch.einsum("bhct,bhcs->bhts", q, k) / q.shape[2] ** 0.5, dim=-1)
    return torch.einsum("bhts,bhcs->bhct", weights, v).reshape(query.shape)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_each_layout_is_its_definition(layout: str, heads: int):
    qkv = torch.randn(2, 24, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    query, key, value = parts(qkv, heads, layout)
    expected = defined(query, key, value, heads)
    for memory in (torch.contiguous_format, torch.channels_last):
        got = attend(qkv.contiguous(memory_format=memory), heads, layout)
        torch.testing.assert_close(got, expected, rtol=EXACT, atol=EXACT)
        assert got.is_contiguous(memory_format=memory)
    torch.testing.assert_close(attend(qkv.flatten(2), heads, layout), expected.flatten(2), rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(attend_separately(query, key, value, heads), expected, rtol=EXACT, atol=EXACT)


def test_wrong_arguments_are_refused():
    qkv = torch.zeros(1, 24, 4)
    with pytest.raises(ValueError, match=r"layout must be one of interleaved, by_head, by_part, got 'other'"):
        attend(qkv, 1, "other")
    with pytest.raises(ValueError, match=r"multiple of 3 \* heads = 15 channels, got 24"):
        attend(qkv, 5, "by_head")
    with pytest.raises(ValueError, match=r"multiple of heads = 3, got 8"):
        attend_separately(*qkv.split(8, dim=1), heads=3)
