"""Sets that are read sample by sample, and what happens to samples that cannot be used.

A bad sample (unreadable, of another shape, without its class) is replaced by the next usable one, so that what an index
gives depends on the files only: not on workers, ranks, or what was read before. It is named in a warning and counted in
`bad`; when more than a share of the set is bad, that is an error.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from tqdm import tqdm

from ..errors import warn
from .images import BadSample
from .samples import DataError, InMemory, Samples, as_index

__all__ = ["Chosen", "Lazy", "Reader", "open_reader"]

PROBES = 256  # samples read at opening, evenly spaced
_WARNINGS = 10  # bad samples that are warned about; further ones are counted


class Reader(Protocol):
    """Where samples come from."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What messages call a sample."""
        ...

    def read(self, index: int) -> tuple[Tensor, int]:
        """(uint8 [C, H, W] or float32, class or -1). Raises: BadSample."""
        ...


class Chosen:
    """Some samples of a reader."""

    def __init__(self, reader: Reader, indices: Sequence[int]) -> None:
        self.reader, self.indices = reader, indices

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.reader.name(int(self.indices[index]))

    def read(self, index: int) -> tuple[Tensor, int]:
        return self.reader.read(int(self.indices[index]))


class Lazy(Samples):
    """A set whose samples are read when they are asked for.

    Args:
        reader: of the samples.
        classes: number of classes; None while it is unknown.
        bad_share: the largest share of the set that may be bad.

    Raises:
        DataError: no samples, too many bad ones, or samples of several shapes among those read at opening.
    """

    def __init__(self, name: str, reader: Reader, classes: int | None, bad_share: float) -> None:
        if not len(reader):
            raise DataError(f"{name}: no samples")
        super().__init__(name, len(reader), (), classes or 0)
        self.reader, self.bad_share = reader, bad_share
        self.labelled = classes != 0
        self.known = classes is not None
        self.first: tuple[str, Tensor] | None = None  # a usable sample, which decides the shape
        self.strict = True  # another shape is an error, not a bad sample
        self.bad_samples: dict[int, str] = {}
        self.take(torch.linspace(0, self.count - 1, min(self.count, PROBES), dtype=torch.float64).round().long())

    def take(self, indices: Sequence[int] | Tensor, workers: int = 0) -> tuple[Tensor, Tensor]:
        wanted = as_index(indices, self.count).tolist()
        self.note({})  # a set that was found unusable stays so
        if self.first is None:  # decided by the order of the files, not by a race
            self._read(0)
        found = list(_pool(workers).map(self._read, wanted)) if workers else [self._read(index) for index in wanted]
        for _, _, bad in found:
            self.note(bad)
        assert self.first is not None
        like = self.first[1]
        values = torch.stack([value for value, _, _ in found]) if found else like.new_empty((0, *like.shape))
        return values, torch.tensor([label for _, label, _ in found], dtype=torch.int64)

    def note(self, bad: dict[int, str]) -> None:
        """Counts bad samples, by index, and names them in a warning.

        Raises:
            DataError: there are too many of them.
        """
        new = {index: reason for index, reason in bad.items() if index not in self.bad_samples}
        self.bad_samples |= new
        named = {self.reader.name(index): reason for index, reason in new.items()}
        self.bad |= named
        if len(self.bad_samples) > self.bad_share * self.count:
            name, reason = next(iter(self.bad.items()))
            share = f"{len(self.bad_samples)} of {self.count} samples cannot be used, more than {self.bad_share:.0%}"
            raise DataError(f"{self.name}: {share}; the first: {name}: {reason}")
        if get_worker_info() is None:
            for count, (name, reason) in enumerate(named.items(), len(self.bad) - len(named) + 1):
                if count <= _WARNINGS:
                    last = " (further ones are counted, not named)" if count == _WARNINGS else ""
                    warn(f"{self.name}: {name}: {reason}; another sample takes its place{last}")

    def _read(self, index: int) -> tuple[Tensor, int, dict[int, str]]:
        """The sample `index` or the next usable one, and the bad ones that were met."""
        bad: dict[int, str] = {}
        while True:
            if index not in self.bad_samples:
                try:
                    value, label = self.reader.read(index)
                    self._check(index, value, label)
                    return value, label if self.labelled else -1, bad
                except BadSample as error:
                    bad[index] = str(error)
                    if len(bad) > self.bad_share * self.count:
                        self.note(bad)
            index = (index + 1) % self.count

    def _check(self, index: int, value: Tensor, label: int) -> None:
        """Whether a sample is like the first one and has a class if it must."""
        if self.first is None:
            self.first, self.sample_shape = (self.reader.name(index), value), tuple(value.shape)
        name, like = self.first
        reason = None
        if value.shape != like.shape or value.dtype != like.dtype:
            reason = f"{_size(value)} where {name} is {_size(like)}"
            if like.dtype == torch.uint8:
                reason += "; size=N crops and resizes every image, channels=1 or 3 converts it"
        elif value.is_floating_point() and not _in_range(value):
            reason = f"values from {value.min():.4g} to {value.max():.4g} where [-1, 1] is wanted"
        elif self.labelled and self.known and not 0 <= label < self.classes:
            reason = f"class {label} is not in [0, {self.classes})"
        if reason is not None and self.strict:
            raise DataError(f"{self.name}: {self.reader.name(index)}: {reason}")
        if reason is not None:
            raise BadSample(reason)


def open_reader(
    name: str, reader: Reader, classes: int | None, *, memory: int, workers: int, bad_share: float
) -> Samples:
    """A reader's set: held in memory where it has at most `memory` bytes, else read sample by sample.

    Args:
        classes: None: as many as the labels say, which must then all be read.

    Raises:
        DataError: see `Lazy`.
    """
    lazy = Lazy(name, reader, classes, bad_share)
    assert lazy.first is not None
    like = lazy.first[1]
    if lazy.count * like.nbytes > memory:
        if classes is None:
            raise DataError(f"{name}: classes must be given for a set that is not held in memory, got None")
        lazy.strict = False
        return lazy
    values, labels = like.new_empty((lazy.count, *like.shape)), torch.empty(lazy.count, dtype=torch.int64)
    with tqdm(total=lazy.count, unit="sample", desc=f"read {name}", leave=False, disable=None) as bar:
        for part in torch.arange(lazy.count).split(1024):
            values[part], labels[part] = lazy.take(part, workers)
            bar.update(len(part))
    known = None if classes == 0 or bool((labels < 0).all()) else labels
    held = InMemory(name, values, known, classes)
    held.bad = lazy.bad
    return held


def _in_range(value: Tensor) -> bool:
    """Whether a floating image is in [-1, 1] (rounding aside) and a point is finite."""
    return bool(value.isfinite().all()) and (value.ndim != 3 or bool(value.abs().max() <= 1.001))


def _size(value: Tensor) -> str:
    """As in `32x32 pixels of 3 channels`."""
    if value.ndim != 3:
        return f"{value.dtype} {list(value.shape)}"
    channels, height, width = value.shape
    kind = "" if value.dtype == torch.uint8 else f"{value.dtype} "
    return f"{kind}{width}x{height} pixels of {channels} channel{'' if channels == 1 else 's'}"


@lru_cache(1)
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, "fastdiff-data")


if hasattr(os, "register_at_fork"):  # a forked process has none of the threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
