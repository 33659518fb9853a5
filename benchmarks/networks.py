"""The networks whose loops are measured, with random weights: speed does not ask for trained ones.

Written from the architectures' descriptions, at the published sizes:

    MLP            policy of DPPO's kind: 4 actions of 7 numbers from a state, three hidden layers (Ren et al. 2024)
    UNet1d         Diffusion Policy's temporal U-Net with FiLM conditioning (Chi et al. 2023)
    DDPMpp         EDM's CIFAR-10 network, 55.7 M parameters (Song et al. 2021; Karras et al. 2022, Table 7)
    Encoder        ADM's classifier (Dhariwal & Nichol 2021): 47.8 M parameters at 32 x 32; headless, its feature maps
    Discriminator  Encoder's features and a small Encoder as head (Kim et al. 2023)

All map (x [B, ...], t [B]) to a tensor; unlike for training, no layer starts at zero, so that outputs are not constant.
DDPMpp takes 42.4 GFLOP an image, as published, in 463 PyTorch operations where the published program takes 610: eager
loops fare better here than there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoids(t: Tensor, channels: int) -> Tensor:
    """[B] -> [B, channels]: sines and cosines of t at frequencies from 1 to about 1e-4, float32."""
    half = channels // 2
    steps = torch.arange(half, device=t.device, dtype=torch.float32)
    angles = t.float()[:, None] * torch.exp(steps * (-math.log(1e4) / half))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class MLP(nn.Module):
    """The noise of a chunk of actions: x [B, actions, size], t [B], state [B, observed] -> [B, actions, size]."""

    def __init__(self, actions: int = 4, size: int = 7, observed: int = 11, hidden: int = 512, layers: int = 3):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, 32), nn.Mish(), nn.Linear(32, 16))
        widths = [actions * size + 16 + observed, *[hidden] * layers]
        trunk = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.Mish())]
        self.trunk = nn.Sequential(*trunk, nn.Linear(hidden, actions * size))

    def forward(self, x: Tensor, t: Tensor, state: Tensor) -> Tensor:
        features = [x.flatten(1), self.time(sinusoids(t, 16).to(x.dtype)), state.to(x.dtype)]
        return self.trunk(torch.cat(features, dim=1)).reshape(x.shape)


class _Conv1dBlock(nn.Sequential):
    def __init__(self, fan_in: int, fan_out: int):
        super().__init__(nn.Conv1d(fan_in, fan_out, 5, padding=2), nn.GroupNorm(8, fan_out), nn.Mish())


class _Residual1d(nn.Module):
    """Two convolutions; the condition scales and shifts what is between them (FiLM)."""

    def __init__(self, fan_in: int, fan_out: int, cond: int):
        super().__init__()
        self.first, self.second = _Conv1dBlock(fan_in, fan_out), _Conv1dBlock(fan_out, fan_out)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(cond, 2 * fan_out))
        self.skip = nn.Identity() if fan_in == fan_out else nn.Conv1d(fan_in, fan_out, 1)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        scale, shift = self.film(cond)[:, :, None].chunk(2, dim=1)
        return self.second(self.first(x) * scale + shift) + self.skip(x)


class UNet1d(nn.Module):
    """x [B, size, horizon] (horizon a multiple of 4), t [B], state [B, observed] -> like x."""

    def __init__(
        self, size: int = 14, observed: int = 40, widths: Sequence[int] = (256, 512, 1024), embedding: int = 256
    ):
        super().__init__()
        self.embedding = embedding
        self.time = nn.Sequential(nn.Linear(embedding, 4 * embedding), nn.Mish(), nn.Linear(4 * embedding, embedding))
        cond = embedding + observed
        pairs = list(zip([size, *widths], widths))
        self.down = nn.ModuleList([nn.ModuleList([_Residual1d(a, b, cond), _Residual1d(b, b, cond)]) for a, b in pairs])
        self.shrink = nn.ModuleList([nn.Conv1d(w, w, 3, 2, 1) for w in widths[:-1]])
        self.middle = nn.ModuleList([_Residual1d(widths[-1], widths[-1], cond) for _ in range(2)])
        self.up = nn.ModuleList(
            [nn.ModuleList([_Residual1d(2 * b, a, cond), _Residual1d(a, a, cond)]) for a, b in reversed(pairs[1:])]
        )
        self.grow = nn.ModuleList([nn.ConvTranspose1d(a, a, 4, 2, 1) for a, _ in reversed(pairs[1:])])
        self.out = nn.Sequential(_Conv1dBlock(widths[0], widths[0]), nn.Conv1d(widths[0], size, 1))

    def forward(self, x: Tensor, t: Tensor, state: Tensor) -> Tensor:
        cond = torch.cat([self.time(sinusoids(t, self.embedding).to(x.dtype)), state.to(x.dtype)], dim=1)
        skips = []
        for level, (first, second) in enumerate(self.down):  # type: ignore[misc]
            x = second(first(x, cond), cond)
            skips.append(x)
            if level < len(self.shrink):
                x = self.shrink[level](x)
        for block in self.middle:
            x = block(x, cond)
        for (first, second), grow in zip(self.up, self.grow):  # type: ignore[misc]
            x = grow(second(first(torch.cat([x, skips.pop()], dim=1), cond), cond))
        return self.out(x)


def _attend(qkv: Tensor, heads: int) -> Tensor:
    """[B, 3C, H, W] of (q, k, v) -> [B, C, H, W], softmax over the pixels."""
    batch, channels, height, width = qkv.shape
    q, k, v = qkv.reshape(batch, 3, heads, channels // 3 // heads, height * width).transpose(-1, -2).unbind(1)
    return F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(batch, channels // 3, height, width)


class _SongBlock(nn.Module):
    """DDPM++'s residual block: the embedding is added, sums are scaled by sqrt(1/2), resampling by 2 x 2 means."""

    def __init__(self, fan_in: int, fan_out: int, embedding: int, resample: str = "", attention: bool = False):
        super().__init__()
        self.resample = resample
        self.norm1 = nn.GroupNorm(min(32, fan_in // 4), fan_in, eps=1e-6)
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, padding=1)
        self.embed = nn.Linear(embedding, fan_out)
        self.norm2 = nn.GroupNorm(min(32, fan_out // 4), fan_out, eps=1e-6)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1)
        self.skip = nn.Identity() if fan_in == fan_out and not resample else nn.Conv2d(fan_in, fan_out, 1)
        self.norm3 = nn.GroupNorm(min(32, fan_out // 4), fan_out, eps=1e-6) if attention else None
        self.qkv = nn.Conv2d(fan_out, 3 * fan_out, 1) if attention else None
        self.project = nn.Conv2d(fan_out, fan_out, 1) if attention else None

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0) if self.resample == "up" else x

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(self._resampled(F.silu(self.norm1(x)))) + self.embed(embedding)[:, :, None, None]
        x = (self.conv2(F.silu(self.norm2(h))) + self.skip(self._resampled(x))) * math.sqrt(0.5)
        if self.qkv is not None and self.norm3 is not None and self.project is not None:
            x = (self.project(_attend(self.qkv(self.norm3(x)), 1)) + x) * math.sqrt(0.5)
        return x


class DDPMpp(nn.Module):
    """EDM's raw network F(x [B, 3, R, R], c_noise [B]) -> like x; the defaults are the CIFAR-10 configuration."""

    def __init__(
        self,
        image_size: int = 32,
        width: int = 128,
        mults: Sequence[int] = (2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (16,),
        channels: int = 3,
    ):
        super().__init__()
        self.width, self.channels, self.image_size = width, channels, image_size
        emb = 4 * width
        self.map = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb), nn.SiLU())
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        skips, fan = [width], width
        for level, mult in enumerate(mults):
            size = image_size >> level
            if level:
                self.encoder.append(_SongBlock(fan, fan, emb, "down"))
                skips.append(fan)
            for _ in range(blocks):
                self.encoder.append(_SongBlock(fan, width * mult, emb, attention=size in attention))
                fan = width * mult
                skips.append(fan)
        for level in reversed(range(len(mults))):
            size = image_size >> level
            if level == len(mults) - 1:
                self.decoder.append(_SongBlock(fan, fan, emb, attention=True))
                self.decoder.append(_SongBlock(fan, fan, emb))
            else:
                self.decoder.append(_SongBlock(fan, fan, emb, "up"))
            for i in range(blocks + 1):
                last = i == blocks and size in attention
                self.decoder.append(_SongBlock(fan + skips.pop(), width * mults[level], emb, attention=last))
                fan = width * mults[level]
        self.norm = nn.GroupNorm(min(32, fan // 4), fan, eps=1e-6)
        self.out = nn.Conv2d(fan, channels, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        emb = self.map(sinusoids(c_noise, self.width).to(x.dtype).expand(len(x), -1))
        x = self.stem(x)
        skips = [x]
        for block in self.encoder:
            x = block(x, emb)
            skips.append(x)
        for block in self.decoder:
            if block.norm1.num_channels != x.shape[1]:  # type: ignore[union-attr]
                x = torch.cat([x, skips.pop()], dim=1)
            x = block(x, emb)
        return self.out(F.silu(self.norm(x)))


class Denoiser(nn.Module):
    """EDM's preconditioning around a raw network: D(x, sigma), float32 outside (Karras et al. 2022, Table 1)."""

    def __init__(self, network: nn.Module, sigma_data: float = 0.5):
        super().__init__()
        self.network, self.sigma_data = network, sigma_data

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        x, sigma = x.float(), sigma.float().reshape(-1, *[1] * (x.ndim - 1))
        total = sigma**2 + self.sigma_data**2
        dtype = next(self.network.parameters()).dtype
        output = self.network((x / total.sqrt()).to(dtype), sigma.log().flatten() / 4).float()
        return self.sigma_data**2 / total * x + sigma * self.sigma_data / total.sqrt() * output


class _ADMBlock(nn.Module):
    """ADM's residual block: scale-shift norm, 2 x 2 mean before the convolution when it halves the picture."""

    def __init__(self, fan_in: int, fan_out: int, embedding: int, down: bool = False):
        super().__init__()
        self.down = down
        self.norm1 = nn.GroupNorm(32, fan_in)
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, padding=1)
        self.embed = nn.Linear(embedding, 2 * fan_out)
        self.norm2 = nn.GroupNorm(32, fan_out)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1)
        self.skip = nn.Identity() if fan_in == fan_out else nn.Conv2d(fan_in, fan_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.down:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        scale, shift = self.embed(F.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(self.conv1(h)) * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(h))


class _ADMAttention(nn.Module):
    def __init__(self, channels: int, head: int):
        super().__init__()
        self.heads = channels // head
        self.norm, self.qkv = nn.GroupNorm(32, channels), nn.Conv2d(channels, 3 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return x + self.project(_attend(self.qkv(self.norm(x)), self.heads))


class Encoder(nn.Module):
    """ADM's classifier up to its middle block, then attention pooling to `outputs` numbers; 0 outputs: the features.

    x [B, channels, R, R], t in [0, 1] [B] -> [B, outputs], or [B, width * mults[-1], R', R'].
    """

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        width: int = 128,
        blocks: int = 4,
        mults: Sequence[int] = (1, 2, 4),
        attention: Sequence[int] = (32, 16, 8),
        outputs: int = 1000,
        head: int = 64,
    ):
        super().__init__()
        self.width, self.head = width, head
        emb = 4 * width
        self.map = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.stem = nn.Conv2d(channels, width * mults[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        fan = width * mults[0]
        for level, mult in enumerate(mults):
            if level:
                self.blocks.append(_ADMBlock(fan, fan, emb, down=True))
            for _ in range(blocks):
                self.blocks.append(_ADMBlock(fan, width * mult, emb))
                fan = width * mult
                if image_size >> level in attention:
                    self.blocks.append(_ADMAttention(fan, head))
        self.blocks.extend([_ADMBlock(fan, fan, emb), _ADMAttention(fan, head), _ADMBlock(fan, fan, emb)])
        self.outputs = outputs
        if outputs:
            tokens = (image_size >> (len(mults) - 1)) ** 2 + 1
            self.norm = nn.GroupNorm(32, fan)
            self.position = nn.Parameter(torch.randn(fan, tokens) / fan**0.5)
            self.qkv, self.project = nn.Conv1d(fan, 3 * fan, 1), nn.Conv1d(fan, outputs, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        emb = self.map(sinusoids(999 * t, self.width).to(x.dtype).expand(len(x), -1))
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, emb)
        if not self.outputs:
            return x
        x = F.silu(self.norm(x)).flatten(2)
        x = torch.cat([x.mean(dim=2, keepdim=True), x], dim=2) + self.position
        x = _attend(self.qkv(x)[:, :, None], x.shape[1] // self.head)[:, :, 0]
        return self.project(x)[:, :, 0]


class Discriminator(nn.Module):
    """The logit of "real": frozen ADM features and a small head; x [B, 3, 32, 32], t in [0, 1] [B] -> [B]."""

    def __init__(self, features: Encoder | None = None, head: Encoder | None = None):
        super().__init__()
        self.features = features or Encoder(outputs=0)
        self.head = head or Encoder(8, 512, blocks=2, mults=(1,), attention=(8,), outputs=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.head(self.features(x, t), t)[:, 0]
