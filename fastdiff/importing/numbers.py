"""Numbers that pickles hold as calls of NumPy: read from their bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from .pickles import Instance, Maker, Unreadable

__all__ = ["NUMBERS", "encoded"]

LONGEST = 64
_TYPES = frozenset("f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 b1".split())


class _DType(Instance):
    """A dtype; its byte order is in the state that follows."""

    __slots__ = ("code",)

    def __init__(self, code: str):
        super().__init__("numpy.dtype")
        self.code = code


def _dtype(arguments: tuple[Any, ...]) -> _DType:
    if not arguments or type(arguments[0]) is not str or arguments[0] not in _TYPES:
        raise Unreadable("a NumPy type that is no number's")
    return _DType(arguments[0])


def _scalar(arguments: tuple[Any, ...]) -> int | float | bool:
    """The number of (dtype, its bytes)."""
    if len(arguments) != 2 or not isinstance(arguments[0], _DType):
        raise Unreadable("a NumPy number without a type")
    dtype, raw = arguments
    order = dtype.state[1] if type(dtype.state) is tuple and len(dtype.state) > 1 else "<"
    if type(raw) is not memoryview or order not in ("<", "|") or len(raw) != int(dtype.code[1:]):
        raise Unreadable("a NumPy number that is not its bytes in little-endian order")
    return np.frombuffer(raw, np.dtype(dtype.code))[0].item()


def encoded(arguments: tuple[Any, ...], most: int = LONGEST) -> memoryview:
    """Bytes as protocol 2 writes them: a text and its encoding.

    Args:
        most: bytes that there may be; by default those of a number.

    Raises:
        Unreadable: they are more, or no text in latin1.
    """
    if len(arguments) != 2 or type(arguments[0]) is not str or arguments[1] != "latin1":
        raise Unreadable("bytes that are no text in latin1")
    if len(arguments[0]) > most:
        raise Unreadable(f"{len(arguments[0])} bytes written as a text, at most {most}")
    try:
        return memoryview(arguments[0].encode("latin1"))
    except UnicodeEncodeError:
        raise Unreadable("bytes that are no text in latin1") from None


NUMBERS: dict[str, Maker | None] = {
    "numpy.dtype": _dtype,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "_codecs.encode": encoded,
}
