"""A small class-conditional U-Net: the raw network ``F(x, time, labels)`` of any objective.

It is built for images of 8 to 64 pixels on one CPU core: an optional pixel-unshuffle makes the trunk small,
residual blocks are modulated by the noise level (adaptive group normalisation, Dhariwal & Nichol 2021,
section 3), and self-attention runs where the picture is smallest. The default configuration is the one of the
shipped digits model, which is told EDM's c_noise = ln(sigma) / 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .network import architecture
from .times import phases, sinusoids

__all__ = ["UNet"]

_GROUPS = 8


def _zero(module: nn.Module) -> nn.Module:
    """Sets every parameter of `module` to zero, so that its branch adds nothing at the start."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def _stages(stages: nn.ModuleList) -> list[nn.ModuleList]:
    """The levels of an encoder or decoder, as what they are."""
    return cast("list[nn.ModuleList]", list(stages))


class _Attention(nn.Module):
    """Multi-head self-attention over the pixels, added to its input; starts as the identity."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(_GROUPS, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        query, key, value = qkv.transpose(-1, -2).unbind(1)
        y = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(y.transpose(-1, -2).reshape(batch, channels, height, width))


class _Block(nn.Module):
    """Residual block: GN, SiLU, conv, modulated GN, SiLU, dropout, conv (zero at the start)."""

    def __init__(self, fan_in: int, fan_out: int, embedding: int, dropout: float, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(_GROUPS, fan_in)
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * fan_out)
        self.norm2 = nn.GroupNorm(_GROUPS, fan_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _zero(nn.Conv2d(fan_out, fan_out, 3, padding=1))
        self.skip = nn.Identity() if fan_in == fan_out else nn.Conv2d(fan_in, fan_out, 1)
        self.attention = _Attention(fan_out, heads) if heads else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        y = self.norm2(y) * (1 + scale) + shift
        y = self.conv2(self.dropout(F.silu(y)))
        return self.attention(self.skip(x) + y)


@architecture("denoiser", "fastdiff: a small U-Net")
class UNet(nn.Module):
    """The raw network `F(x, time, labels=None, augment_labels=None)`; what it predicts is its training's matter.

    Args:
        image_size: height and width of the square image; a multiple of `patch * 2 ** (len(mults) - 1)`.
        channels: image channels, at least 1.
        width: channels of the first level; every `width * mult` is a multiple of 8 (the group count) and of
            `heads`.
        mults: channel multiplier of each level; each level after the first halves the resolution.
        blocks: residual blocks per level, each way.
        attention: levels (0 = the largest) whose blocks, and the middle block for the last level, end in
            attention.
        heads: attention heads.
        embedding: channels of the noise and class embedding.
        label_dim: number of classes, or 0 for an unconditional network.
        dropout: dropout probability inside the residual blocks, in [0, 1).
        patch: pixel-unshuffle factor at the input, undone at the output.
        learned_variance: 2 C output channels: prediction, then variance (Nichol & Dhariwal 2021, equation 15).
        time_scale: radians of the fastest sinusoid per unit of time: 250 for EDM's c_noise (the default), 1 for steps
            of a chain of 1000, 1000 for times in [0, 1].
        log_time: read ln(time) / 4 in place of time, which is then positive: for networks told sigma itself.
        scale_by_sigma: divide the output by the time, which is then sigma: the scale of a score (Song & Ermon 2020,
            technique 3; NCSN++). Not with `learned_variance`.
        augment_dim: numbers that say how a sample was augmented (Karras et al. 2022, appendix F.2); 0: none.

    Attributes:
        label_dim: number of classes (0: the network takes no labels).
        sample_shape: `(channels, image_size, image_size)` of one sample.
        config: the constructor's arguments, JSON-serialisable; `UNet(**config)` builds the same network.
        metadata: what `fastdiff.models.load` read beside the weights; empty for a fresh network.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        image_size: int = 16,
        channels: int = 1,
        width: int = 32,
        mults: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: Sequence[int] = (1,),
        heads: int = 2,
        embedding: int = 128,
        label_dim: int = 0,
        dropout: float = 0.0,
        patch: int = 2,
        learned_variance: bool = False,
        time_scale: float = 250.0,
        log_time: bool = False,
        scale_by_sigma: bool = False,
        augment_dim: int = 0,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "image_size": image_size, "channels": channels, "width": width, "mults": list(mults), "blocks":
            blocks, "attention": list(attention), "heads": heads, "embedding": embedding, "label_dim":
            label_dim, "dropout": dropout, "patch": patch, "learned_variance": learned_variance, "time_scale":
            time_scale, "log_time": log_time, "scale_by_sigma": scale_by_sigma, "augment_dim": augment_dim,
        }  # fmt: skip
        _check(**self.config)
        self.metadata: dict[str, Any] = {}
        self.label_dim = label_dim
        self.sample_shape = (channels, image_size, image_size)
        self.patch = patch
        self.time_scale, self.log_time, self.scale_by_sigma = time_scale, log_time, scale_by_sigma
        self.noise_channels = 2 * width

        self.noise_embedding = nn.Sequential(
            nn.Linear(self.noise_channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        # The last row is the class of samples without a label (classifier-free training and sampling).
        self.label_embedding = nn.Embedding(label_dim + 1, embedding) if label_dim else None
        # Without a bias: all zeros, an image as it is, is what sampling asks for.
        self.augment_embedding = nn.Linear(augment_dim, embedding, bias=False) if augment_dim else None

        def block(fan_in: int, level: int) -> _Block:
            own_heads = heads if level in attention else 0
            return _Block(fan_in, width * mults[level], embedding, dropout, own_heads)

        last = len(mults) - 1
        self.stem = nn.Conv2d(channels * patch**2, width, 3, padding=1)
        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList()
        fan, skips = width, []
        for level in range(last + 1):
            stage = nn.ModuleList()
            for _ in range(blocks):
                stage.append(block(fan, level))
                fan = width * mults[level]
                skips.append(fan)
            self.encoder.append(stage)
        self.middle = block(fan, last)
        for level in reversed(range(last + 1)):
            stage = nn.ModuleList()
            for _ in range(blocks):
                stage.append(block(fan + skips.pop(), level))
                fan = width * mults[level]
            self.decoder.append(stage)
        self.norm = nn.GroupNorm(_GROUPS, fan)
        self.out = _zero(nn.Conv2d(fan, (1 + learned_variance) * channels * patch**2, 3, padding=1))

    def forward(
        self, x: Tensor, time: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """One evaluation.

        Args:
            x: [B, C, H, W] scaled noisy images, of the parameters' dtype (any dtype under autocast).
            time: [B] (or a scalar tensor) of any dtype, what the objective tells its network: EDM's `ln(sigma) / 4`,
                a step of a chain, sigma, a time in [0, 1].
            labels: int64 [B] class indices in [0, label_dim), -1 for "no class"; None is -1 for every sample.
                Values are not checked here: that would read the tensor back from its device.
            augment_labels: floating [B, augment_dim]; None is all zeros, an image that was not augmented.

        Returns:
            [B, C, H, W] raw output; [B, 2 C, H, W] with `learned_variance`.

        Raises:
            ValueError: `x`, `labels` or `augment_labels` has another shape or dtype, or labels were given to a network
                without them.
        """
        x, skips, embedding = self.encode(x, time, labels, augment_labels)
        for level, stage in enumerate(_stages(self.decoder)):
            if level:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            for block in stage:
                x = block(torch.cat([x, skips.pop()], dim=1), embedding)
        output = F.pixel_shuffle(self.out(F.silu(self.norm(x))), self.patch)
        return output / time.to(output.dtype).reshape(-1, 1, 1, 1) if self.scale_by_sigma else output

    def encode(
        self, x: Tensor, time: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """The way down: (output of the middle block, outputs of the encoder's blocks, embedding); see `forward`."""
        if x.dim() != 4 or tuple(x.shape[1:]) != self.sample_shape:
            raise ValueError(f"UNet: x must be [B, {', '.join(map(str, self.sample_shape))}], got {list(x.shape)}")
        phase = phases(time, self.time_scale, self.log_time)
        waves = sinusoids(phase.expand(x.shape[0]), self.noise_channels)
        embedding = self.noise_embedding(waves.to(x.dtype))
        if self.label_embedding is not None:
            embedding = embedding + self.label_embedding(self._classes(labels, x))
        elif labels is not None:
            raise ValueError("UNet: labels were given but the network is unconditional (label_dim = 0)")
        if augment_labels is not None:
            embedding = embedding + self._augmentation(augment_labels, x)
        embedding = F.silu(embedding)

        x = self.stem(F.pixel_unshuffle(x, self.patch))
        skips = []
        for level, stage in enumerate(_stages(self.encoder)):
            if level:
                x = F.avg_pool2d(x, 2)
            for block in stage:
                x = block(x, embedding)
                skips.append(x)
        return self.middle(x, embedding), skips, embedding

    def _classes(self, labels: Tensor | None, x: Tensor) -> Tensor:
        """Rows of the label embedding: `labels`, with -1 (or None) turned into the null class."""
        if labels is None:
            return torch.full((x.shape[0],), self.label_dim, device=x.device)
        if labels.dtype != torch.int64 or labels.shape != x.shape[:1]:
            raise ValueError(f"UNet: labels must be int64 [{x.shape[0]}], got {labels.dtype} {list(labels.shape)}")
        return torch.where(labels == -1, self.label_dim, labels)

    def _augmentation(self, augment_labels: Tensor, x: Tensor) -> Tensor:
        if self.augment_embedding is None:
            raise ValueError("UNet: augment_labels were given but the network takes none (augment_dim = 0)")
        shape = (x.shape[0], self.augment_embedding.in_features)
        if not augment_labels.is_floating_point() or augment_labels.shape != shape:
            got = f"{augment_labels.dtype} {list(augment_labels.shape)}"
            raise ValueError(f"UNet: augment_labels must be floating {list(shape)}, got {got}")
        embedding: Tensor = self.augment_embedding(augment_labels.to(x.dtype))
        return embedding


def _check(
    image_size: int, channels: int, width: int, mults: Sequence[int], blocks: int, attention: Sequence[int],
    heads: int, embedding: int, label_dim: int, dropout: float, patch: int, learned_variance: bool,
    time_scale: float, log_time: bool, scale_by_sigma: bool, augment_dim: int,
) -> None:  # fmt: skip
    """Refuses a configuration that cannot be built; the message names the argument."""
    positive = {"channels": channels, "width": width, "blocks": blocks, "heads": heads, "patch": patch}
    for name, value in positive.items():
        if value < 1:
            raise ValueError(f"UNet: {name} must be at least 1, got {value}")
    if not mults or min(mults) < 1:
        raise ValueError(f"UNet: mults must be a non-empty list of positive integers, got {list(mults)}")
    for mult in mults:
        if (width * mult) % _GROUPS or (width * mult) % heads:
            wanted = f"a multiple of {_GROUPS} and of heads = {heads}"
            raise ValueError(f"UNet: width * mults must be {wanted}, got {width * mult}")
    divisor = patch * 2 ** (len(mults) - 1)
    if image_size < 1 or image_size % divisor:
        raise ValueError(f"UNet: image_size must be a multiple of {divisor} (patch and levels), got {image_size}")
    if any(level not in range(len(mults)) for level in attention):
        raise ValueError(f"UNet: attention must name levels 0 to {len(mults) - 1}, got {list(attention)}")
    if embedding < 1:
        raise ValueError(f"UNet: embedding must be at least 1, got {embedding}")
    if label_dim < 0:
        raise ValueError(f"UNet: label_dim must be 0 (unconditional) or positive, got {label_dim}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"UNet: dropout must be in [0, 1), got {dropout}")
    switches = {"learned_variance": learned_variance, "log_time": log_time, "scale_by_sigma": scale_by_sigma}
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ValueError(f"UNet: {name} must be True or False, got {value!r}")
    if not 0.0 < time_scale < math.inf:
        raise ValueError(f"UNet: time_scale must be positive and finite, got {time_scale}")
    if learned_variance and scale_by_sigma:
        raise ValueError("UNet: scale_by_sigma must be False with learned_variance: a score has no variance to learn")
    if augment_dim < 0:
        raise ValueError(f"UNet: augment_dim must be 0 (none) or positive, got {augment_dim}")
