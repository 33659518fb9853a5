"""The layers of score_sde's NCSN++ and DDPM++ (Song et al. 2021, appendix H), under that project's tensor names.

Where a layer halves or doubles the resolution it is told the FIR kernel of `blocks.resample.taps`, made once for the
whole call; None is nearest neighbours and 2 x 2 means.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import attend_separately, down2, edm_groups, fir_down2, fir_up2, up2, variance_scaling_

__all__ = [
    "ACTIVATIONS",
    "NIN",
    "AttnBlock",
    "Combine",
    "Downsample",
    "FIRConv",
    "ResnetBlockBigGAN",
    "ResnetBlockDDPM",
    "Upsample",
    "added",
    "conv",
    "linear",
    "norm",
]

EPS = 1e-6
LEAST = 1e-10  # the scale of weights that start at zero, nearly

Activation = Callable[[Tensor], Tensor]


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


ACTIVATIONS: dict[str, Activation] = {"swish": F.silu, "elu": F.elu, "relu": F.relu, "lrelu": _leaky}


def norm(channels: int) -> nn.GroupNorm:
    """Group norm of min(channels // 4, 32) groups.

    Raises:
        ValueError: too few channels, or not a multiple of the groups.
    """
    return nn.GroupNorm(edm_groups(channels), channels, eps=EPS)


def conv(inputs: int, outputs: int, size: int = 3, scale: float = 1.0, stride: int = 1) -> nn.Conv2d:
    """Convolution of an odd size that keeps the resolution; with stride 2 it pads nothing."""
    made = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2 if stride == 1 else 0)
    variance_scaling_(made.weight, scale or LEAST)
    nn.init.zeros_(made.bias)  # type: ignore[arg-type]
    return made


def linear(inputs: int, outputs: int) -> nn.Linear:
    made = nn.Linear(inputs, outputs)
    variance_scaling_(made.weight)
    nn.init.zeros_(made.bias)
    return made


def added(x: Tensor, y: Tensor, rescale: bool) -> Tensor:
    """x + y, over the square root of 2 if variances are to stay."""
    return (x + y) / math.sqrt(2) if rescale else x + y


class NIN(nn.Module):
    """A 1x1 convolution whose weight W is [in, out]."""

    def __init__(self, inputs: int, outputs: int, scale: float = 0.1) -> None:
        super().__init__()
        self.W = nn.Parameter(variance_scaling_(torch.empty(inputs, outputs), scale or LEAST))
        self.b = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.W.t()[:, :, None, None], self.b)


class AttnBlock(nn.Module):
    """Self-attention of one head over the pixels, added to its input."""

    def __init__(self, channels: int, rescale: bool, scale: float) -> None:
        super().__init__()
        self.GroupNorm_0 = norm(channels)
        self.NIN_0 = NIN(channels, channels)
        self.NIN_1 = NIN(channels, channels)
        self.NIN_2 = NIN(channels, channels)
        self.NIN_3 = NIN(channels, channels, scale)
        self.rescale = rescale

    def forward(self, x: Tensor) -> Tensor:
        h = self.GroupNorm_0(x)
        return added(x, self.NIN_3(attend_separately(self.NIN_0(h), self.NIN_1(h), self.NIN_2(h))), self.rescale)


class _ResnetBlock(nn.Module):
    """What both kinds of residual block share: norm, activation, convolution, time, and the same once more."""

    def __init__(
        self, act: Activation, inputs: int, outputs: int, embedding: int, dropout: float, rescale: bool, scale: float
    ) -> None:
        super().__init__()
        self.GroupNorm_0 = norm(inputs)
        self.Conv_0 = conv(inputs, outputs)
        self.Dense_0 = linear(embedding, outputs)
        self.GroupNorm_1 = norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.Conv_1 = conv(outputs, outputs, scale=scale)
        self.act, self.rescale = act, rescale

    def _second(self, h: Tensor, temb: Tensor | None) -> Tensor:
        h = self.Conv_0(h)
        if temb is not None:
            h = h + self.Dense_0(self.act(temb))[:, :, None, None]
        y: Tensor = self.Conv_1(self.dropout(self.act(self.GroupNorm_1(h))))
        return y


class ResnetBlockDDPM(_ResnetBlock):
    """Residual block of Ho et al. 2020; `NIN_0` leads past it where the channels change."""

    def __init__(
        self, act: Activation, inputs: int, outputs: int, embedding: int, dropout: float, rescale: bool, scale: float
    ) -> None:
        super().__init__(act, inputs, outputs, embedding, dropout, rescale, scale)
        self.NIN_0 = NIN(inputs, outputs) if inputs != outputs else None

    def forward(self, x: Tensor, temb: Tensor | None) -> Tensor:
        h = self._second(self.act(self.GroupNorm_0(x)), temb)
        return added(x if self.NIN_0 is None else self.NIN_0(x), h, self.rescale)


class ResnetBlockBigGAN(_ResnetBlock):
    """Residual block of Brock et al. 2019, which also changes the resolution; `Conv_2` leads past it where the channels
    or the resolution change."""

    def __init__(
        self,
        act: Activation,
        inputs: int,
        outputs: int,
        embedding: int,
        dropout: float,
        rescale: bool,
        scale: float,
        resample: str | None = None,
    ) -> None:
        super().__init__(act, inputs, outputs, embedding, dropout, rescale, scale)
        self.Conv_2 = conv(inputs, outputs, 1) if inputs != outputs or resample else None
        self.resample = resample

    def forward(self, x: Tensor, temb: Tensor | None, kernel: Tensor | None = None) -> Tensor:
        h = self.act(self.GroupNorm_0(x))
        if self.resample is not None:
            h, x = (_resampled(each, self.resample, kernel) for each in (h, x))
        h = self._second(h, temb)
        return added(x if self.Conv_2 is None else self.Conv_2(x), h, self.rescale)


class Combine(nn.Module):
    """The input's pyramid, taken to the channels of h, added to it or laid before it."""

    def __init__(self, inputs: int, channels: int, method: str) -> None:
        super().__init__()
        self.Conv_0 = conv(inputs, channels, 1)
        self.method = method

    def forward(self, pyramid: Tensor, h: Tensor) -> Tensor:
        y: Tensor = self.Conv_0(pyramid)
        return torch.cat([y, h], dim=1) if self.method == "cat" else y + h


class FIRConv(nn.Module):
    """A FIR filter, then a 3x3 convolution of stride 2; zeros are padded once, before both (Karras et al. 2020)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(variance_scaling_(torch.empty(outputs, inputs, 3, 3)))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, kernel: Tensor) -> Tensor:
        return F.conv2d(fir_down2(x, kernel, extra=2), self.weight, self.bias, stride=2)


class Downsample(nn.Module):
    """Half the resolution, by a filter alone or with a convolution; without FIR the convolution is all there is."""

    def __init__(self, inputs: int, outputs: int, with_conv: bool, fir: bool) -> None:
        super().__init__()
        self.Conv2d_0 = FIRConv(inputs, outputs) if with_conv and fir else None
        self.Conv_0 = conv(inputs, outputs, stride=2) if with_conv and not fir else None

    def forward(self, x: Tensor, kernel: Tensor | None = None) -> Tensor:
        if self.Conv2d_0 is not None:
            filtered: Tensor = self.Conv2d_0(x, kernel)
            return filtered
        if self.Conv_0 is not None:
            strided: Tensor = self.Conv_0(F.pad(x, (0, 1, 0, 1)))
            return strided
        return _resampled(x, "down", kernel)


class Upsample(nn.Module):
    """Twice the resolution, by a filter alone, or by nearest neighbours and a convolution."""

    def __init__(self, inputs: int, outputs: int, with_conv: bool) -> None:
        super().__init__()
        self.Conv_0 = conv(inputs, outputs) if with_conv else None

    def forward(self, x: Tensor, kernel: Tensor | None = None) -> Tensor:
        y = _resampled(x, "up", kernel)
        return y if self.Conv_0 is None else self.Conv_0(y)


def _resampled(x: Tensor, way: str, kernel: Tensor | None) -> Tensor:
    if kernel is None:
        return up2(x) if way == "up" else down2(x)
    return fir_up2(x, kernel) if way == "up" else fir_down2(x, kernel)
