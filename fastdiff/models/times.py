"""How a network is told the time: one phase a sample, read by sinusoids of many frequencies."""

from __future__ import annotations

import torch
from torch import Tensor

from . import blocks

__all__ = ["phases", "sinusoids"]


def phases(time: Tensor, scale: float, log: bool = False) -> Tensor:
    """`scale * time`, or `scale * ln(time) / 4` with `log`, in float32 (float64 for a float64 time).

    Sinusoids want radians in the hundreds: 1 for the steps of a chain of 1000, 1000 for times in [0, 1], 250 for
    ln(sigma) / 4.
    """
    time = time.to(torch.promote_types(time.dtype, torch.float32))
    return (time.log() / 4 if log else time) * scale


def sinusoids(phase: Tensor, channels: int) -> Tensor:
    """[B] -> [B, channels]: cosines and sines of `phase` at frequencies from 1 down to 1e-4."""
    return blocks.sinusoids(phase, channels, formula="product")
