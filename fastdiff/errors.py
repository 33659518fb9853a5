"""Argument checks with one shape of message: the argument, what was wanted, what came."""

from __future__ import annotations

import math
import sys
import warnings
from pathlib import Path
from typing import Any

import torch


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """`value` as an int of at least `minimum`."""
    if type(value) is int and value >= minimum:
        return value
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")
    return int(value)


def check_finite(name: str, value: Any) -> float:
    """`value` as a finite float."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return number


def check_positive(name: str, value: Any) -> float:
    """`value` as a finite float above 0."""
    number = check_finite(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be positive, got {value!r}")
    return number


def check_choice(name: str, value: Any, choices: Any) -> Any:
    """`value`, if it is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")
    return value


def warn(message: str) -> None:
    """A RuntimeWarning that points at the line outside fastdiff that led to it."""
    inside = tuple(str(Path(file).parent) for file in (__file__, torch.__file__ or ""))
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):  # torch's decorators too
        level, frame = level + 1, frame.f_back
    warnings.warn(message, RuntimeWarning, stacklevel=level)
