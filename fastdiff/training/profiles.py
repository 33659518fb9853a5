"""How far back averages of weights reach: exponential and power-function profiles over training time.

The latter are those of Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models",
section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..errors import check_finite

__all__ = ["SIGMA_REL_MAX", "Exponential", "Power", "gamma_of", "sigma_rel_of"]

SIGMA_REL_MAX = 12**-0.5
"""Width of the profile with gamma = 0, the plain mean of all weights so far."""


def sigma_rel_of(gamma: float) -> float:
    """Standard deviation of the averaging profile's times, relative to the training time so far.

    Args:
        gamma: exponent of the profile, at least 0.
    """
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma_of(sigma_rel: float) -> float:
    """The profile's exponent: the inverse of `sigma_rel_of`, the largest root of a cubic.

    Args:
        sigma_rel: in (0, 12^(-1/2)]; 0.05 to 0.15 by habit.

    Raises:
        ValueError: out of that range.
    """
    value = check_finite("sigma_rel", sigma_rel)
    if not 0 < value <= SIGMA_REL_MAX * (1 + 1e-12):
        raise ValueError(f"sigma_rel must be in (0, 12^(-1/2) = {SIGMA_REL_MAX:.4f}], got {sigma_rel!r}")
    # (g + 2)^2 (g + 3) = (g + 1) / sigma_rel^2
    root = float(np.roots([1.0, 7.0, 16.0 - value**-2, 12.0 - value**-2]).real.max())
    return max(root, 0.0)


@dataclass(frozen=True)
class Exponential:
    """theta' <- d theta' + (1 - d) theta with d = `decay`, or min(decay, (1 + i) / (10 + i)) at iteration i = 0, 1, ...

    Attributes:
        decay: in [0, 1).
        warmup: whether the decay grows to its value.
    """

    decay: float
    warmup: bool = True

    def keep(self, iteration: int) -> float:
        """The old average's weight in the update that ends an iteration, counted from 0."""
        return min(self.decay, (1 + iteration) / (10 + iteration)) if self.warmup else self.decay


@dataclass(frozen=True)
class Power:
    """theta' <- b theta' + (1 - b) theta, b = (1 - 1/t)^(gamma + 1) at t = i + 1: weights tau^gamma over time tau.

    The weight of iteration k in the average at t is the integral of (gamma + 1) tau^gamma / t^(gamma + 1) over
    (k - 1, k], so that the continuous profile holds exactly.

    Attributes:
        sigma_rel: width of the profile relative to the training time so far, in (0, 12^(-1/2)].
    """

    sigma_rel: float

    @cached_property
    def gamma(self) -> float:
        return gamma_of(self.sigma_rel)

    def keep(self, iteration: int) -> float:
        """The old average's weight in the update that ends an iteration, counted from 0."""
        return (iteration / (iteration + 1)) ** (self.gamma + 1)
