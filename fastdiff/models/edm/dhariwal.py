"""DhariwalUNet: the ADM network of Dhariwal & Nichol 2021, as Karras et al. 2022 trained and published it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import zero_
from ..network import architecture
from .layers import Conv2d, GroupNorm, PositionalEmbedding, UNetBlock
from .unet import EDMNetwork, linear

__all__ = ["DhariwalUNet"]


@architecture("denoiser", "Dhariwal & Nichol 2021; Karras et al. 2022, Table 7")
class DhariwalUNet(EDMNetwork):
    """The raw network F(x, c_noise, labels=None, *, augment_labels=None).

    Attention has a head for every 64 channels; a block of fewer has none, even at an attention resolution.

    Args:
        img_resolution: height and width, a multiple of 2^(levels - 1).
        in_channels, out_channels: of input and output.
        label_dim: number of classes, 0 for none.
        augment_dim: numbers that say how a sample was augmented, 0 for none.
        model_channels: of a level with multiplier 1.
        channel_mult: multiplier of each level; each after the first halves the resolution.
        channel_mult_emb: width of the embedding, in `model_channels`.
        num_blocks: residual blocks of a level on the way down; one more on the way up.
        attn_resolutions: resolutions, in pixels of `img_resolution`'s, with attention in every block.
        dropout: inside the blocks, in training, in [0, 1).
        label_dropout: share of samples whose labels are zeros, in training, in [0, 1).

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            img_resolution, in_channels, out_channels, label_dim, augment_dim, model_channels, channel_mult,
            channel_mult_emb, num_blocks, attn_resolutions, dropout, label_dropout,
        )  # fmt: skip
        emb = model_channels * channel_mult_emb
        shared: dict[str, Any] = {"emb_channels": emb, "dropout": dropout}

        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0 = linear(model_channels, emb)
        self.map_layer1 = linear(emb, emb)
        # The factor sqrt(label_dim) that SongUNet has in its forward pass is in these weights.
        self.map_label = linear(label_dim, emb, bias=False, variance=float(label_dim)) if label_dim else None

        self.enc = nn.ModuleDict()
        width = model_channels * channel_mult[0]
        skips = [width]
        for level, mult in enumerate(channel_mult):
            at = f"{img_resolution >> level}x{img_resolution >> level}"
            attention = img_resolution >> level in attn_resolutions
            if level == 0:
                self.enc[f"{at}_conv"] = Conv2d(in_channels, width, 3)
            else:
                self.enc[f"{at}_down"] = UNetBlock(width, width, down=True, **shared)
                skips.append(width)
            for index in range(num_blocks):
                self.enc[f"{at}_block{index}"] = UNetBlock(width, model_channels * mult, attention=attention, **shared)
                width = model_channels * mult
                skips.append(width)

        self.dec = nn.ModuleDict()
        last = len(channel_mult) - 1
        for level, mult in reversed(list(enumerate(channel_mult))):
            at = f"{img_resolution >> level}x{img_resolution >> level}"
            attention = img_resolution >> level in attn_resolutions
            if level == last:
                self.dec[f"{at}_in0"] = UNetBlock(width, width, attention=True, **shared)
                self.dec[f"{at}_in1"] = UNetBlock(width, width, **shared)
            else:
                self.dec[f"{at}_up"] = UNetBlock(width, width, up=True, **shared)
            for index in range(num_blocks + 1):
                self.dec[f"{at}_block{index}"] = UNetBlock(
                    width + skips.pop(), model_channels * mult, attention=attention, **shared
                )
                width = model_channels * mult
        self.out_norm = GroupNorm(width)
        self.out_conv = zero_(Conv2d(width, out_channels, 3))

    def forward(
        self, x: Tensor, time: Tensor, labels: Tensor | None = None, *, augment_labels: Tensor | None = None
    ) -> Tensor:
        """One evaluation.

        Args:
            x: [B, in_channels, H, W] scaled noisy images, of the parameters' dtype (any dtype under autocast).
            time: [B] or a scalar tensor, any dtype: c_noise of the preconditioner.
            labels: int64 [B] classes in [0, label_dim), -1 for none, or rows [B or 1, label_dim] of weights of the
                classes; None is none for every sample.
            augment_labels: [B or 1, augment_dim]; None is no augmentation.

        Returns:
            [B, out_channels, H, W], of the dtype of `x`.

        Raises:
            ValueError: an input of another shape, or of a kind that the network does not take.
        """
        e = self.map_noise(self.checked(x, time)).to(x.dtype)
        augmented = self.augmentation(self.map_augment, augment_labels, x)
        e = e if augmented is None else e + augmented
        e = self.map_layer1(F.silu(self.map_layer0(e)))
        rows = self.rows(labels, x)
        if self.map_label is not None:
            e = e + self.map_label(rows)
        emb = F.silu(e)

        skips: list[Tensor] = []
        for module in self.enc.values():
            x = module(x, emb) if isinstance(module, UNetBlock) else module(x)
            skips.append(x)
        for module in self.dec.values():
            if x.shape[1] != cast(UNetBlock, module).in_channels:
                x = torch.cat([x, skips.pop()], dim=1)
            x = module(x, emb)
        output: Tensor = self.out_conv(F.silu(self.out_norm(x)))
        return output
