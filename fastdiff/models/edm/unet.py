"""What SongUNet and DhariwalUNet share: their arguments, and the embedding of classes and augmentations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks import class_rows, variance_scaling_
from ..network import Network

__all__ = ["EDMNetwork", "linear"]


def linear(fan_in: int, fan_out: int, bias: bool = True, variance: float = 1.0) -> nn.Linear:
    """A linear layer with weights of variance `variance` over the mean of its sides, and a bias of zero."""
    layer = nn.Linear(fan_in, fan_out, bias=bias)
    variance_scaling_(layer.weight, variance)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class EDMNetwork(Network):
    """Arguments and inputs of both networks.

    Attributes:
        sample_shape: (in_channels, img_resolution, img_resolution); other sizes that the levels divide run, too.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int,
        augment_dim: int,
        model_channels: int,
        channel_mult: Sequence[int],
        channel_mult_emb: int,
        num_blocks: int,
        attn_resolutions: Sequence[int],
        dropout: float,
        label_dropout: float,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        for key, value, least in (
            ("img_resolution", img_resolution, 1), ("in_channels", in_channels, 1), ("out_channels", out_channels, 1),
            ("label_dim", label_dim, 0), ("augment_dim", augment_dim, 0), ("model_channels", model_channels, 1),
            ("channel_mult_emb", channel_mult_emb, 1), ("num_blocks", num_blocks, 0),
        ):  # fmt: skip
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}: {key} must be an integer of at least {least}, got {value!r}")
        for key, values in (("channel_mult", channel_mult), ("attn_resolutions", attn_resolutions)):
            if isinstance(values, str) or not all(isinstance(each, int) and each >= 1 for each in values):
                raise ValueError(f"{name}: {key} must be a list of positive integers, got {values!r}")
        if not channel_mult:
            raise ValueError(f"{name}: channel_mult must have an entry for each level, got none")
        for key, share in (("dropout", dropout), ("label_dropout", label_dropout)):
            if not 0.0 <= share < 1.0:
                raise ValueError(f"{name}: {key} must be in [0, 1), got {share}")
        self.divisor = 2 ** (len(channel_mult) - 1)
        if img_resolution % self.divisor:
            raise ValueError(f"{name}: img_resolution must be a multiple of {self.divisor}, got {img_resolution}")
        self.sample_shape = (in_channels, img_resolution, img_resolution)
        self.label_dim, self.augment_dim, self.label_dropout = label_dim, augment_dim, float(label_dropout)

    def checked(self, x: Tensor, time: Tensor) -> Tensor:
        """The time as [B] or [1].

        Raises:
            ValueError: `x` or `time` has another shape than asked for.
        """
        assert self.sample_shape is not None
        channels, name = self.sample_shape[0], type(self).__name__
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % self.divisor or x.shape[3] % self.divisor:
            wanted = f"[B, {channels}, H, W] with H and W multiples of {self.divisor}"
            raise ValueError(f"{name}: x must be {wanted}, got {list(x.shape)}")
        if time.numel() not in (1, x.shape[0]) or time.ndim > 1:
            raise ValueError(f"{name}: time must be [{x.shape[0]}] or a scalar, got {list(time.shape)}")
        return time.reshape(-1)

    def rows(self, labels: Tensor | None, x: Tensor) -> Tensor | None:
        """Labels as rows of weights [B or 1, label_dim]; in training, some of zeros. None for a network without.

        Raises:
            ValueError: labels of another shape or dtype, or for a network without.
        """
        if not self.label_dim:
            if labels is not None:
                name = type(self).__name__
                raise ValueError(f"{name}: labels were given but the network is unconditional (label_dim = 0)")
            return None
        rows = class_rows(labels, self.label_dim, x)
        if self.training and self.label_dropout:
            kept = torch.rand(x.shape[0], 1, device=x.device) >= self.label_dropout
            rows = rows * kept.to(rows.dtype)
        return rows

    def augmentation(self, layer: Any, augment_labels: Tensor | None, x: Tensor) -> Tensor | None:
        """The embedding of how samples were augmented, None if nothing is said of it.

        Raises:
            ValueError: augment_labels of another shape or dtype, or for a network without.
        """
        if augment_labels is None:
            return None
        name, sides = type(self).__name__, (1, x.shape[0])
        if layer is None:
            raise ValueError(f"{name}: augment_labels were given but the network takes none (augment_dim = 0)")
        shape = tuple(augment_labels.shape)
        if (
            not augment_labels.is_floating_point()
            or len(shape) != 2
            or shape[0] not in sides
            or shape[1] != self.augment_dim
        ):
            wanted = f"floating [{x.shape[0]} or 1, {self.augment_dim}]"
            raise ValueError(f"{name}: augment_labels must be {wanted}, got {augment_labels.dtype} {list(shape)}")
        embedding: Tensor = layer(augment_labels.to(x.dtype))
        return embedding
