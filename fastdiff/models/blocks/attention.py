"""Self-attention over the pixels: softmax(q k^T / sqrt(C / heads)) v, by PyTorch's fused kernels where there are any.

The published networks differ only in how the 3C channels of one projection are told apart, so one function serves all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LAYOUTS", "attend", "attend_separately"]

LAYOUTS = {"interleaved": 3, "by_head": 2, "by_part": 1}
"""Where "q, k or v" stands among [batch, ..., tokens] when the channels are taken apart."""


def attend(qkv: Tensor, heads: int, layout: str) -> Tensor:
    """Attention among the tokens of each sample.

    Args:
        qkv: [B, 3C, T] or [B, 3C, H, W], floating.
        heads: a divisor of C.
        layout: what the 3C channels are: "interleaved" is [head][C / heads][q, k, v] (Karras et al. 2022), "by_head" is
            [head][q, k, v][C / heads] and "by_part" [q, k, v][head][C / heads] (both of Dhariwal & Nichol 2021).

    Returns:
        [B, C, T] or [B, C, H, W], channels [head][C / heads], in the memory layout of `qkv`.

    Raises:
        ValueError: unknown layout, or 3 * heads does not divide the channels.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if qkv.shape[1] % (3 * heads):
        raise ValueError(f"qkv must have a multiple of 3 * heads = {3 * heads} channels, got {qkv.shape[1]}")
    part = LAYOUTS[layout]
    sizes = [heads, qkv.shape[1] // (3 * heads)]
    sizes.insert(part - 1, 3)
    split = qkv.flatten(2).reshape(qkv.shape[0], *sizes, -1).movedim(part, 0).transpose(-1, -2)
    if split.stride(-1) != 1:  # else the fused kernels refuse it
        split = split.contiguous()
    query, key, value = split.unbind(0)
    return _joined(F.scaled_dot_product_attention(query, key, value), qkv)


def attend_separately(query: Tensor, key: Tensor, value: Tensor, heads: int = 1) -> Tensor:
    """The same of three projections, each [B, C, T] or [B, C, H, W] with channels [head][C / heads].

    Raises:
        ValueError: `heads` does not divide the channels.
    """
    batch, channels = query.shape[:2]
    if channels % heads:
        raise ValueError(f"the channels must be a multiple of heads = {heads}, got {channels}")

    def split(x: Tensor) -> Tensor:
        x = x.flatten(2).reshape(batch, heads, channels // heads, -1).transpose(-1, -2)
        return x if x.stride(-1) == 1 else x.contiguous()

    return _joined(F.scaled_dot_product_attention(split(query), split(key), split(value)), query)


def _joined(y: Tensor, like: Tensor) -> Tensor:
    """[B, heads, T, C / heads] -> [B, C, ...], as `like` lies in memory."""
    space = like.shape[2:]
    if like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last):
        return y.transpose(1, 2).reshape(y.shape[0], *space, -1).movedim(-1, 1)
    return y.transpose(-1, -2).reshape(y.shape[0], -1, *space).contiguous()
