"""Dynamic thresholding of the predicted x_0 (Saharia et al. 2022, "Photorealistic text-to-image diffusion models with
deep language understanding" (Imagen), Section 2.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .engine import flat
from .errors import check_finite

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DynamicThresholding:
    """x_0 -> clamp(x_0, -s, s) / s, with s of every sample the `ratio` quantile of its |x_0|, from 1 to `maximum`.

    A function of the predicted x_0 like any `denoised_fn`. At maximum = 1 it is clipping to [-1, 1].

    Args:
        ratio: from 0 to 1.
        maximum: of s, at least 1; inf for no bound.
    """

    ratio: float = 0.995
    maximum: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= check_finite("ratio", self.ratio) <= 1:
            raise ValueError(f"ratio must be from 0 to 1, got {self.ratio!r}")
        if not self.maximum >= 1:
            raise ValueError(f"maximum must be a number of at least 1, got {self.maximum!r}")

    def __call__(self, x0: Tensor) -> Tensor:
        """The thresholded x_0 [B, ...], of its dtype; quantiles interpolate linearly between two elements."""
        size = flat(x0.abs())
        place = self.ratio * (size.shape[1] - 1)
        low = math.floor(place)
        largest = size.topk(size.shape[1] - low, dim=1).values
        below = largest[:, -1]
        above = largest[:, -2] if largest.shape[1] > 1 else below
        s = torch.lerp(below, above, place - low).clamp(1, self.maximum)
        s = s.reshape(-1, *(1,) * (x0.ndim - 1))
        return torch.minimum(torch.maximum(x0, -s), s) / s


def get_thresholding(value: DynamicThresholding | bool | tuple[float, float] | None) -> DynamicThresholding | None:
    """A thresholding, True for the defaults, (ratio, maximum), or None or False for none."""
    if value is None or isinstance(value, DynamicThresholding):
        return value
    if isinstance(value, bool):
        return DynamicThresholding() if value else None
    try:
        ratio, maximum = value
    except (TypeError, ValueError):
        raise ValueError(f"thresholding must be a DynamicThresholding or (ratio, maximum), got {value!r}") from None
    return DynamicThresholding(ratio, maximum)


@dataclass(frozen=True)
class Composed:
    """second(first(x_0))."""

    first: Function
    second: Function

    def __call__(self, x0: Tensor) -> Tensor:
        return self.second(self.first(x0))


def compose(denoised_fn: Function | None, thresholding: DynamicThresholding | None) -> Function | None:
    """`denoised_fn`, then the thresholding; None if there is neither."""
    if denoised_fn is None or thresholding is None:
        return denoised_fn or thresholding
    return Composed(denoised_fn, thresholding)
