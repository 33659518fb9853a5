"""SongUNet: DDPM++ and NCSN++ of Song et al. 2021, as Karras et al. 2022 trained and published them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import zero_
from ..network import architecture
from .layers import Conv2d, FourierEmbedding, GroupNorm, PositionalEmbedding, UNetBlock
from .unet import EDMNetwork, linear

__all__ = ["SongUNet"]

EPS = 1e-6
EMBEDDINGS = ("positional", "fourier")
ENCODERS = ("standard", "skip", "residual")
DECODERS = ("standard", "skip")


@architecture("denoiser", "Song et al. 2021; Karras et al. 2022, Table 7")
class SongUNet(EDMNetwork):
    """The raw network F(x, c_noise, labels=None, *, augment_labels=None).

    DDPM++ is the default; NCSN++ is embedding_type "fourier", channel_mult_noise 2, encoder_type "residual",
    resample_filter [1, 3, 3, 1].

    Args:
        img_resolution: height and width, a multiple of 2^(levels - 1).
        in_channels, out_channels: of input and output.
        label_dim: number of classes, 0 for none.
        augment_dim: numbers that say how a sample was augmented, 0 for none.
        model_channels: of the first level, before its multiplier.
        channel_mult: multiplier of each level; each after the first halves the resolution.
        channel_mult_emb: width of the embedding, in `model_channels`.
        num_blocks: residual blocks of a level on the way down; one more on the way up.
        attn_resolutions: resolutions, in pixels of `img_resolution`'s, with attention: in every block on the way down,
            in a level's last one on the way up.
        dropout: inside the blocks, in training, in [0, 1).
        label_dropout: share of samples whose labels are zeros, in training, in [0, 1).
        embedding_type: of the noise level: "positional" (DDPM++) or "fourier" (NCSN++).
        channel_mult_noise: width of that, in `model_channels`.
        encoder_type: "standard", "skip" or "residual" (progressive input of Song et al. 2021).
        decoder_type: "standard" or "skip" (progressive output).
        resample_filter: see `fastdiff.models.blocks.resample`; [1, 1] in DDPM++.

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
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__(
            img_resolution, in_channels, out_channels, label_dim, augment_dim, model_channels, channel_mult,
            channel_mult_emb, num_blocks, attn_resolutions, dropout, label_dropout,
        )  # fmt: skip
        for name, value, known in (
            ("embedding_type", embedding_type, EMBEDDINGS), ("encoder_type", encoder_type, ENCODERS),
            ("decoder_type", decoder_type, DECODERS),
        ):  # fmt: skip
            if value not in known:
                raise ValueError(f"SongUNet: {name} must be one of {', '.join(known)}, got {value!r}")
        if channel_mult_noise < 1:
            raise ValueError(f"SongUNet: channel_mult_noise must be at least 1, got {channel_mult_noise}")
        emb, noise = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        shared: dict[str, Any] = {
            "emb_channels": emb, "num_heads": 1, "dropout": dropout, "skip_scale": math.sqrt(0.5), "eps": EPS,
            "resample_filter": resample_filter, "resample_proj": True, "adaptive_scale": False,
        }  # fmt: skip
        resample: dict[str, Any] = {"resample_filter": resample_filter}

        # The published code swaps the halves of cosines and sines; here they are made in that order.
        self.map_noise = (
            PositionalEmbedding(noise, endpoint=True, order="sin_cos")
            if embedding_type == "positional"
            else FourierEmbedding(noise, order="sin_cos")
        )
        self.map_label = linear(label_dim, noise) if label_dim else None
        self.map_augment = linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0 = linear(noise, emb)
        self.map_layer1 = linear(emb, emb)

        self.enc = nn.ModuleDict()
        width, image, skips = model_channels, in_channels, [model_channels]
        for level, mult in enumerate(channel_mult):
            at = f"{img_resolution >> level}x{img_resolution >> level}"
            attention = img_resolution >> level in attn_resolutions
            if level == 0:
                self.enc[f"{at}_conv"] = Conv2d(in_channels, width, 3)
            else:
                self.enc[f"{at}_down"] = UNetBlock(width, width, down=True, **shared)
                skips.append(width)
                if encoder_type == "skip":
                    self.enc[f"{at}_aux_down"] = Conv2d(image, image, 0, down=True, **resample)
                    self.enc[f"{at}_aux_skip"] = Conv2d(image, width, 1)
                if encoder_type == "residual":
                    self.enc[f"{at}_aux_residual"] = Conv2d(image, width, 3, down=True, fused_resample=True, **resample)
                    image = width
            for index in range(num_blocks):
                self.enc[f"{at}_block{index}"] = UNetBlock(width, model_channels * mult, attention=attention, **shared)
                width = model_channels * mult
                skips.append(width)

        self.dec = nn.ModuleDict()
        last = len(channel_mult) - 1
        for level, mult in reversed(list(enumerate(channel_mult))):
            at = f"{img_resolution >> level}x{img_resolution >> level}"
            if level == last:
                self.dec[f"{at}_in0"] = UNetBlock(width, width, attention=True, **shared)
                self.dec[f"{at}_in1"] = UNetBlock(width, width, **shared)
            else:
                self.dec[f"{at}_up"] = UNetBlock(width, width, up=True, **shared)
            for index in range(num_blocks + 1):
                attention = index == num_blocks and img_resolution >> level in attn_resolutions
                self.dec[f"{at}_block{index}"] = UNetBlock(
                    width + skips.pop(), model_channels * mult, attention=attention, **shared
                )
                width = model_channels * mult
            if decoder_type == "skip" or level == 0:
                if decoder_type == "skip" and level < last:
                    self.dec[f"{at}_aux_up"] = Conv2d(out_channels, out_channels, 0, up=True, **resample)
                self.dec[f"{at}_aux_norm"] = GroupNorm(width, EPS)
                self.dec[f"{at}_aux_conv"] = zero_(Conv2d(width, out_channels, 3))

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
        rows = self.rows(labels, x)
        if self.map_label is not None and rows is not None:
            e = e + self.map_label(rows * math.sqrt(self.label_dim))
        augmented = self.augmentation(self.map_augment, augment_labels, x)
        e = e if augmented is None else e + augmented
        emb = F.silu(self.map_layer1(F.silu(self.map_layer0(e))))

        skips: list[Tensor] = []
        aux = x
        for name, module in self.enc.items():
            kind = name.partition("_")[2]
            if kind == "aux_down":
                aux = module(aux)
            elif kind == "aux_skip":
                x = skips[-1] = x + module(aux)
            elif kind == "aux_residual":
                x = skips[-1] = aux = (x + module(aux)) * math.sqrt(0.5)
            else:
                x = module(x, emb) if isinstance(module, UNetBlock) else module(x)
                skips.append(x)

        output: Tensor | None = None
        normed = x
        for name, module in self.dec.items():
            kind = name.partition("_")[2]
            if kind == "aux_up":
                output = module(output)
            elif kind == "aux_norm":
                normed = module(x)
            elif kind == "aux_conv":
                change = module(F.silu(normed))
                output = change if output is None else output + change
            else:
                if x.shape[1] != cast(UNetBlock, module).in_channels:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = module(x, emb)
        assert output is not None
        return output
