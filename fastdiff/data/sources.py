"""`open_dataset`: whatever a user names as a data set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ..errors import check_choice, check_count
from . import digits
from .archive import open_archive
from .arrays import open_arrays
from .folder import open_folder
from .hub import open_hub, open_torch
from .lazy import Chosen, Reader, open_reader
from .points import POINT_SETS, point_set
from .samples import DataError, InMemory, NoSplitError, Samples

__all__ = ["open_dataset"]


def open_dataset(
    source: str | os.PathLike[str] | Any,
    *,
    split: str = "train",
    size: int | None = None,
    channels: int | None = None,
    classes: int | None = None,
    holdout: int = 0,
    memory: int = 2**29,
    workers: int = 0,
    bad_share: float = 0.01,
) -> Samples:
    """The data set called `source`.

    Images of several sizes or channel counts are refused (the message says what to do) unless `size` and `channels`
    convert them. A set is read once and held in memory where it fits, by every process: one byte per pixel and channel.
    Of a larger one 256 images are read at opening and the others as asked; the names and labels of its files are held,
    about 200 bytes a file. Images that cannot be read are replaced, named and counted: see `fastdiff.data.lazy`.

    Args:
        source: `digits8`, `digits16`;
            `swiss_roll`, `moons`, `checkerboard`, `gaussians8`, `gaussians25`, or with a number of points: `moons:500`;
            a folder of images (PNG, JPEG ...), whose classes are in EDM's `dataset.json` or else its sub-folders;
            a `.zip` of images (EDM's format);
            an `.npz` file (`images` or `arr_0`, `labels` or `arr_1`; held in memory whatever its size);
            `hf:NAME` or `hf:NAME:SPLIT`, a name or a local folder of the Hugging Face `datasets` library;
            or a map-style `torch.utils.data.Dataset` of images or (image, class).
        split: "train" or "test". The digits, points, `hf:` names, folders with a `train` sub-folder and `.npz` files
            with `x_train` have both. Other sources have what `holdout` leaves.
        size: crop the central square of every image that is not size x size, and resize it.
        channels: 1 or 3: convert to grey or RGB.
        classes: number of classes, where it is not the largest label plus one; 0 ignores the labels.
        holdout: how many samples of a source without splits are its "test": the same ones always, in a fixed shuffle.
        memory: bytes up to which an image set is held in memory; 0: never.
        workers: threads that read a set into memory.
        bad_share: the largest share of samples that may be unusable.

    Raises:
        NoSplitError: the source has no such split.
        DataError: (its base) the source cannot be used; the message names the file or sample.
        ModuleNotFoundError: the package that carries or reads the samples is not installed.
        ValueError: an argument out of range.
    """
    check_choice("split", split, ("train", "test"))
    for name, value, least in (("size", size, 1), ("classes", classes, 0), ("holdout", holdout, 0)):
        if value is not None:
            check_count(name, value, least)
    check_choice("channels", channels, (None, 1, 3))
    if not 0 <= bad_share < 1:
        raise ValueError(f"bad_share must be in [0, 1), got {bad_share!r}")
    if isinstance(source, str):
        embedded = _embedded(source, split)
        if embedded is not None:
            return _as_asked(embedded, size, channels, classes)
        if not source.startswith("hf:"):
            source = Path(source).expanduser()
    fit = size, channels
    name = str(source)
    own = False
    if not isinstance(source, (str, os.PathLike)):
        name = type(source).__name__
        reader, known = open_torch(source, fit)
    elif name.startswith("hf:"):
        reader, known, own = open_hub(name[3:], split, fit)
    elif Path(source).suffix.lower() == ".npz":
        values, labels, own = open_arrays(Path(source), split, size, channels)
        if classes and labels is None:
            raise DataError(f"{name}: has no labels, got classes={classes}")
        held = InMemory(name, values, None if classes == 0 else labels, classes)
        chosen = _part(len(held), split, 0 if own else holdout, name, own)
        return held if chosen is None else InMemory(name, held.values[chosen], held.labels[chosen], held.classes)
    elif Path(source).is_dir():
        reader, known, own = open_folder(Path(source), split, fit)
    elif Path(source).suffix.lower() == ".zip":
        reader, known = open_archive(Path(source), fit)
    else:
        known_names = ", ".join((*digits.DATASETS, *POINT_SETS))
        raise DataError(f"{name}: not {known_names}, a folder, a .zip or .npz file, or hf:NAME")
    if classes and known == 0:
        raise DataError(f"{name}: has no labels, got classes={classes}")
    if classes and known and classes < known:
        raise DataError(f"{name}: labels must be in [0, {classes}), got up to {known - 1}")
    chosen = _part(len(reader), split, 0 if own else holdout, name, own)
    some: Reader = reader if chosen is None else Chosen(reader, chosen.tolist())
    total = known if classes is None else classes
    return open_reader(name, some, total, memory=memory, workers=workers, bad_share=bad_share)


def _embedded(source: str, split: str) -> InMemory | None:
    """A set that needs no file."""
    if source in digits.DATASETS:
        images = digits.load(source, split)
        held = InMemory(source, images.images, images.labels, images.classes)
        held.bins = 17 if source == "digits8" else 256  # of 4x4 binary pixels each
        return held
    name, _, count = source.partition(":")
    if name not in POINT_SETS:
        return None
    if count and (not count.isdecimal() or not int(count)):
        raise DataError(f"{source}: expected {name} or {name}:COUNT")
    return point_set(name, int(count) if count else 100_000, split=split)


def _as_asked(dataset: InMemory, size: int | None, channels: int | None, classes: int | None) -> InMemory:
    """An embedded set, of which only the labels can be changed."""
    shape = dataset.sample_shape
    if (size is not None and shape[1:] != (size, size)) or (channels is not None and shape[0] != channels):
        raise DataError(f"{dataset.name}: its samples are {list(shape)}, got size={size}, channels={channels}")
    if classes and (classes < dataset.classes or not dataset.classes):
        raise DataError(f"{dataset.name}: has {dataset.classes} classes, got classes={classes}")
    if classes is None or not dataset.classes:
        return dataset
    changed = InMemory(dataset.name, dataset.values, dataset.labels if classes else None, classes)
    changed.bins = dataset.bins
    return changed


def _part(count: int, split: str, holdout: int, name: str, own: bool) -> torch.Tensor | None:
    """The samples of a split, for a source that has none of its own; None for all of them."""
    if holdout and holdout >= count:
        raise DataError(f"{name}: holdout must be below the number of samples ({count}), got {holdout}")
    if own or (split == "train" and not holdout):
        return None
    if not holdout:
        raise NoSplitError(f"{name}: has no test split; holdout=N makes one of N samples")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return (order[:holdout] if split == "test" else order[holdout:]).sort().values
