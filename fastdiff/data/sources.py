"""`open_dataset`: whatever a user names as a data set."""

from __future__ import annotations

from . import digits
from .points import POINT_SETS, point_set
from .samples import DataError, InMemory, Samples

__all__ = ["open_dataset"]


def open_dataset(source: str, *, split: str = "train") -> Samples:
    """The data set called `source`.

    Args:
        source: `digits8`, `digits16`; or `swiss_roll`, `moons`, `checkerboard`, `gaussians8`, `gaussians25`, also with a
            number of points: `moons:5000` (default 100,000).
        split: "train" or "test".

    Raises:
        DataError: the source cannot be used.
        ModuleNotFoundError: the package that carries or reads the samples is not installed.
    """
    if source in digits.DATASETS:
        images = digits.load(source, split)
        return InMemory(source, images.images, images.labels, images.classes)
    name, _, count = source.partition(":")
    if name in POINT_SETS:
        if count and not count.isdecimal():
            raise DataError(f"{source}: expected {name} or {name}:COUNT")
        return point_set(name, int(count) if count else 100_000, split=split)
    raise DataError(f"{source}: not a known data set")
