"""Discriminator guidance's networks (Kim et al. 2023): a noise-aware classifier of ADM's whose middle block gives
features, and a small discriminator of those.

Names and arguments are those of the published checkpoints; `DGDiscriminator` is both as one, for
`fastdiff.guidance.DiscriminatorGuidance`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..blocks.labels import class_index
from ..network import Network, architecture
from .encoder import EncoderUNetModel
from .layers import class_embedding

__all__ = ["DGDiscriminator", "DGEncoderUNetModel"]

TIME_SCALE = 999.0
COSINE = 64  # the size of the images whose discriminators were trained in the cosine schedule's time


@architecture("features", "Kim et al. 2023 (discriminator guidance)")
class DGEncoderUNetModel(EncoderUNetModel):
    """ADM's encoder as discriminator guidance has it: told a time in [0, 1], and optionally a class.

    Args:
        condition: whether the class is an input.
        num_class: number of classes, with `condition`.

    The other arguments are `EncoderUNetModel`'s. `attention_resolutions` may hold 0, which no level has: the published
    ones are 32, 16 and 8 as factors of `image_size`, down to 0.

    Attributes:
        label_dim: num_class, or 0 without `condition`: labels are accepted then and not looked at.

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
        condition: bool = False,
        num_class: int = 1000,
    ) -> None:
        super().__init__(
            image_size, in_channels, model_channels, out_channels, num_res_blocks, attention_resolutions, dropout,
            channel_mult, conv_resample, dims, use_checkpoint, use_fp16, num_heads, num_head_channels,
            num_heads_upsample, use_scale_shift_norm, resblock_updown, use_new_attention_order, pool,
        )  # fmt: skip
        if not isinstance(condition, bool):
            raise ValueError(f"condition must be True or False, got {condition!r}")
        if not isinstance(num_class, int) or isinstance(num_class, bool) or num_class < 1:
            raise ValueError(f"num_class must be an integer of at least 1, got {num_class!r}")
        self.config |= {"condition": condition, "num_class": num_class}
        self.label_dim = num_class if condition else 0
        self.label_emb = class_embedding(num_class, 4 * model_channels) if condition else None

    def forward(
        self, x: Tensor, time: Tensor, labels: Tensor | None = None, *, feature: bool = False, sigmoid: bool = False
    ) -> Tensor:
        """Logits [B, out_channels], or features.

        Args:
            x: [B, in_channels, H, W] images in VP terms, or features, of the parameters' dtype.
            time: [B] (or a scalar tensor), VP times in [0, 1].
            labels: int64 [B] in [0, num_class), or rows [B, num_class], of which the largest number counts; must be
                given with `condition`.
            feature: the output of the middle block [B, C, h, w] instead.
            sigmoid: the logits' sigmoid.

        Raises:
            ValueError: a shape is another, or the labels are missing.
        """
        emb = self.embed(x, TIME_SCALE * time.to(torch.promote_types(time.dtype, torch.float32)))
        if self.label_emb is not None:
            if labels is None:
                raise ValueError(f"labels must be given to a discriminator of {self.label_dim} classes, got None")
            emb = emb + self.label_emb(class_index(labels, x.shape[0], self.label_dim)).to(emb.dtype)
        middle, means = self.encode(x, emb)
        if feature:
            return middle
        logits = self.classify(middle, means)
        return logits.sigmoid() if sigmoid else logits


@architecture("discriminator", "Kim et al. 2023 (discriminator guidance)")
class DGDiscriminator(Network):
    """A feature extractor and a discriminator of its features as one: `(y, tau, labels) -> logit`.

    Args:
        extractor: arguments of a `DGEncoderUNetModel` without classes, or one: its middle block's output is taken.
        head: arguments of the `DGEncoderUNetModel` that reads these features, or one, with a single output.

    Attributes:
        time: "cosine" for images of 64 pixels, whose discriminators were trained in the cosine schedule's time, else
            "vp": `DiscriminatorGuidance`'s argument.
        extractor: frozen, in evaluation mode.
        sample_shape: the extractor's; label_dim: the head's, 0: labels are accepted and not looked at.
        config, metadata: see `Network`.

    Raises:
        ValueError, TypeError: an argument is out of range, or the two do not fit together.
    """

    def __init__(
        self, extractor: Mapping[str, Any] | DGEncoderUNetModel, head: Mapping[str, Any] | DGEncoderUNetModel
    ) -> None:
        super().__init__()
        parts = {"extractor": extractor, "head": head}
        for name, part in parts.items():
            if not isinstance(part, (Mapping, DGEncoderUNetModel)):
                raise TypeError(f"{name} must be a DGEncoderUNetModel or its arguments, got {type(part).__name__}")
        first, second = (p if isinstance(p, DGEncoderUNetModel) else DGEncoderUNetModel(**p) for p in parts.values())
        if first.label_dim:
            raise ValueError("extractor must be without classes (condition=False)")
        if second.config["out_channels"] != 1:
            raise ValueError(f"head must have 1 output, got {second.config['out_channels']}")
        features = _features(first)
        if second.sample_shape != features:
            wanted = f"in_channels {features[0]} and image_size {features[1]}, the extractor's features"
            got = f"{second.config['in_channels']} and {second.config['image_size']}"
            raise ValueError(f"head must have {wanted}, got {got}")
        self.extractor, self.head = first.eval().requires_grad_(False), second
        self.config = {"extractor": first.config, "head": second.config}
        self.sample_shape, self.label_dim = first.sample_shape, second.label_dim
        self.time = "cosine" if first.config["image_size"] == COSINE else "vp"

    def forward(self, y: Tensor, tau: Tensor, labels: Tensor | None = None) -> Tensor:
        """The log-odds that a state began as real data.

        Args:
            y: [B, C, H, W] states in VP terms, of any floating dtype (turned into that of the parameters).
            tau: [B] (or a scalar tensor) VP times in [0, 1].
            labels: see `DGEncoderUNetModel`; None for a head without classes.

        Returns:
            [B], of the parameters' dtype.
        """
        y = y.to(next(self.head.parameters()).dtype)
        logit: Tensor = self.head(self.extractor(y, tau, feature=True), tau, labels)
        return logit[:, 0]

    def train(self, mode: bool = True) -> DGDiscriminator:
        """Sets the mode of the head; the extractor stays in evaluation mode."""
        super().train(mode)
        self.extractor.eval()
        return self


def _features(extractor: DGEncoderUNetModel) -> tuple[int, int, int]:
    """(C, h, w) of the middle block's output."""
    config = extractor.config
    channels, size = int(config["channel_mult"][-1] * config["model_channels"]), config["image_size"]
    for _ in config["channel_mult"][1:]:
        size = size // 2 if config["resblock_updown"] or not config["conv_resample"] else (size + 1) // 2
    return channels, size, size
