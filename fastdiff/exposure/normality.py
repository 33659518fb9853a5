"""Whether a network's prediction error is Gaussian, dimension by dimension: the Shapiro-Wilk test."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEVEL", "MOST_SAMPLES", "Normality", "require_scipy", "shapiro_wilk"]

LEVEL = 0.05
"""A dimension passes when its p value is at least this; of truly Gaussian dimensions 95 % do."""

MOST_SAMPLES = 1000
"""Errors kept per level and dimension. A larger sample rejects ever smaller departures; W says how large they are."""


@dataclass(frozen=True)
class Normality:
    """The test on several dimensions.

    Attributes:
        statistic: mean of W over the dimensions; 1 is a perfect normal sample. NaN without a testable dimension.
        passed: fraction of the dimensions with p of at least `LEVEL`; about 0.95 if the errors are Gaussian.
        dimensions: how many were tested; one whose values are all equal is not.
    """

    statistic: float
    passed: float
    dimensions: int


def require_scipy() -> None:
    """Raises ModuleNotFoundError, saying what to install, where SciPy is missing."""
    try:
        import scipy  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the Shapiro-Wilk test needs SciPy: pip install 'fastdiff[eval]', or probe=0 leaves it out", name="scipy"
        ) from None


def shapiro_wilk(errors: NDArray[np.float64]) -> Normality:
    """Shapiro and Wilk's test (1965) of every column, as SciPy computes it (Royston 1995).

    The epsilon-scaling paper assumes x_0_hat = x_0 + e_t z with Gaussian z; this is the check of that assumption.

    Args:
        errors: [N, dimensions], N up to 5000; with fewer than 3 nothing is tested.
    """
    require_scipy()
    from scipy.stats import shapiro

    found = []
    if len(errors) >= 3:
        for column in errors.T:
            if np.ptp(column) > 1e-12 * np.abs(column).max():
                found.append(shapiro(column))
    if not found:
        return Normality(math.nan, math.nan, 0)
    passed = np.mean([p >= LEVEL for _, p in found])
    return Normality(float(np.mean([w for w, _ in found])), float(passed), len(found))
