"""Non-leaking augmentation (Karras et al. 2020, appendix B; Karras et al. 2022, appendix F.2), and plain flips.

The network is told what was done to each image by 9 labels; with all of them 0 it models images as they are. Draws are
decided by a sample's seed alone, so that batches, ranks and accumulation steps change nothing. They are draws of the
noise contract far from those of losses and samplers: the seeds of a batch's noise serve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import ops
from ..errors import check_finite

__all__ = ["AUGMENT_LABELS", "Augment", "flip"]

AUGMENT_LABELS = 9
"""Labels of an `Augment`: what a network's `augment_dim` must be."""

_DRAW = 2**31
_SCALE = 0.2 * math.log(2)  # log of the paper's A_scale and A_aniso, 2^0.2
_TRANSLATION = 1 / 8


@dataclass(frozen=True)
class Augment:
    """Six transformations in a fixed order, each with probability p: `augment(images, seeds)`.

    With z normal and u uniform on [-pi, pi], the labels, 0 where a transformation is left out, are

        0     x-flip: 1 in half of the cases
        1     y-flip: likewise
        2     isotropic scaling by 2^(0.2 z): z
        3, 4  rotation by u, clockwise as the image is seen: cos u - 1, sin u
        5, 6  scaling by 2^(0.2 z) along the direction u and 2^(-0.2 z) across it: z cos 2u, z sin 2u
        7, 8  translation by z / 8 of the width (right) and of the height (down): z of each

    The set and the strengths are the paper's, and so is the number of labels; their order is this library's, and the
    angle of 5 and 6 is doubled so that labels decide what is done (with u itself, z and -z would have the same ones). A
    network that was trained with another code's labels must be fine-tuned to these.

    Images are resampled once (bicubic, mirrored at the edges, clamped to
    [-1, 1]); the paper's wavelet filter is not used. An image that is only flipped, or left alone, keeps its bits.

    Attributes:
        p: probability of each transformation, in [0, 1]. The paper has 0.12 to 0.15; much more leaks.
        x_flip: probability of the first one alone; default p.
    """

    p: float
    x_flip: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("p", self.p), ("x_flip", self.p if self.x_flip is None else self.x_flip)):
            if not 0 <= check_finite(name, value) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value!r}")

    def __call__(self, images: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """(images, labels).

        Args:
            images: float [B, C, H, W] in [-1, 1].
            seeds: int64 [B] on their device.

        Returns:
            Images of the same shape and dtype, and labels float32 [B, 9].

        Raises:
            ValueError: an argument of another shape or dtype.
        """
        _check(images, seeds)
        x_flip = self.p if self.x_flip is None else self.x_flip
        if not (self.p or x_flip) or not len(images):
            return images, images.new_zeros(len(images), AUGMENT_LABELS, dtype=torch.float32)
        normals = ops.normal(seeds, (len(images), 14), draw=_DRAW).double()
        uniform, z = torch.special.ndtr(normals[:, :10]), normals[:, 10:]
        use = torch.cat([uniform[:, :1] < x_flip, uniform[:, 1:6] < self.p], 1).double()
        flips = use[:, :2] * (uniform[:, 6:8] < 0.5)
        angle = (2 * uniform[:, 8:] - 1) * math.pi
        turn, direction = use[:, 3] * angle[:, 0], angle[:, 1]
        scale, stretch, shift = use[:, 2] * z[:, 0], use[:, 4] * z[:, 1], use[:, 5, None] * z[:, 2:]
        columns = [turn.cos() - 1, turn.sin(), stretch * (2 * direction).cos(), stretch * (2 * direction).sin()]
        labels = torch.cat([flips, scale[:, None], torch.stack(columns, 1), shift], 1)

        flipped = torch.where(flips[:, 0, None, None, None] > 0, images.flip(3), images)
        flipped = torch.where(flips[:, 1, None, None, None] > 0, flipped.flip(2), flipped)
        if not self.p:
            return flipped, labels.float()
        moved = _resample(flipped, _inverse(scale, turn, stretch, direction), shift)
        return torch.where((use[:, 2:] > 0).any(1)[:, None, None, None], moved, flipped), labels.float()


def flip(images: Tensor, seeds: Tensor) -> Tensor:
    """Every image mirrored left to right with probability 1/2, decided by its seed.

    Args:
        images: [B, C, H, W] of any dtype.
        seeds: int64 [B] on their device.

    Raises:
        ValueError: an argument of another shape or dtype.
    """
    _check(images, seeds)
    chosen = ops.normal(seeds, (len(images), 1), draw=_DRAW + 1) < 0
    return torch.where(chosen[:, :, None, None], images.flip(3), images)


def _inverse(scale: Tensor, turn: Tensor, stretch: Tensor, direction: Tensor) -> Tensor:
    """[B, 2, 2]: from a position in the result to one in the image, in pixels about the centre (x right, y down)."""

    def rotation(angle: Tensor) -> Tensor:
        cosine, sine = angle.cos(), angle.sin()
        return torch.stack([cosine, -sine, sine, cosine], 1).view(-1, 2, 2)

    # Elementwise, for a matrix product may round otherwise in another batch.
    def product(a: Tensor, b: Tensor) -> Tensor:
        return (a[:, :, :, None] * b[:, None]).sum(2)

    lengths = torch.stack([(-_SCALE * (scale + stretch)).exp(), (-_SCALE * (scale - stretch)).exp()], 1)
    return product(rotation(direction - turn) * lengths[:, None], rotation(-direction))


def _resample(images: Tensor, inverse: Tensor, shift: Tensor) -> Tensor:
    """The images at inverse (position - shift), shift [B, 2] in units of 1/8 of the width and height."""
    height, width = images.shape[2:]
    x, y = (torch.arange(n, device=images.device, dtype=torch.float64) + 0.5 - n / 2 for n in (width, height))
    x = x[None, None, :] - (shift[:, 0] * _TRANSLATION * width)[:, None, None]
    y = y[None, :, None] - (shift[:, 1] * _TRANSLATION * height)[:, None, None]
    m = inverse[:, :, :, None, None]
    grid = torch.stack([(m[:, k, 0] * x + m[:, k, 1] * y) * (2 / n) for k, n in enumerate((width, height))], -1)
    grid = grid.to(images.dtype)
    return F.grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=False).clamp_(-1, 1)


def _check(images: Tensor, seeds: Tensor) -> None:
    if images.ndim != 4:
        raise ValueError(f"images must be [B, C, H, W], got {list(images.shape)}")
    if seeds.dtype != torch.int64 or seeds.shape != images.shape[:1]:
        raise ValueError(f"seeds must be int64 [{len(images)}], got {seeds.dtype} {list(seeds.shape)}")
