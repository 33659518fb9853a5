"""Tensors of files that have been described but not yet read: nothing is allocated before all bounds are checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .pickles import Unreadable

__all__ = ["STORAGES", "Storage", "TensorRef", "rebuild_parameter", "rebuild_tensor"]

STORAGES: dict[str, torch.dtype] = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}


class _Integers(NamedTuple):
    torch: torch.dtype
    name: str


_INTEGERS = {
    1: _Integers(torch.uint8, "u1"),
    2: _Integers(torch.int16, "<i2"),
    4: _Integers(torch.int32, "<i4"),
    8: _Integers(torch.int64, "<i8"),
}
MOST_AXES = 8
MOST_NUMBERS = 1 << 40


@dataclass(eq=False)
class Storage:
    """`numel` numbers of one dtype, one after the other; `data` is their bytes, once these have been found."""

    dtype: torch.dtype
    numel: int
    data: memoryview | None = None

    def __post_init__(self) -> None:
        if type(self.numel) is not int or not 0 <= self.numel <= MOST_NUMBERS:
            raise Unreadable(f"a storage must have a count of 0 to {MOST_NUMBERS} numbers")

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def bind(self, data: memoryview) -> None:
        """Gives it its bytes.

        Raises:
            Unreadable: their number is not that of the storage.
        """
        if len(data) != self.nbytes:
            raise Unreadable(f"a storage of {self.numel} numbers must have {self.nbytes} bytes, got {len(data)}")
        self.data = data


@dataclass(frozen=True, eq=False)
class TensorRef:
    """A view of a storage, inside its bounds."""

    storage: Storage
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for tensors that are the same numbers of the same file."""
        return id(self.storage), self.offset, self.shape, self.stride

    def load(self) -> Tensor:
        """Its numbers, contiguous and in memory of their own.

        Raises:
            Unreadable: the file does not hold its storage.
        """
        if self.storage.data is None:
            raise Unreadable("a tensor's storage is not in the file")
        numbers = torch.empty(self.shape, dtype=self.dtype)
        if not numbers.numel():
            return numbers
        size = self.dtype.itemsize
        integers = _INTEGERS[size]  # moved as integers of the same size: every bit stays
        raw = np.frombuffer(self.storage.data, integers.name, offset=self.offset * size)
        view = np.lib.stride_tricks.as_strided(raw, self.shape, [step * size for step in self.stride], writeable=False)
        numbers.view(integers.torch).numpy()[...] = view if self.dtype != torch.bool else view != 0
        return numbers


def rebuild_tensor(arguments: tuple[Any, ...]) -> TensorRef:
    """The tensor of (storage, offset, sizes, strides, requires_grad, hooks[, metadata]), as torch pickles it.

    Raises:
        Unreadable: these are not such arguments, or the view leaves its storage or has more numbers than it.
    """
    if len(arguments) not in (6, 7) or not isinstance(arguments[0], Storage):
        raise Unreadable("a tensor without a storage")
    storage, offset, shape, stride = arguments[:4]
    if not (_counts(shape) and _counts(stride) and len(shape) == len(stride) and _counts((offset,))):
        raise Unreadable("a tensor whose sizes, strides or offset are no counts, or too many")
    shape = torch.Size(shape)
    if math.prod(max(1, size) for size in shape) > max(1, MOST_NUMBERS):
        raise Unreadable(f"a tensor of shape {list(shape)} is too large")
    numel = shape.numel()
    if numel > storage.numel or offset + (1 + _reach(shape, stride) if numel else 0) > storage.numel:
        raise Unreadable(
            f"a tensor of shape {list(shape)}, strides {list(stride)} and offset {offset} leaves its storage of "
            f"{storage.numel} numbers"
        )
    return TensorRef(storage, offset, shape, stride)


def rebuild_parameter(arguments: tuple[Any, ...]) -> TensorRef:
    """The tensor of (tensor, requires_grad, hooks)."""
    if len(arguments) != 3 or not isinstance(arguments[0], TensorRef):
        raise Unreadable("a parameter without a tensor")
    return arguments[0]


def _counts(values: Any) -> bool:
    return (
        type(values) is tuple
        and len(values) <= MOST_AXES
        and all(type(value) is int and 0 <= value <= MOST_NUMBERS for value in values)
    )


def _reach(shape: torch.Size, stride: tuple[int, ...]) -> int:
    """Of the last number, from the first."""
    return sum((size - 1) * step for size, step in zip(shape, stride))
