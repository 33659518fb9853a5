"""guided-diffusion's noise-aware classifier: the way down of its U-Net, then one of four poolings."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks.attention import attend
from ..blocks.init import zero_
from ..network import Network, architecture
from .layers import Blocks, Projection, check_arguments, check_image, embedded, norm, time_embedding, widths

__all__ = ["EncoderUNetModel"]

POOLS = ("adaptive", "attention", "spatial", "spatial_v2")
_HIDDEN = 2048  # of the two poolings of means


class Mean(nn.Module):
    """The mean over the pixels: [B, C, H, W] -> [B, C, 1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3), keepdim=True)


class AttentionPool(nn.Module):
    """Attention of the mean pixel to all pixels (Radford et al. 2021, section 2.4): [B, C, H, W] -> [B, fan_out].

    Args:
        tokens: H * W.
        channels: C.
        heads: a divisor of C.
        fan_out: of the result.
    """

    def __init__(self, tokens: int, channels: int, heads: int, fan_out: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.empty(channels, tokens + 1))
        nn.init.uniform_(self.positional_embedding, -((3 / channels) ** 0.5), (3 / channels) ** 0.5)
        self.qkv_proj = Projection(channels, 3 * channels)
        self.c_proj = Projection(channels, fan_out)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2)
        tokens = torch.cat([pixels.mean(dim=-1, keepdim=True), pixels], dim=-1) + self.positional_embedding
        attended = attend(self.qkv_proj(tokens), self.heads, "by_part")
        pooled: Tensor = self.c_proj(attended[:, :, :1])
        return pooled[:, :, 0]


@architecture("classifier", "Dhariwal & Nichol 2021, section 4; guided-diffusion")
class EncoderUNetModel(Network):
    """A classifier of noisy images, `(x, time) -> logits`, under the names of guided-diffusion's checkpoints.

    Args:
        image_size: height and width of the images; with `pool` "attention" they have to be of this size.
        out_channels: number of logits.
        pool: "adaptive" is the mean over the pixels, "attention" attention of it to them (`num_head_channels` must then
            be given), "spatial" and "spatial_v2" are a hidden layer of 2048 on the means of every block's output.

    The other arguments are `UNetModel`'s; `num_heads_upsample`, `use_checkpoint` and `use_fp16` are without effect.

    Attributes:
        config, metadata, sample_shape, label_dim: see `Network`; label_dim is 0: labels are not an input.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Collection[int],
        dropout: float = 0.0,
        channel_mult: Sequence[float] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        num_heads: int = 1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        pool: str = "adaptive",
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "image_size": image_size, "in_channels": in_channels, "model_channels": model_channels,
            "out_channels": out_channels, "num_res_blocks": num_res_blocks,
            "attention_resolutions": sorted(attention_resolutions), "dropout": dropout,
            "channel_mult": list(channel_mult), "conv_resample": conv_resample, "num_heads": num_heads,
            "num_head_channels": num_head_channels, "num_heads_upsample": num_heads_upsample,
            "use_scale_shift_norm": use_scale_shift_norm, "resblock_updown": resblock_updown,
            "use_new_attention_order": use_new_attention_order, "pool": pool,
        }  # fmt: skip
        check_arguments(self.config, dims)
        if pool not in POOLS:
            raise ValueError(f"pool must be one of {', '.join(POOLS)}, got {pool!r}")
        self.sample_shape = (in_channels, image_size, image_size)
        self.model_channels, self.pool = model_channels, pool
        self.time_embed = time_embedding(model_channels)
        blocks = Blocks(
            4 * model_channels, dropout, use_scale_shift_norm, resblock_updown, conv_resample,
            num_heads, num_head_channels, use_new_attention_order, attention_resolutions,
        )  # fmt: skip
        wide = widths(model_channels, channel_mult)
        self.input_blocks, self.middle_block, outputs = blocks.trunk(in_channels, wide, num_res_blocks)
        channels, features = outputs[-1], sum(outputs) + outputs[-1]
        if pool == "attention":
            side = self._last_side(image_size)
            if num_head_channels == -1:
                raise ValueError("num_head_channels must be given with pool 'attention', got -1")
            heads = channels // num_head_channels
            pooling = AttentionPool(side**2, channels, heads, out_channels)
            self.out = nn.Sequential(norm(channels), nn.SiLU(), pooling)
        elif pool == "adaptive":
            last = zero_(nn.Conv2d(channels, out_channels, 1))
            self.out = nn.Sequential(norm(channels), nn.SiLU(), Mean(), last, nn.Flatten())
        elif pool == "spatial":
            self.out = nn.Sequential(nn.Linear(features, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, out_channels))
        else:
            hidden = (nn.Linear(features, _HIDDEN), norm(_HIDDEN), nn.SiLU())
            self.out = nn.Sequential(*hidden, nn.Linear(_HIDDEN, out_channels))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Logits [B, out_channels].

        Args:
            x: [B, in_channels, H, W] noisy images, of the parameters' dtype.
            time: [B] (or a scalar tensor), steps 0 to T - 1 of the whole chain, also between them.

        Raises:
            ValueError: a shape is another.
        """
        return self.classify(*self.encode(x, self.embed(x, time)))

    def embed(self, x: Tensor, time: Tensor) -> Tensor:
        """The embedding of times [B]: [B, 4 model_channels] in the dtype of `x`."""
        embedding: Tensor = self.time_embed(embedded(time, self.model_channels, x))
        return embedding

    def encode(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(Output of the middle block [B, C, h, w], means over the pixels [B, C_k] of every block's output).

        The means are only computed where `pool` is "spatial" or "spatial_v2"; otherwise there are none.
        """
        channels, size = self.config["in_channels"], self.config["image_size"]
        check_image(x, channels)
        if self.pool == "attention" and tuple(x.shape[2:]) != (size, size):
            wanted = f"[B, {channels}, {size}, {size}] for pool 'attention'"
            raise ValueError(f"x must be {wanted}, got {list(x.shape)}")
        means = []
        for stage in (*self.input_blocks, self.middle_block):
            x = stage(x, embedding)
            if self.pool.startswith("spatial"):
                means.append(x.mean(dim=(2, 3)))
        return x, means

    def classify(self, middle: Tensor, means: Sequence[Tensor]) -> Tensor:
        """Logits of what `encode` returned."""
        logits: Tensor = self.out(torch.cat(list(means), dim=1) if means else middle)
        return logits

    def _last_side(self, size: int) -> int:
        """Height of the middle block's output, which the attention pooling has to know.

        Raises:
            ValueError: guided-diffusion's positions, of image_size // 2^(levels - 1) pixels, are not as many.
        """
        levels = len(self.config["channel_mult"])
        mean = self.config["resblock_updown"] or not self.config["conv_resample"]
        side = size
        for _ in range(levels - 1):
            side = side // 2 if mean else (side + 1) // 2
        if side < 1 or side != size // 2 ** (levels - 1):
            raise ValueError(f"image_size must be a multiple of {2 ** (levels - 1)} for {levels} levels, got {size}")
        return side
