"""Resampling against its definition: zeros between pixels, padding, convolution, every second pixel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.models.blocks import down2, fir_down2, fir_up2, taps, up2, upfirdn2d

EXACT = 1e-12
FILTERS = ([1, 1], [1, 3, 3, 1], [1, 2, 1], [1, 2, 3, 4], [1, 5, 10, 10, 5, 1], [1, 2, 3, 2, 5])


def image() -> Tensor:
    return torch.randn(2, 3, 8, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def defined(x: Tensor, kernel: Tensor, up: int, down: int, pad: tuple[int, int]) -> Tensor:
    batch, channels, height, width = x.shape
    spread = torch.zeros(batch, channels, height * up, width * up, dtype=x.dtype)
    spread[..., ::up, ::up] = x
    padded = F.pad(spread, (*pad, *pad)).flatten(0, 1)[:, None]
    y = F.conv2d(padded, kernel.flip(-1, -2)).unflatten(0, (batch, channels))[:, :, 0]
    return y[..., ::down, ::down]


@pytest.mark.parametrize("filter", FILTERS, ids=str)
def test_spread_filter_and_thin_out(filter: list[int]):
    x, kernel = image(), taps(filter, dtype=torch.float64)
    row = torch.tensor(filter, dtype=torch.float64)
    torch.testing.assert_close(kernel[0, 0], torch.outer(row, row) / row.sum() ** 2, rtol=EXACT, atol=EXACT)
    for up, down in ((1, 1), (2, 1), (1, 2), (2, 2), (3, 2)):
        for pad in ((0, 0), (2, 1), (1, 1), (3, 5), (6, 6), (-1, 2)):
            got = upfirdn2d(x, kernel, up, down, pad)
            torch.testing.assert_close(got, defined(x, kernel, up, down, pad), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("filter", FILTERS, ids=str)
def test_both_paddings(filter: list[int]):
    """For an even length Karras et al. and Song et al. pad alike; the former do not turn the filter around."""
    x, kernel = image(), taps(filter, dtype=torch.float64)
    assert fir_up2(x, kernel).shape == (2, 3, 16, 20)
    assert fir_down2(x, kernel).shape == down2(x, kernel).shape == (2, 3, 4, 5)
    if len(filter) % 2 == 0:
        torch.testing.assert_close(up2(x, kernel), fir_up2(x, kernel), rtol=EXACT, atol=EXACT)
        torch.testing.assert_close(down2(x, kernel), fir_down2(x, kernel.flip(-1, -2)), rtol=EXACT, atol=EXACT)
    whole = upfirdn2d(x, kernel, pad=((len(filter) + 1) // 2, len(filter) // 2))
    torch.testing.assert_close(fir_down2(x, kernel, extra=2), whole, rtol=EXACT, atol=EXACT)
    assert F.conv2d(fir_down2(x, kernel, extra=2), torch.ones(1, 3, 3, 3).double(), stride=2).shape[2:] == (4, 5)


def test_without_a_filter_it_is_nearest_neighbours_and_means():
    x, kernel = image(), taps([1, 1], dtype=torch.float64)
    torch.testing.assert_close(up2(x), up2(x, kernel), rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(down2(x), down2(x, kernel), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("filter", [[], [1, -1], [1, float("inf")]])
def test_no_filter_without_a_sum(filter: list[float]):
    with pytest.raises(ValueError, match="filter must be a list of numbers whose sum is not 0"):
        taps(filter)
