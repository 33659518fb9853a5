"""Class labels in the two forms that are in use: indices, and rows of numbers (one-hot, or any mixture)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["class_index", "class_rows"]


def class_rows(labels: Tensor | None, classes: int, x: Tensor) -> Tensor:
    """Labels as rows of weights, one for each class.

    Args:
        labels: int64 [B] indices in [0, classes), where -1 (any other number, in fact) is a row of zeros, "no class";
            floating rows [B or 1, classes], which stay as they are; None is one row of zeros.
        classes: number of classes.
        x: [B, ...], says how many, where and of which dtype.

    Returns:
        [B or 1, classes] in the dtype of `x`.

    Raises:
        ValueError: `labels` has another shape, or is of another dtype.
    """
    if labels is None:
        return torch.zeros(1, classes, device=x.device, dtype=x.dtype)
    batch = x.shape[0]
    if labels.dtype == torch.int64 and labels.ndim == 1 and labels.shape[0] in (1, batch):
        return (labels[:, None] == torch.arange(classes, device=labels.device)).to(x.dtype)
    if labels.is_floating_point() and labels.ndim == 2 and labels.shape[0] in (1, batch) and labels.shape[1] == classes:
        return labels.to(x.dtype)
    wanted = f"int64 [{batch}] or floating [{batch} or 1, {classes}]"
    raise ValueError(f"labels must be {wanted}, got {labels.dtype} {list(labels.shape)}")


def class_index(labels: Tensor, batch: int, classes: int) -> Tensor:
    """Labels as indices: int64 [B] as they are, rows [B, classes] by their largest number.

    Raises:
        ValueError: `labels` has another shape, or is of another dtype.
    """
    if labels.dtype == torch.int64 and tuple(labels.shape) == (batch,):
        return labels
    if labels.ndim == 2 and tuple(labels.shape) == (batch, classes):
        return labels.argmax(dim=1)
    wanted = f"int64 [{batch}] or rows [{batch}, {classes}]"
    raise ValueError(f"labels must be {wanted}, got {labels.dtype} {list(labels.shape)}")
