"""Noise levels and times as vectors: sinusoids of fixed frequencies (Ho et al. 2020) or random ones (Song et al. 2021).

A float32 network is told times of up to 999, or phases of hundreds of radians, where one rounding shows in the fifth
digit of its output: each formula is kept in its authors' order of operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FourierFeatures", "sinusoids"]

FORMULAS = ("quotient", "product", "power")
ORDERS = ("cos_sin", "sin_cos")


def sinusoids(
    t: Tensor,
    channels: int,
    *,
    denominator: str = "half",
    order: str = "cos_sin",
    formula: str = "quotient",
    pad_odd: bool = False,
    period: float = 1e4,
) -> Tensor:
    """Cosines and sines of t at frequencies period^(-i / d), i = 0 ... half - 1, half = channels // 2.

    Args:
        t: [B], any dtype.
        channels: of the result, at least 2 (4 with "half-1").
        denominator: d: "half", or "half-1" so that the last frequency is 1 / period itself.
        order: "cos_sin" or "sin_cos": which half is first.
        formula: how a frequency is rounded: "quotient" exp((-ln(period) i) / d) (Dhariwal & Nichol 2021), "product"
            exp(i (-ln(period) / d)) (Ho et al. 2020, Song et al. 2021), "power" (1 / period)^(i / d) (Karras et al.
            2022).
        pad_odd: an odd number of channels ends in a zero; otherwise it is refused.
        period: positive.

    Returns:
        [B, channels] in float32, float64 for a float64 t.

    Raises:
        ValueError: an argument is none of these, or `channels` is odd or too few.
    """
    for name, value, known in (
        ("denominator", denominator, ("half", "half-1")), ("order", order, ORDERS), ("formula", formula, FORMULAS)
    ):  # fmt: skip
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    half = channels // 2
    divisor = half - (denominator == "half-1")
    if divisor < 1 or (channels % 2 and not pad_odd):
        raise ValueError(
            f"channels must be {'' if pad_odd else 'even and '}at least {2 * (half - divisor + 1)}, got {channels}"
        )
    t = t.to(torch.promote_types(t.dtype, torch.float32))
    steps = torch.arange(half, device=t.device, dtype=t.dtype)
    if formula == "power":
        frequencies = (1 / period) ** (steps / divisor)
    elif formula == "product":
        frequencies = torch.exp(steps * (-math.log(period) / divisor))
    else:
        frequencies = torch.exp(-math.log(period) * steps / divisor)
    angles = t[:, None] * frequencies
    waves = [angles.cos(), angles.sin()] if order == "cos_sin" else [angles.sin(), angles.cos()]
    if channels % 2:
        waves.append(torch.zeros_like(angles[:, :1]))
    return torch.cat(waves, dim=1)


class FourierFeatures(nn.Module):
    """Cosines and sines of 2 pi W t with W ~ scale N(0, 1), fixed when the network is made (Tancik et al. 2020).

    W stays in float32 when the network is made half precision, whose 3 digits would leave nothing of such phases.

    Args:
        channels: of the result, even; W has half as many numbers.
        scale: of W.
        name: of W in the state dict.
        frozen: W is a parameter that asks for no gradient; otherwise a buffer.
        order: "cos_sin" or "sin_cos".
        factor_first: (2 pi W) t, otherwise (W t) 2 pi.

    Raises:
        ValueError: `channels` is odd or less than 2, or an unknown order.
    """

    def __init__(
        self,
        channels: int,
        scale: float = 16.0,
        *,
        name: str = "freqs",
        frozen: bool = False,
        order: str = "cos_sin",
        factor_first: bool = True,
    ) -> None:
        super().__init__()
        if channels < 2 or channels % 2:
            raise ValueError(f"channels must be even and at least 2, got {channels}")
        if order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
        self.name, self.order, self.factor_first = name, order, factor_first
        numbers = torch.empty(channels // 2)
        if not numbers.is_meta:  # drawing without values would import torch._dynamo
            numbers.normal_(0.0, scale)
        if frozen:
            self.register_parameter(name, nn.Parameter(numbers, requires_grad=False))
        else:
            self.register_buffer(name, numbers)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def kept(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype.itemsize >= tensor.dtype.itemsize else tensor.to(new.device)

        return super()._apply(kept, recurse)

    def forward(self, t: Tensor) -> Tensor:
        """[B] of any dtype -> [B, channels], float32 (float64 for a float64 t)."""
        t = t.to(torch.promote_types(t.dtype, torch.float32))[:, None]
        numbers = getattr(self, self.name).to(t.dtype)
        angles = t * (2 * math.pi * numbers) if self.factor_first else t * numbers * (2 * math.pi)
        waves = (angles.cos(), angles.sin()) if self.order == "cos_sin" else (angles.sin(), angles.cos())
        return torch.cat(waves, dim=1)
