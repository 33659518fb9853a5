"""From a noise level to what a discriminator is told: the VP time tau of Kim et al. 2023 (EDM-G++).

A state u = x_0 + s z in VE terms (s = sigma / alpha) is y = u / sqrt(1 + s^2) in VP terms, at the time tau in [0, 1] at
which the linear VP SDE has that much noise: log(1 + s^2) = B(tau), the integral of beta from BETA_0 to BETA_1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..process import Level
from ..symbols import Number, each

BETA_0, BETA_1 = 0.1, 20.0
_OFFSET = 0.008  # of the cosine schedule (Nichol & Dhariwal 2021, Eq. 17)


def vp_scale(sigma: Any) -> Any:
    """m = 1 / sqrt(1 + s^2), by which a state in VE terms is multiplied."""
    return 1 / np.sqrt(1 + np.square(sigma))


def input_scale(level: Level) -> Number:
    """By which a state at `level` becomes y: 1 for a variance-preserving process, whose states are y."""
    scale = vp_scale(level.sigma_ve) / level.alpha
    return 1.0 if all(abs(value - 1) < 1e-12 for value in each(scale)) else scale


def tau_of_sigma(sigma: Any) -> Any:
    """The VP time of a noise level s >= 0 in VE terms; float64, elementwise."""
    d = BETA_1 - BETA_0
    return (np.sqrt(BETA_0**2 + 2 * d * np.log1p(np.square(sigma))) - BETA_0) / d


def sigma_of_tau(tau: Any) -> Any:
    """The inverse of `tau_of_sigma`: s = sqrt(exp(B(tau)) - 1)."""
    return np.sqrt(np.expm1(np.square(tau) * (BETA_1 - BETA_0) / 2 + np.multiply(tau, BETA_0)))


def cosine_time(sigma: Any) -> Any:
    """The time of the cosine schedule with the same noise: what the published discriminators for 64x64 are told."""
    q = _OFFSET
    root = np.cos(q / (1 + q) * np.pi / 2)  # sqrt(f(0)); alpha = cos(...) / sqrt(f(0))
    return (1 + q) * (2 / np.pi) * np.arccos(root * vp_scale(sigma)) - q
