"""Factors of two between resolutions: nearest neighbours and 2 x 2 means, and with FIR filters (Song et al. 2021).

A filter is a small list of numbers; as a tensor it is their outer product, of sum 1. Without one (None) the filter is
(1, 1), for which up is nearest neighbours and down the mean of 2 x 2. Borders are zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["down2", "fir_down2", "fir_up2", "taps", "up2", "upfirdn2d"]


def taps(
    filter: Sequence[float], device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The outer product of a filter with itself, of sum 1: [1, 1, k, k].

    It is filled in on the device, so that it may be made during a captured call.

    Raises:
        ValueError: no numbers, or their sum is 0 or not finite.
    """
    numbers = [float(number) for number in filter]
    total = sum(numbers)
    if not numbers or not math.isfinite(total) or total == 0:
        raise ValueError(f"filter must be a list of numbers whose sum is not 0, got {list(filter)}")
    row = torch.empty(len(numbers), device=device, dtype=dtype)
    if row.is_meta:  # arithmetic without values would import torch._dynamo
        return row.new_empty(1, 1, len(numbers), len(numbers))
    for place, number in enumerate(numbers):
        row[place].fill_(number / total)
    return torch.outer(row, row)[None, None]


def upfirdn2d(x: Tensor, kernel: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
    """Zeros between the pixels (`up` - 1 after each), padding, convolution of each channel, every `down`-th pixel.

    Args:
        x: [B, C, H, W].
        kernel: [1, 1, k, k]; it is turned around, as a convolution does.
        pad: zeros (before, after) rows and columns; negative ones cut.

    Returns:
        [B, C, H', W'] with H' = (H up + pad[0] + pad[1] - k) // down + 1.
    """
    size = kernel.shape[-1]
    weight = kernel.to(x.dtype).expand(x.shape[1], 1, size, size)
    if up > 1:
        # A transposed convolution is the full one of the spread image: k - 1 zeros before it, k - up after.
        first, last = pad[0] - (size - 1), pad[1] - (size - up)
        cut = max(0, -max(first, last))
        y = F.conv_transpose2d(x, weight, stride=up, padding=cut, groups=x.shape[1])
        first, last = first + cut, last + cut
        return F.pad(y, (first, last, first, last))[..., ::down, ::down] if first or last or down > 1 else y
    if pad[0] != pad[1] or pad[0] < 0:
        x, pad = F.pad(x, (*pad, *pad)), (0, 0)
    return F.conv2d(x, weight.flip(-1, -2), stride=down, padding=pad[0], groups=x.shape[1])


def up2(x: Tensor, kernel: Tensor | None = None, padding: int | None = None) -> Tensor:
    """[B, C, H, W] -> [B, C, 2H, 2W] (one less for an odd filter): a transposed convolution of stride 2.

    Args:
        padding: of it; None is (k - 1) // 2, as Karras et al. 2022 pad. None without a filter.
    """
    if kernel is None:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    channels, size = x.shape[1], kernel.shape[-1]
    weight = (4 * kernel).to(x.dtype).expand(channels, 1, size, size)
    padding = (size - 1) // 2 if padding is None else padding
    return F.conv_transpose2d(x, weight, stride=2, padding=padding, groups=channels)


def down2(x: Tensor, kernel: Tensor | None = None, padding: int | None = None) -> Tensor:
    """[B, C, H, W] -> [B, C, H // 2, W // 2]: a convolution of stride 2, which does not turn the filter around.

    Args:
        padding: zeros on each side; None is (k - 1) // 2, as Karras et al. 2022 pad. None without a filter.
    """
    if kernel is None:
        return F.avg_pool2d(x, 2)
    channels, size = x.shape[1], kernel.shape[-1]
    weight = kernel.to(x.dtype).expand(channels, 1, size, size)
    padding = (size - 1) // 2 if padding is None else padding
    return F.conv2d(x, weight, stride=2, padding=padding, groups=channels)


def fir_up2(x: Tensor, kernel: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, 2H, 2W], as Song et al. 2021 pad: k - 2 shared, the odd one and one more before."""
    pad = kernel.shape[-1] - 2
    return upfirdn2d(x, 4 * kernel, up=2, pad=((pad + 1) // 2 + 1, pad // 2))


def fir_down2(x: Tensor, kernel: Tensor, extra: int = 0) -> Tensor:
    """[B, C, H, W] -> [B, C, H // 2, W // 2], as Song et al. 2021 pad: k - 2 shared, the odd one before.

    Args:
        extra: before a convolution of stride 2, without padding, of `extra` + 1 taps: the image is filtered and padded
            for it, and not yet halved.
    """
    pad = kernel.shape[-1] - 2 + extra
    return upfirdn2d(x, kernel, down=1 if extra else 2, pad=((pad + 1) // 2, pad // 2))
