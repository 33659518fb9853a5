"""NCSN++ once more, as one plain function in float64 over a state dict: what `NCSNpp` is compared with.

It follows score_sde's notes one operation at a time, with loops and einsum for what the network leaves to blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swish": lambda x: x * torch.sigmoid(x),
    "elu": lambda x: torch.where(x > 0, x, torch.expm1(x)),
    "relu": lambda x: x.clamp(min=0),
    "lrelu": lambda x: torch.where(x > 0, x, 0.2 * x),
}


def evaluate(tensors: Mapping[str, Tensor], config: Mapping[str, Any], x: Tensor, time: Tensor) -> Tensor:
    """The network's output, float64."""
    return _Run(tensors, config).run(x.double(), time)


class _Run:
    def __init__(self, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        self.t = {name: tensor.double() for name, tensor in tensors.items()}
        self.c, self.i = config, 0
        self.act = ACTIVATIONS[config["nonlinearity"]]

    def next(self) -> str:
        self.i += 1
        return f"all_modules.{self.i - 1}."

    def run(self, x: Tensor, time: Tensor) -> Tensor:
        c, t = self.c, self.t
        if c["embedding_type"] == "fourier":
            sigma = time.double()
            phase = sigma.log()[:, None] * t[self.next() + "W"] * 2 * math.pi
        else:
            sigma = t["sigmas"][time.long()] if c["scale_by_sigma"] else None
            half = c["nf"] // 2
            phase = time.double()[:, None] * torch.tensor([1e4 ** (-i / (half - 1)) for i in range(half)]).double()
        temb: Tensor | None = torch.cat([phase.sin(), phase.cos()], dim=1)
        if c["embedding_type"] == "positional" and c["nf"] % 2:
            temb = F.pad(temb, (0, 1))
        if c["conditional"]:
            temb = self.linear(self.next(), temb)
            temb = self.linear(self.next(), self.act(temb))
        else:
            temb = None
        if not c["centered"]:
            x = 2 * x - 1
        levels, last = range(len(c["ch_mult"])), len(c["ch_mult"]) - 1
        attends = [c["image_size"] // 2**level in c["attn_resolutions"] for level in levels]
        pyramid, hs = x, [self.conv(self.next(), x)]
        for level in levels:
            for _ in range(c["num_res_blocks"]):
                h = self.block(hs[-1], temb)
                hs.append(self.attention(h) if attends[level] else h)
            if level == last:
                break
            if c["resblock_type"] == "ddpm":
                h = self.downsample(hs[-1], c["resamp_with_conv"])
            else:
                h = self.block(hs[-1], temb, "down")
            if c["progressive_input"] == "input_skip":
                pyramid = self.downsample(pyramid, False)
                joined = self.conv(self.next() + "Conv_0.", pyramid, 0)
                h = joined + h if c["progressive_combine"] == "sum" else torch.cat([joined, h], 1)
            elif c["progressive_input"] == "residual":
                h = pyramid = self.plus(self.downsample(pyramid, True), h)
            hs.append(h)
        h = self.block(self.attention(self.block(hs[-1], temb)), temb)
        for level in reversed(levels):
            for _ in range(c["num_res_blocks"] + 1):
                h = self.block(torch.cat([h, hs.pop()], 1), temb)
            if attends[level]:
                h = self.attention(h)
            if c["progressive"] == "output_skip":
                pyramid = (0 if level == last else self.upsample(pyramid, False)) + self.out(h)
            elif c["progressive"] == "residual" and level == last:
                pyramid = self.out(h)
            elif c["progressive"] == "residual":
                h = pyramid = self.plus(self.upsample(pyramid, True), h)
            if level and c["resblock_type"] == "ddpm":
                h = self.upsample(h, c["resamp_with_conv"])
            elif level:
                h = self.block(h, temb, "up")
        assert not hs
        h = pyramid if c["progressive"] == "output_skip" else self.out(h)
        assert f"all_modules.{self.i}." not in {name[: len(f"all_modules.{self.i}.")] for name in self.t}
        return h / sigma[:, None, None, None] if c["scale_by_sigma"] else h

    def linear(self, key: str, x: Tensor) -> Tensor:
        return x @ self.t[key + "weight"].T + self.t[key + "bias"]

    def conv(self, key: str, x: Tensor, padding: int = 1, stride: int = 1) -> Tensor:
        return F.conv2d(x, self.t[key + "weight"], self.t[key + "bias"], stride, padding)

    def nin(self, key: str, x: Tensor) -> Tensor:
        return torch.einsum("bihw,io->bohw", x, self.t[key + "W"]) + self.t[key + "b"][:, None, None]

    def norm(self, key: str, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        y = x.reshape(batch, min(channels // 4, 32), -1)
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
        return y.reshape(x.shape) * self.t[key + "weight"][:, None, None] + self.t[key + "bias"][:, None, None]

    def plus(self, x: Tensor, y: Tensor) -> Tensor:
        return (x + y) / (math.sqrt(2) if self.c["skip_rescale"] else 1)

    def out(self, h: Tensor) -> Tensor:
        h = self.act(self.norm(self.next(), h))
        return self.conv(self.next(), h)

    def block(self, x: Tensor, temb: Tensor | None, resample: str = "") -> Tensor:
        key = self.next()
        h = self.act(self.norm(key + "GroupNorm_0.", x))
        if resample:
            h, x = self.filtered(h, resample), self.filtered(x, resample)
        h = self.conv(key + "Conv_0.", h)
        if temb is not None:
            h = h + self.linear(key + "Dense_0.", self.act(temb))[:, :, None, None]
        h = self.conv(key + "Conv_1.", self.act(self.norm(key + "GroupNorm_1.", h)))
        if self.c["resblock_type"] == "ddpm":
            return self.plus(self.nin(key + "NIN_0.", x) if x.shape != h.shape else x, h)
        return self.plus(self.conv(key + "Conv_2.", x, 0) if x.shape != h.shape or resample else x, h)

    def attention(self, x: Tensor) -> Tensor:
        key = self.next()
        h = self.norm(key + "GroupNorm_0.", x)
        q, k, v = (self.nin(f"{key}NIN_{i}.", h) for i in range(3))
        weights = torch.einsum("bchw,bcij->bhwij", q, k) * x.shape[1] ** -0.5
        weights = weights.flatten(3).softmax(-1).reshape(weights.shape)
        return self.plus(x, self.nin(key + "NIN_3.", torch.einsum("bhwij,bcij->bchw", weights, v)))

    def downsample(self, x: Tensor, with_conv: bool) -> Tensor:
        key = self.next()
        if not with_conv:
            return self.filtered(x, "down")
        if not self.c["fir"]:
            return self.conv(key + "Conv_0.", F.pad(x, (0, 1, 0, 1)), 0, 2)
        pad = len(self.c["fir_kernel"]) - 2 + 2
        return self.conv(key + "Conv2d_0.", self.fir(x, 1, 1, (pad + 1) // 2, pad // 2), 0, 2)

    def upsample(self, x: Tensor, with_conv: bool) -> Tensor:
        key, y = self.next(), self.filtered(x, "up")
        return self.conv(key + "Conv_0.", y) if with_conv else y

    def filtered(self, x: Tensor, way: str) -> Tensor:
        if not self.c["fir"]:
            if way == "up":
                return x.repeat_interleave(2, -1).repeat_interleave(2, -2)
            return sum(x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
        pad = len(self.c["fir_kernel"]) - 2
        if way == "up":
            return 4 * self.fir(x, 2, 1, (pad + 1) // 2 + 1, pad // 2)
        return self.fir(x, 1, 2, (pad + 1) // 2, pad // 2)

    def fir(self, x: Tensor, up: int, down: int, before: int, after: int) -> Tensor:
        """Zeros after each pixel, zeros around, then a sum over the turned filter."""
        spread = torch.zeros(*x.shape[:2], up * x.shape[2], up * x.shape[3], dtype=x.dtype)
        spread[..., ::up, ::up] = x
        y = F.pad(spread, (before, after, before, after))
        taps = [float(number) for number in self.c["fir_kernel"]]
        total, size = sum(taps), len(taps)
        rows, columns = (y.shape[2] - size + 1, y.shape[3] - size + 1)
        result = torch.zeros(*y.shape[:2], rows, columns, dtype=y.dtype)
        for i in range(size):
            for j in range(size):
                weight = taps[size - 1 - i] * taps[size - 1 - j] / total**2
                result += weight * y[..., i : i + rows, j : j + columns]
        return result[..., ::down, ::down]
