"""Data sets by name: the digits that Python packages carry, points in the plane. Nothing is downloaded."""

from __future__ import annotations

from .digits import DATASETS, Images, digits8, digits16, load
from .feed import Feed, fetch
from .points import POINT_SETS, draw_points, point_set
from .samples import DataError, InMemory, Samples
from .sources import open_dataset

__all__ = [
    "DATASETS",
    "POINT_SETS",
    "DataError",
    "Feed",
    "Images",
    "InMemory",
    "Samples",
    "digits8",
    "digits16",
    "draw_points",
    "fetch",
    "load",
    "open_dataset",
    "point_set",
]
