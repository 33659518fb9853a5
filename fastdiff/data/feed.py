"""Batches of explicit indices: the trainer says which samples an iteration has, so that a resumed run has the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import check_count
from .lazy import Lazy
from .samples import DataError, InMemory, Samples, WorkerError, scaled

__all__ = ["Feed", "fetch"]

_Indices = Sequence[int] | Tensor


def fetch(
    dataset: Samples, indices: _Indices, workers: int = 0, device: torch.device | str | None = None
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
    return _finished(*dataset.take(indices, workers), device)


class Feed:
    """The batches of a run, read ahead by worker processes; `feed(iteration)` is `fetch(dataset, order(iteration))`.

    Iterations are best asked for in a row, from any start: another one begins the reading anew. The workers hold
    `ahead` batches each, one byte per pixel and channel. A set in memory is indexed directly.

    Args:
        dataset: of `open_dataset`, on `device` if it is held in memory.
        order: the indices of an iteration (a rank's part, a micro-batch: whatever is counted); called in this process,
            also beyond the last iteration of a run, which it is not told.
        workers: processes that read; 0: this one reads, when it is asked.
        device: of the batches.
        ahead: batches that every worker reads ahead.
    """

    def __init__(
        self,
        dataset: Samples,
        order: Callable[[int], _Indices],
        *,
        workers: int = 0,
        device: torch.device | str = "cpu",
        ahead: int = 2,
    ) -> None:
        self.dataset, self.order, self.device = dataset, order, torch.device(device)
        self.ahead = check_count("ahead", ahead)
        self.workers = 0 if isinstance(dataset, InMemory) else check_count("workers", workers, 0)
        self._next = -1
        self._batches: Iterator[Any] | None = None

    def __call__(self, iteration: int) -> tuple[Tensor, Tensor]:
        """As `fetch`.

        Raises:
            DataError, IndexError: see `fetch`.
            WorkerError: a worker was killed.
        """
        if not self.workers:
            return fetch(self.dataset, self.order(iteration), device=self.device)
        if self._batches is None or iteration != self._next:
            self.close()
            self._batches = self._start(iteration)
        try:
            values, labels, bad, error = next(self._batches)
        except RuntimeError as failure:
            self.close()
            if "exited unexpectedly" not in str(failure):
                raise
            message = f"{self.dataset.name}: a worker that reads the samples of iteration {iteration} was killed"
            raise WorkerError(f"{message} (out of memory?); with workers=0 this process reads them") from None
        self._next = iteration + 1
        if isinstance(self.dataset, Lazy):
            self.dataset.note(bad)
        if error is not None:
            self.close()
            raise DataError(error)
        return _finished(values, labels, self.device)

    def close(self) -> None:
        """Ends the workers."""
        self._batches = None

    def _start(self, first: int) -> Iterator[Any]:
        loader = DataLoader(
            _Task(self.dataset),
            batch_sampler=_Order(self.order, first),
            num_workers=self.workers,
            prefetch_factor=self.ahead,
            collate_fn=_same,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else the loader takes its own seed from the global generator
        )
        return iter(loader)


class _Order:
    """The indices of iterations `first`, `first + 1`, ... without end."""

    def __init__(self, order: Callable[[int], _Indices], first: int) -> None:
        self.order, self.first = order, first

    def __iter__(self) -> Iterator[list[int]]:
        iteration = self.first
        while True:
            yield torch.as_tensor(self.order(iteration)).tolist()
            iteration += 1


class _Task(Dataset[Any]):
    """What a worker does: a whole batch, with the bad samples it met; an error comes as its message."""

    def __init__(self, dataset: Samples) -> None:
        self.dataset = dataset

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor, dict[int, str], str | None]:
        try:
            values, labels = self.dataset.take(indices)
            error = None
        except DataError as failure:
            values, labels, error = torch.empty(0), torch.empty(0), str(failure)
        # A copy: it is packed by another thread, while the next batch may find more.
        return values, labels, dict(self.dataset.bad_samples) if isinstance(self.dataset, Lazy) else {}, error


def _same(batch: Any) -> Any:
    return batch


def _finished(values: Tensor, labels: Tensor, device: torch.device | str | None) -> tuple[Tensor, Tensor]:
    """On the device, and only there as float32."""
    if device is not None:
        values, labels = values.to(device, non_blocking=True), labels.to(device, non_blocking=True)
    return scaled(values), labels
