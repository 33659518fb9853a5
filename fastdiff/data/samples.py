"""What a training run needs of a data set: how many samples, their shape, their classes, and any of them by index."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["DataError", "InMemory", "NoSplitError", "Samples", "WorkerError", "as_index", "scaled"]


class DataError(ValueError):
    """A data set that cannot be used: the message names the file or sample, what was wanted and what came."""


class NoSplitError(DataError):
    """A data set that can be used, but has no such split."""


class WorkerError(RuntimeError):
    """A process that read samples was killed."""


def scaled(values: Tensor) -> Tensor:
    """uint8 pixels as float32 in [-1, 1] (x / 127.5 - 1; the same bits on every device); other tensors as they are."""
    return values.float().sub_(127.5).mul_(1 / 127.5) if values.dtype == torch.uint8 else values


def as_index(indices: Sequence[int] | Tensor, count: int) -> Tensor:
    """Indices as int64 [b].

    Raises:
        IndexError: one is outside [0, count); not checked on a GPU, which would have to be waited for.
    """
    index = torch.as_tensor(indices, dtype=torch.int64).reshape(-1)
    if index.device.type == "cpu" and len(index) and not 0 <= int(index.min()) <= int(index.max()) < count:
        raise IndexError(f"indices must be in [0, {count}), got {int(index.min())} to {int(index.max())}")
    return index


class Samples(Dataset[tuple[Tensor, int]]):
    """A data set of `fastdiff.data.open_dataset`; `dataset[i]` is (float32 sample, class or -1).

    Attributes:
        name: what messages call it.
        sample_shape: (C, H, W), or (D,) of points.
        classes: number of classes; 0: none.
        bins: how many values a pixel can take, evenly spaced from -1 to 1 (the likelihood of discrete data needs it).
        bad: samples found unusable so far, by name, with the reason; each is replaced by the next usable one.
    """

    def __init__(self, name: str, count: int, sample_shape: tuple[int, ...], classes: int) -> None:
        self.name, self.count, self.sample_shape, self.classes = name, count, sample_shape, classes
        self.bins = 256
        self.bad: dict[str, str] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        values, labels = self.take([index])
        return scaled(values)[0], int(labels)

    def take(self, indices: Sequence[int] | Tensor, workers: int = 0) -> tuple[Tensor, Tensor]:
        """(values [b, *sample_shape], uint8 or float32 as they are stored; labels int64 [b], -1 for none)."""
        raise NotImplementedError

    def to(self, device: torch.device | str) -> Samples:
        """The set with its samples on `device`, if it is held in memory; else itself."""
        return self


class InMemory(Samples):
    """A set held as one tensor: images as uint8 (N C H W bytes) or float32 (four times that).

    Args:
        values: uint8 [N, C, H, W] or float32 [N, ...].
        labels: int64 [N], or None.
        classes: number of classes; default one more than the largest label.

    Raises:
        DataError: no samples, or labels that do not fit.
    """

    def __init__(self, name: str, values: Tensor, labels: Tensor | None = None, classes: int | None = None) -> None:
        if not len(values):
            raise DataError(f"{name}: no samples")
        if labels is None:
            labels, classes = torch.full((len(values),), -1), 0
        if labels.shape != values.shape[:1]:
            raise DataError(f"{name}: labels must be one per sample ({len(values)}), got {list(labels.shape)}")
        if classes is None:
            classes = int(labels.max()) + 1
        if classes and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise DataError(f"{name}: labels must be in [0, {classes}), got {int(labels.min())} to {int(labels.max())}")
        super().__init__(name, len(values), tuple(values.shape[1:]), classes)
        self.values, self.labels = values, labels.to(torch.int64)

    def take(self, indices: Sequence[int] | Tensor, workers: int = 0) -> tuple[Tensor, Tensor]:
        index = as_index(indices, self.count).to(self.values.device, non_blocking=True)
        return self.values[index], self.labels[index]

    def to(self, device: torch.device | str) -> InMemory:
        moved = InMemory(self.name, self.values.to(device), self.labels.to(device), self.classes)
        moved.bins, moved.bad = self.bins, self.bad
        return moved
