"""The noise levels of noise-conditional score networks (Song & Ermon 2019, 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .errors import check_count, check_positive
from .process import CLEAN, Array, Level, Levels, Process

__all__ = ["NCSN"]


class NCSN(Process):
    """A list of noise levels, alpha = 1; the model is told the number of a level, 0 the noisiest, as int64.

    Its network predicts the score (prediction "score"). Runs visit all levels, or `steps` of them, evenly spaced, or
    those with the numbers `timesteps`.

    Args:
        sigmas: at least two, positive and strictly decreasing.
    """

    integer_time = True
    explicit = "timesteps"

    def __init__(self, sigmas: Sequence[float] | Array):
        self.sigmas: Array = np.asarray(sigmas, dtype=np.float64)
        usable = self.sigmas.ndim == 1 and len(self.sigmas) > 1 and np.isfinite(self.sigmas).all()
        if not usable or self.sigmas[-1] <= 0 or (np.diff(self.sigmas) >= 0).any():
            raise ValueError(f"sigmas must be two or more positive, strictly decreasing numbers, got {sigmas!r}")

    @classmethod
    def geometric(cls, levels: int = 10, sigma_max: float = 1.0, sigma_min: float = 0.01) -> NCSN:
        """Levels of one ratio: the defaults are the first version's, NCSNv2's for CIFAR-10 are (232, 50, 0.01)."""
        first, last = math.log(check_positive("sigma_max", sigma_max)), math.log(check_positive("sigma_min", sigma_min))
        return cls(np.exp(np.linspace(first, last, check_count("levels", levels, 2))))

    def level(self, label: int) -> Level:
        """The level with a number."""
        return Level(1.0, float(self.sigmas[label]), float(label))

    def levels(self, steps=None, schedule=None, **options):  # type: ignore[no-untyped-def]
        if schedule is not None or options:
            name, value = ("schedule", schedule) if schedule is not None else next(iter(options.items()))
            raise ValueError(f"{name} must be left out for process NCSN, whose sigmas are given, got {value!r}")
        known = len(self.sigmas)
        n = check_count("steps", known if steps is None else steps)
        if n > known:
            raise ValueError(f"steps must be at most the {known} levels of process NCSN, got {n}")
        return self.levels_at(np.round(np.linspace(0, known - 1, n)).astype(int))

    def levels_at(self, values):  # type: ignore[no-untyped-def]
        labels = [check_count("timesteps", value, 0) for value in values]
        if not labels or labels[-1] >= len(self.sigmas) or any(b <= a for a, b in pairwise(labels)):
            known = len(self.sigmas)
            raise ValueError(f"timesteps must be strictly increasing labels below {known}, got {list(values)!r}")
        return Levels([*map(self.level, labels), CLEAN], self)

    def level_at_sigma(self, sigma_ve: float) -> Level:
        return self.level(int(np.abs(self.sigmas - sigma_ve).argmin()))

    def prior_std(self, first: Level) -> float:
        return first.sigma
