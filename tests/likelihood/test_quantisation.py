"""Uniform dequantisation: its width and place, whose noise it is, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

from fastdiff.likelihood import dequantise


def images(levels, *shape):
    index = torch.randint(0, levels, shape, generator=torch.Generator().manual_seed(0))
    return (index * (2 / (levels - 1)) - 1).float()


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_noise_is_uniform_over_a_level(levels):
    x = images(levels, 40, 1, 5, 7)
    noisy, offset = dequantise(x, levels, seeds=0)
    width = 2 / (levels - 1)
    assert offset == pytest.approx(-math.log2(width), rel=1e-12)
    place = ((noisy - x).double() / width + 0.5).flatten().sort().values
    uniform = (torch.arange(len(place)) + 0.5) / len(place)
    assert float((place - uniform).abs().max()) < 1.95 / math.sqrt(len(place))  # Kolmogorov and Smirnov at 0.001
    rounded = ((noisy.double() + 1) / width).round() * width - 1
    torch.testing.assert_close(rounded.float(), x, rtol=0, atol=1e-6)
    assert noisy.dtype == x.dtype


def test_noise_is_a_seeds_in_any_batch():
    x = images(256, 6, 3, 4, 4)
    seeds = torch.tensor([3, -1, 2**40, 0, 8, 5])
    together, _ = dequantise(x, seeds=seeds)
    apart, _ = dequantise(x[[4, 1]], seeds=seeds[[4, 1]])
    assert torch.equal(apart, together[[4, 1]])
    assert torch.equal(dequantise(x, seeds=9)[0][2:], dequantise(x[2:], seeds=11)[0])
    strided = x.transpose(2, 3)
    assert torch.equal(dequantise(strided, seeds=9)[0], dequantise(strided.contiguous(), seeds=9)[0])
    assert dequantise(x[:0], seeds=[])[0].shape == (0, 3, 4, 4)


@pytest.mark.parametrize(("value", "levels"), [(0.3, 17), (1.125, 17), (-1.125, 17), (1 / 127.5 - 1, 17)])
def test_values_between_the_levels_are_refused(value, levels):
    with pytest.raises(ValueError, match="levels must be the number of levels"):
        dequantise(torch.full((2, 3), value), levels, seeds=0)


def test_one_level_is_refused():
    with pytest.raises(ValueError, match="levels must be an integer of at least 2"):
        dequantise(torch.zeros(1, 2), 1, seeds=0)
