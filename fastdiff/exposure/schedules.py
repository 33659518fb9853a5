"""Epsilon scaling schedules: the predicted noise of step i is divided by lambda_i (ADM-ES, EDM-ES)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import check_finite


@dataclass(frozen=True)
class LinearScale:
    """lambda_i = b + k i, where i = 0 is the *least* noisy step, so that the noisiest is scaled most (ADM-ES).

    SEDM-G's `kappa` counts the other way: there, give the list [b + kappa * i for i in range(steps)] itself.
    """

    k: float
    b: float

    def scales(self, steps: int) -> list[float]:
        """In sampling order, noisiest first."""
        return [self.b + self.k * i for i in reversed(range(steps))]


def as_scale(scale: Any) -> float | Sequence[float] | LinearScale:
    """What a sampler is given as epsilon_scale, as numbers: a `Calibration` or the path of its JSON file is opened.

    Raises:
        ValueError, OSError: a file that is no calibration, or cannot be read.
    """
    if isinstance(scale, (str, os.PathLike)):
        from .choice import load_scale

        return load_scale(scale)
    return getattr(scale, "epsilon_scale", scale)


def epsilon_scales(scale: float | Sequence[float] | LinearScale, steps: int) -> list[float]:
    """lambda of every step in sampling order. Below 1 is allowed; 0 and non-finite values are refused.

    Raises:
        ValueError: a list of another length than the steps, a 0, or a value that is not finite.
    """
    if isinstance(scale, LinearScale):
        values = scale.scales(steps)
    elif isinstance(scale, Sequence) or (getattr(scale, "ndim", None)):
        values = list(scale)  # type: ignore[arg-type]
        if len(values) != steps:
            raise ValueError(f"epsilon_scale must have one entry per step ({steps}), got {len(values)}")
    else:
        values = [scale] * steps
    values = [check_finite("epsilon_scale", value) for value in values]
    if 0.0 in values:
        raise ValueError("epsilon_scale divides the predicted noise and must not be 0 (1 leaves it as it is), got 0")
    return values
