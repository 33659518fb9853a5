"""guided-diffusion's U-Nets: ADM, improved DDPM's successor, and its super-resolution variant."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks.init import zero_
from ..blocks.labels import class_index
from ..network import Network, architecture
from .layers import Blocks, Stage, check_arguments, check_image, class_embedding, embedded, norm, time_embedding, widths

__all__ = ["SuperResModel", "UNetModel"]


@architecture("denoiser", "Dhariwal & Nichol 2021, section 3; guided-diffusion")
class UNetModel(Network):
    """The raw network `F(x, time, labels=None)` of ADM, under the names of guided-diffusion's checkpoints.

    Args:
        image_size: height and width that `sample_shape` tells; any multiple of 2^(levels - 1) can be computed.
        in_channels: of the image.
        model_channels: width; that of a level is int(its multiplier * model_channels), a multiple of 32 (the groups
            of every norm).
        out_channels: of the output; twice `in_channels` with a learned variance: eps, then v.
        num_res_blocks: residual blocks of each level on the way down, at least 0; one more on the way up.
        attention_resolutions: downsampling factors, not sizes in pixels, whose blocks end in attention; the middle
            always has it.
        dropout: probability inside the residual blocks, in [0, 1).
        channel_mult: multiplier of each level.
        conv_resample: a convolution where sizes change (without `resblock_updown`).
        dims: 2; others are refused.
        num_classes: None, or the number of classes; labels are then required.
        use_checkpoint, use_fp16: of guided-diffusion; without effect here, and not kept.
        num_heads: of attention.
        num_head_channels: channels of one head, which then settle the number; -1: `num_heads` does.
        num_heads_upsample: of attention on the way up; -1: as on the way down.
        use_scale_shift_norm: the embedding scales and shifts (adaptive group norm); otherwise it is added, and a level
            of 32 channels, each a group of its own, does not see it.
        resblock_updown: sizes change in residual blocks.
        use_new_attention_order: channels of a projection are [q, k, v][head], otherwise [head][q, k, v].

    Attributes:
        config, metadata, sample_shape, label_dim: see `Network`.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    images: ClassVar[int] = 1  # that the first convolution sees

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
        num_classes: int | None = None,
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        num_heads: int = 1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "image_size": image_size, "in_channels": in_channels, "model_channels": model_channels,
            "out_channels": out_channels, "num_res_blocks": num_res_blocks,
            "attention_resolutions": sorted(attention_resolutions), "dropout": dropout,
            "channel_mult": list(channel_mult), "conv_resample": conv_resample, "num_classes": num_classes,
            "num_heads": num_heads, "num_head_channels": num_head_channels, "num_heads_upsample": num_heads_upsample,
            "use_scale_shift_norm": use_scale_shift_norm, "resblock_updown": resblock_updown,
            "use_new_attention_order": use_new_attention_order,
        }  # fmt: skip
        check_arguments(self.config, dims)
        self.channels, self.multiple = in_channels, 2 ** (len(channel_mult) - 1)
        if image_size % self.multiple:
            wanted = f"a multiple of {self.multiple} for {len(channel_mult)} levels"
            raise ValueError(f"image_size must be {wanted}, got {image_size}")
        self.sample_shape = (in_channels, image_size, image_size)
        self.label_dim = num_classes or 0
        self.model_channels = model_channels
        self.time_embed = time_embedding(model_channels)
        self.label_emb = None if num_classes is None else class_embedding(num_classes, 4 * model_channels)

        blocks = Blocks(
            4 * model_channels, dropout, use_scale_shift_norm, resblock_updown, conv_resample,
            num_heads, num_head_channels, use_new_attention_order, attention_resolutions,
        )  # fmt: skip
        wide = widths(model_channels, channel_mult)
        self.input_blocks, self.middle_block, skips = blocks.trunk(self.images * in_channels, wide, num_res_blocks)
        self.output_blocks = nn.ModuleList()
        channels = skips[-1]
        heads = num_heads if num_heads_upsample == -1 else num_heads_upsample
        for level in reversed(range(len(wide))):
            for block in range(num_res_blocks + 1):
                stage = Stage(blocks.residual(channels + skips.pop(), wide[level]))
                channels = wide[level]
                if 2**level in attention_resolutions:
                    stage.append(blocks.attention(channels, heads))
                if level and block == num_res_blocks:
                    stage.append(blocks.up(channels))
                self.output_blocks.append(stage)
        self.out = nn.Sequential(norm(channels), nn.SiLU(), zero_(nn.Conv2d(channels, out_channels, 3, padding=1)))

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """One evaluation.

        Args:
            x: [B, in_channels, H, W], H and W multiples of 2^(levels - 1), of the parameters' dtype.
            time: [B] (or a scalar tensor), steps 0 to T - 1 of the whole chain, also between them.
            labels: of a class-conditional network: int64 [B] in [0, num_classes), not read here, so that -1 fails on
                the device; or rows [B, num_classes], whose largest entry counts.

        Returns:
            [B, out_channels, H, W].

        Raises:
            ValueError: a shape or dtype is another; labels are missing, or there is no place for them.
        """
        check_image(x, self.channels, self.multiple)
        return self._evaluate(x, time, labels)

    def _evaluate(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        embedding = self.time_embed(embedded(time, self.model_channels, x))
        if self.label_emb is not None:
            if labels is None:
                raise ValueError(
                    f"{type(self).__name__}: labels must be given to a class-conditional network, one for each sample"
                )
            embedding = embedding + self.label_emb(class_index(labels, x.shape[0], self.label_dim))
        elif labels is not None:
            raise ValueError(
                f"{type(self).__name__}: labels were given but the network is unconditional (num_classes is None)"
            )
        skips = []
        for stage in self.input_blocks:
            x = stage(x, embedding)
            skips.append(x)
        x = self.middle_block(x, embedding)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, skips.pop()], dim=1), embedding)
        output: Tensor = self.out(x)
        return output


@architecture("denoiser", "Dhariwal & Nichol 2021, appendix; guided-diffusion's upsamplers")
class SuperResModel(UNetModel):
    """A `UNetModel` that also sees a small image, enlarged to the size of x (Dhariwal & Nichol 2021, section 5;
    Saharia et al. 2021).

    Its arguments are those of `UNetModel`; `in_channels` are those of one image, the first convolution sees two.
    """

    images = 2

    def forward(
        self, x: Tensor, time: Tensor, labels: Tensor | None = None, *, low_res: Tensor | None = None
    ) -> Tensor:
        """One evaluation; see `UNetModel.forward`.

        Args:
            low_res: [B, in_channels, h, w] of any size, enlarged bilinearly without antialiasing.

        Raises:
            ValueError: `low_res` is missing, or has another number of samples or channels.
        """
        check_image(x, self.channels, self.multiple)
        if low_res is None or low_res.dim() != 4 or low_res.shape[:2] != x.shape[:2]:
            got = None if low_res is None else list(low_res.shape)
            raise ValueError(f"low_res must be [{x.shape[0]}, {x.shape[1]}, h, w], got {got}")
        large = F.interpolate(low_res.to(x.dtype), x.shape[2:], mode="bilinear", align_corners=False)
        return self._evaluate(torch.cat([x, large], dim=1), time, labels)
