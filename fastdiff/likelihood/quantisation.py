"""Noise that makes discrete data continuous."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ops
from ..errors import check_count
from ..random import seed_tensor

__all__ = ["dequantise", "level_index"]

_DRAW = 0  # of the noise contract; `integration` draws probes from 1 on


def dequantise(images: Tensor, levels: int = 256, *, seeds: int | Sequence[int] | Tensor) -> tuple[Tensor, float]:
    """Uniform noise as wide as the distance 2 / (levels - 1) between two levels, centred on each.

    Args:
        images: [B, ...] with values 2 k / (levels - 1) - 1, k = 0 to levels - 1: 256 for 8-bit images in [-1, 1].
        levels: at least 2.
        seeds: one integer per sample, or an int s for s, s+1, ...: a sample's noise depends on its seed alone.

    Returns:
        (dequantised images, the `offset` that `nll_ode` adds to their bits per dimension: log2((levels - 1) / 2)).

    Raises:
        ValueError: values that are none of the levels.
    """
    index = level_index(images, levels)
    seed = seed_tensor(seeds, len(images), images.device)
    uniform = torch.special.ndtr(ops.normal(seed, images.shape, _DRAW).double())
    noisy = (index + uniform - 0.5) * (2 / (levels - 1)) - 1
    return noisy.to(images.dtype), math.log2((levels - 1) / 2)


def level_index(images: Tensor, levels: int) -> Tensor:
    """k of values 2 k / (levels - 1) - 1: whole numbers in float64.

    Raises:
        ValueError: values that are none of the levels.
    """
    check_count("levels", levels, 2)
    exact = (images.double() + 1) * ((levels - 1) / 2)
    index = exact.round()
    if not bool((((exact - index).abs() <= 1e-3) & (index >= 0) & (index < levels)).all()):
        raise ValueError(f"levels must be the number of levels that the images' values in [-1, 1] have, got {levels}")
    return index
