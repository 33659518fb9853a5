"""The blocks that guided-diffusion's networks are made of, under the names of its checkpoints.

Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 3 and appendix B.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks.attention import attend
from ..blocks.embedding import sinusoids
from ..blocks.init import zero_
from ..blocks.resample import down2, up2

__all__ = [
    "GROUPS",
    "Blocks",
    "Projection",
    "Stage",
    "check_arguments",
    "check_image",
    "class_embedding",
    "embedded",
    "norm",
    "time_embedding",
    "widths",
]

GROUPS = 32


def norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with 32 groups and eps 1e-5, whatever the width."""
    return nn.GroupNorm(GROUPS, channels, eps=1e-5)


class Projection(nn.Conv1d):
    """A 1x1 convolution of [B, C, ...] whose weight is stored with three axes, [out, in, 1]."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__(fan_in, fan_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            return F.conv1d(x, self.weight, self.bias)
        return F.conv2d(x, self.weight[..., None], self.bias)  # keeps channels_last


class Attention(nn.Module):
    """Self-attention over the pixels, added to its input.

    Args:
        channels: of input and output.
        heads: a divisor of channels.
        layout: order of the channels of q, k and v, "by_head" or "by_part"; see `attend`.
    """

    def __init__(self, channels: int, heads: int, layout: str) -> None:
        super().__init__()
        self.heads, self.layout = heads, layout
        self.norm = norm(channels)
        self.qkv = Projection(channels, 3 * channels)
        self.proj_out = zero_(Projection(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        attended: Tensor = self.proj_out(attend(self.qkv(self.norm(x)), self.heads, self.layout))
        return x + attended


class ResBlock(nn.Module):
    """Residual block: GN, SiLU, resampling, conv; then the embedding, GN, SiLU, dropout, conv.

    Args:
        fan_in, fan_out: channels.
        embedding: width of the embedding.
        dropout: probability.
        scale_shift: the embedding scales and shifts the second norm's output; else it is added to its input.
        resample: applied to the branch before its convolution, and to the input.
    """

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        embedding: int,
        dropout: float,
        scale_shift: bool,
        resample: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(norm(fan_in), nn.SiLU(), nn.Conv2d(fan_in, fan_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, (1 + scale_shift) * fan_out))
        last = zero_(nn.Conv2d(fan_out, fan_out, 3, padding=1))
        self.out_layers = nn.Sequential(norm(fan_out), nn.SiLU(), nn.Dropout(dropout), last)
        self.skip_connection = nn.Identity() if fan_in == fan_out else nn.Conv2d(fan_in, fan_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        norm_in, activation, conv_in = self.in_layers
        norm_out, *rest = self.out_layers
        y = activation(norm_in(x))
        if self.resample is not None:
            x, y = self.resample(x), self.resample(y)
        y = conv_in(y)
        added = self.emb_layers(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = added.chunk(2, dim=1)
            y = norm_out(y) * (1 + scale) + shift
        else:
            y = norm_out(y + added)
        for layer in rest:
            y = layer(y)
        skipped: Tensor = self.skip_connection(x)
        return skipped + y


class Downsample(nn.Module):
    """Half the size: a convolution of stride 2, or a 2x2 mean."""

    def __init__(self, channels: int, conv: bool) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if conv else None

    def forward(self, x: Tensor) -> Tensor:
        return down2(x) if self.op is None else self.op(x)


class Upsample(nn.Module):
    """Twice the size: nearest neighbours, then a convolution if there is one."""

    def __init__(self, channels: int, conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if conv else None

    def forward(self, x: Tensor) -> Tensor:
        return up2(x) if self.conv is None else self.conv(up2(x))


class Stage(nn.Sequential):
    """Modules in a row; residual blocks among them are told the embedding."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
        return x


@dataclass(frozen=True)
class Blocks:
    """Makes the blocks of one network, and what is the same in all networks: the way down and the middle.

    Attributes:
        embedding: width of the embedding.
        dropout: probability.
        scale_shift, updown, conv: guided-diffusion's `use_scale_shift_norm`, `resblock_updown`, `conv_resample`.
        heads: of attention on the way down and in the middle; head_channels: -1, or channels of each head, which
            then settle their number.
        new_order: guided-diffusion's `use_new_attention_order`.
        attention_at: downsampling factors at which blocks end in attention.
    """

    embedding: int
    dropout: float
    scale_shift: bool
    updown: bool
    conv: bool
    heads: int
    head_channels: int
    new_order: bool
    attention_at: Collection[int]

    def residual(self, fan_in: int, fan_out: int, resample: Callable[[Tensor], Tensor] | None = None) -> ResBlock:
        return ResBlock(fan_in, fan_out, self.embedding, self.dropout, self.scale_shift, resample)

    def attention(self, channels: int, heads: int | None = None) -> Attention:
        """Attention with `heads` heads (None: those of the way down), or with heads of the width that was asked for."""
        width = self.head_channels
        count = (self.heads if heads is None else heads) if width == -1 else channels // width
        if count < 1 or channels % (count if width == -1 else width):
            what, value = ("num_heads", count) if width == -1 else ("num_head_channels", width)
            raise ValueError(f"{what} must divide the {channels} channels of a block with attention, got {value}")
        return Attention(channels, count, "by_part" if self.new_order else "by_head")

    def down(self, channels: int) -> nn.Module:
        return self.residual(channels, channels, down2) if self.updown else Downsample(channels, self.conv)

    def up(self, channels: int) -> nn.Module:
        return self.residual(channels, channels, up2) if self.updown else Upsample(channels, self.conv)

    def trunk(self, in_channels: int, widths: Sequence[int], depth: int) -> tuple[nn.ModuleList, Stage, list[int]]:
        """The way down and the middle.

        Args:
            in_channels: of the image; widths: channels of each level; depth: residual blocks in each.

        Returns:
            (input_blocks, middle_block, channels of each input block's output).
        """
        stages: list[nn.Module] = [Stage(nn.Conv2d(in_channels, widths[0], 3, padding=1))]
        channels = [widths[0]]
        for level, width in enumerate(widths):
            for _ in range(depth):
                stage = Stage(self.residual(channels[-1], width))
                if 2**level in self.attention_at:
                    stage.append(self.attention(width))
                stages.append(stage)
                channels.append(width)
            if level != len(widths) - 1:
                stages.append(Stage(self.down(channels[-1])))
                channels.append(channels[-1])
        last = channels[-1]
        middle = Stage(self.residual(last, last), self.attention(last), self.residual(last, last))
        return nn.ModuleList(stages), middle, channels


def time_embedding(channels: int) -> nn.Sequential:
    """From `channels` sinusoids to the embedding, four times as wide."""
    return nn.Sequential(nn.Linear(channels, 4 * channels), nn.SiLU(), nn.Linear(4 * channels, 4 * channels))


def class_embedding(classes: int, width: int) -> nn.Embedding:
    """Rows of standard normal numbers, as PyTorch's own, whose way to them imports torch._dynamo for a meta tensor."""
    return nn.Embedding(classes, width, _weight=torch.randn(classes, width))


def widths(model_channels: int, channel_mult: Sequence[float]) -> list[int]:
    """Channels of each level.

    Raises:
        ValueError: one is not a positive multiple of the 32 groups.
    """
    found = [int(mult * model_channels) for mult in channel_mult]
    for mult, width in zip(channel_mult, found):
        if width < 1 or width % GROUPS:
            got = f"{mult} * {model_channels} = {width}"
            raise ValueError(f"channel_mult * model_channels must be a positive multiple of {GROUPS}, got {got}")
    return found


def check_arguments(config: Mapping[str, Any], dims: int) -> None:
    """Refuses arguments that build none of guided-diffusion's networks.

    Raises:
        ValueError: naming the argument.
    """
    sizes = ("image_size", "in_channels", "model_channels", "out_channels", "num_heads")
    least = dict.fromkeys(sizes, 1) | {"num_res_blocks": 0}
    for name, lowest in least.items():
        if not _integer(config[name], lowest):
            raise ValueError(f"{name} must be an integer of at least {lowest}, got {config[name]!r}")
    for name in ("num_head_channels", "num_heads_upsample"):
        if config[name] != -1 and not _integer(config[name], 1):
            raise ValueError(f"{name} must be -1 or an integer of at least 1, got {config[name]!r}")
    if config.get("num_classes") is not None and not _integer(config["num_classes"], 1):
        raise ValueError(f"num_classes must be None or an integer of at least 1, got {config['num_classes']!r}")
    for name in ("conv_resample", "use_scale_shift_norm", "resblock_updown", "use_new_attention_order"):
        if not isinstance(config[name], bool):
            raise ValueError(f"{name} must be True or False, got {config[name]!r}")
    if not 0.0 <= config["dropout"] < 1.0:
        raise ValueError(f"dropout must be in [0, 1), got {config['dropout']}")
    if not config["channel_mult"] or not all(0 < mult < math.inf for mult in config["channel_mult"]):
        raise ValueError(f"channel_mult must be a list of positive numbers, got {config['channel_mult']}")
    if not all(_integer(factor, 0) for factor in config["attention_resolutions"]):
        got = config["attention_resolutions"]
        raise ValueError(f"attention_resolutions must be a list of downsampling factors, got {got}")
    if dims != 2:
        raise ValueError(f"dims must be 2: only images are computed, got {dims!r}")


def check_image(x: Tensor, channels: int, multiple: int = 1) -> None:
    """Refuses what is not [B, channels, H, W] with sides that are multiples of a number."""
    if x.dim() != 4 or x.shape[1] != channels or x.shape[2] % multiple or x.shape[3] % multiple:
        sides = f", H and W multiples of {multiple}" if multiple > 1 else ""
        raise ValueError(f"x must be [B, {channels}, H, W]{sides}, got {list(x.shape)}")


def embedded(time: Tensor, channels: int, x: Tensor) -> Tensor:
    """Sinusoids of times [B] or of one for all samples, in the dtype of `x`: [B, channels]."""
    if time.dim() > 1 or time.numel() not in (1, x.shape[0]):
        raise ValueError(f"time must be [{x.shape[0]}] or one number, got {list(time.shape)}")
    return sinusoids(time.expand(x.shape[0]), channels, pad_odd=True).to(x.dtype)


def _integer(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
