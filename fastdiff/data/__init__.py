"""Data sets by name or path (`open_dataset`), batches of them (`fetch`, `Feed`), and augmentation."""

from __future__ import annotations

from .augment import AUGMENT_LABELS, Augment, flip
from .digits import DATASETS, Images, digits8, digits16, load
from .feed import Feed, fetch
from .points import POINT_SETS, draw_points, point_set
from .samples import DataError, InMemory, NoSplitError, Samples, WorkerError
from .sources import open_dataset

__all__ = [
    "AUGMENT_LABELS",
    "DATASETS",
    "POINT_SETS",
    "Augment",
    "DataError",
    "Feed",
    "Images",
    "InMemory",
    "NoSplitError",
    "Samples",
    "WorkerError",
    "digits8",
    "digits16",
    "draw_points",
    "fetch",
    "flip",
    "load",
    "open_dataset",
    "point_set",
]
