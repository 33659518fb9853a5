"""Layers of the networks of Karras et al. 2022, keyed as their published checkpoints are.

Resampling is a part of the convolution layer, with zeros at the border. A convolution with a filter holds it in the
state dict, as a buffer that is checked when weights are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import FourierFeatures, attend, down2, edm_groups, sinusoids, taps, up2, variance_scaling_, zero_

__all__ = ["Conv2d", "FourierEmbedding", "GroupNorm", "PositionalEmbedding", "UNetBlock"]


class Conv2d(nn.Module):
    """Convolution with zero padding of kernel // 2, before it a factor of two up or down.

    Args:
        in_channels: of the input; out_channels: of the output, the same for kernel 0.
        kernel: its height and width; 0 is no convolution, resampling alone.
        up: doubles the resolution; down: halves it; not both.
        resample_filter: see `fastdiff.models.blocks.resample`.
        fused_resample: the filter's own padding and the convolution's are shared, and going down the convolution is
            first; other numbers at the border.

    Raises:
        ValueError: an argument is out of range, or both up and down.
    """

    resample_filter: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        bias: bool = True,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[float] = (1, 1),
        fused_resample: bool = False,
    ) -> None:
        super().__init__()
        if in_channels < 1 or out_channels < 1:
            raise ValueError(f"channels must be at least 1, got {in_channels} and {out_channels}")
        if kernel < 0:
            raise ValueError(f"kernel must not be negative, got {kernel}")
        if up and down:
            raise ValueError("up and down must not both be set")
        if not kernel and in_channels != out_channels:
            raise ValueError(f"kernel 0 keeps the channels, got {in_channels} in and {out_channels} out")
        self.in_channels, self.out_channels, self.kernel = in_channels, out_channels, kernel
        self.up, self.down, self.fused = up, down, fused_resample and kernel > 0
        self.filter = tuple(float(tap) for tap in resample_filter)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel)) if kernel else None
        self.bias = nn.Parameter(torch.zeros(out_channels)) if kernel and bias else None
        self.register_buffer("resample_filter", taps(self.filter) if up or down else None)
        if self.weight is not None:
            variance_scaling_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H', W'], of the parameters' dtype."""
        conv = self.kernel // 2
        # Nearest neighbours and means need no filter: their own functions are several times faster.
        kernel = None if len(self.filter) == 2 and len(set(self.filter)) == 1 else self.resample_filter
        if not self.fused or kernel is None:
            x = up2(x, kernel) if self.up else down2(x, kernel) if self.down and not self.fused else x
            x = x if self.weight is None else F.conv2d(x, self.weight, self.bias, padding=conv)
            return down2(x, kernel) if self.down and self.fused else x
        assert self.weight is not None
        own = (len(self.filter) - 1) // 2
        if self.up:
            x = up2(x, kernel, padding=max(own - conv, 0))
            return F.conv2d(x, self.weight, self.bias, padding=max(conv - own, 0))
        x = F.conv2d(x, self.weight, self.bias, padding=conv + (own if self.down else 0))
        return down2(x, kernel, padding=0) if self.down else x

    def _load_from_state_dict(self, state: Any, prefix: str, *arguments: Any) -> None:
        """Loads, and reports a filter that is not the one of the configuration."""
        found, errors = state.get(prefix + "resample_filter"), arguments[-1]
        super()._load_from_state_dict(state, prefix, *arguments)
        if self.resample_filter is None or found is None or found.is_meta:
            return
        wanted = taps(self.filter, device="cpu")
        if found.shape == wanted.shape and not torch.allclose(found.cpu().float(), wanted, rtol=1e-2, atol=0.0):
            errors.append(f"{prefix}resample_filter must be the one of resample_filter = {list(self.filter)}")

    def extra_repr(self) -> str:
        change = ", up" if self.up else ", down" if self.down else ""
        return f"{self.in_channels}, {self.out_channels}, kernel={self.kernel}{change}"


class GroupNorm(nn.GroupNorm):
    """Group norm of min(32, channels // 4) groups, affine.

    Raises:
        ValueError: see `edm_groups`.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__(edm_groups(num_channels), num_channels, eps=eps)


class PositionalEmbedding(nn.Module):
    """Sinusoids of the noise label; no parameters.

    Args:
        num_channels: of the result, even.
        max_positions: the longest period, over 2 pi.
        endpoint: the last frequency is exactly 1 / max_positions.
        order: "cos_sin" or "sin_cos".
    """

    def __init__(
        self, num_channels: int, max_positions: float = 10000, endpoint: bool = False, order: str = "cos_sin"
    ) -> None:
        super().__init__()
        self.channels, self.order, self.period = num_channels, order, float(max_positions)
        self.denominator = "half-1" if endpoint else "half"
        sinusoids(torch.zeros(1, device="cpu"), num_channels, denominator=self.denominator, order=order)

    def forward(self, time: Tensor) -> Tensor:
        """[B] -> [B, num_channels], float32 (float64 for a float64 time)."""
        return sinusoids(
            time, self.channels, denominator=self.denominator, order=self.order, formula="power", period=self.period
        )


class FourierEmbedding(FourierFeatures):
    """Random Fourier features of the noise label; the frequencies are a buffer `freqs`."""

    def __init__(self, num_channels: int, scale: float = 16, order: str = "cos_sin") -> None:
        super().__init__(num_channels, scale, order=order)


class UNetBlock(nn.Module):
    """Residual block: norm, SiLU, (resampled) convolution, embedding, norm, SiLU, convolution; then attention.

    Args:
        in_channels, out_channels: of input and output; emb_channels: of the embedding, which is activated already.
        up, down: doubles or halves the resolution in the first convolution and in the shortcut.
        attention: self-attention after the block.
        num_heads: of it; None is out_channels // channels_per_head, and where that is 0 there is no attention.
        dropout: before the second convolution, in training.
        skip_scale: what both sums are multiplied by.
        eps: of the norms.
        resample_filter: see `Conv2d`.
        resample_proj: a shortcut that resamples has a 1x1 convolution even if it keeps the channels.
        adaptive_scale: the embedding scales and shifts what the second norm returns; otherwise it is added before it.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
        num_heads: int | None = None,
        channels_per_head: int = 64,
        dropout: float = 0.0,
        skip_scale: float = 1.0,
        eps: float = 1e-5,
        resample_filter: Sequence[float] = (1, 1),
        resample_proj: bool = False,
        adaptive_scale: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        heads = out_channels // channels_per_head if num_heads is None else num_heads
        self.heads = heads if attention else 0
        self.skip_scale, self.adaptive_scale = float(skip_scale), adaptive_scale
        resample: dict[str, Any] = {"up": up, "down": down, "resample_filter": resample_filter}

        self.norm0 = GroupNorm(in_channels, eps)
        self.conv0 = Conv2d(in_channels, out_channels, 3, **resample)
        self.affine = nn.Linear(emb_channels, out_channels * (2 if adaptive_scale else 1))
        self.norm1 = GroupNorm(out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = zero_(Conv2d(out_channels, out_channels, 3))
        self.skip = None
        if in_channels != out_channels or up or down:
            kernel = 1 if resample_proj or in_channels != out_channels else 0
            self.skip = Conv2d(in_channels, out_channels, kernel, **resample)
        self.norm2 = self.qkv = self.proj = None
        if self.heads:
            if out_channels % self.heads:
                raise ValueError(f"num_heads must divide {out_channels} channels, got {self.heads}")
            self.norm2 = GroupNorm(out_channels, eps)
            self.qkv = Conv2d(out_channels, 3 * out_channels, 1)
            self.proj = zero_(Conv2d(out_channels, out_channels, 1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[B, in_channels, H, W] and [B or 1, emb_channels] -> [B, out_channels, H', W']."""
        h = self.conv0(F.silu(self.norm0(x)))
        told = self.affine(emb)[:, :, None, None]
        if self.adaptive_scale:
            scale, shift = told.chunk(2, dim=1)
            h = F.silu(self.norm1(h) * (scale + 1) + shift)
        else:
            h = F.silu(self.norm1(h + told))
        h = self.conv1(self.dropout(h))
        x = self._scaled(h + (x if self.skip is None else self.skip(x)))
        if self.norm2 is None or self.qkv is None or self.proj is None:
            return x
        return self._scaled(self.proj(attend(self.qkv(self.norm2(x)), self.heads, "interleaved")) + x)

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.skip_scale == 1.0 else x * self.skip_scale
