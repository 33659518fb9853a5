"""Batches of explicit indices: the trainer says which samples an iteration has, so that a resumed run has the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .samples import Samples, scaled

__all__ = ["fetch"]


def fetch(
    dataset: Samples, indices: Sequence[int] | Tensor, workers: int = 0, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """The samples `indices`, in that order, now.

    Args:
        dataset: of `open_dataset`. One held in memory is indexed where it lies (`dataset.to("cuda")` moves it).
        indices: [b], each in [0, len(dataset)).
        workers: threads that read and decode images; 0: the caller's.
        device: of the result; default the data set's.

    Returns:
        (float32 [b, *sample_shape], images in [-1, 1]; labels int64 [b], -1 where there is none).

    Raises:
        DataError: too many of the data set's samples cannot be used.
        IndexError: an index out of range.
    """
    values, labels = dataset.take(indices, workers)
    if device is not None:
        values, labels = values.to(device, non_blocking=True), labels.to(device, non_blocking=True)
    return scaled(values), labels
