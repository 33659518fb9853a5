"""Ancestral sampling of a discrete chain: DDPM with fixed or learned variances."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..denoiser import Denoiser, State
from ..errors import check_choice
from ..prediction import PreviousX
from ..process import GaussianTables, Levels
from .registry import register

VARIANCES = ("fixed_small", "fixed_large", "learned", "learned_range")


def log_variance(tables: GaussianTables, variance: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(a, b), each [T'], with log variance = a v + b for the network's variance half v (a = 0: fixed).

    fixed_small is the posterior variance, fixed_large is beta (Ho et al. 2020, Sec. 3.2); learned is v itself and
    learned_range interpolates between the two in log space (Nichol & Dhariwal 2021, Eq. 15, v from -1 to 1).
    """
    check_choice("variance", variance, VARIANCES)
    small, zero = tables.posterior_log_variance_clipped, np.zeros(len(tables.betas))
    if variance == "fixed_small":
        return zero, small
    if variance == "fixed_large":
        return zero, np.log(np.append(math.exp(small[0]), tables.betas[1:]))
    if variance == "learned":
        return zero + 1.0, zero
    large = np.log(tables.betas)
    return (large - small) / 2, (large + small) / 2


def _check(denoise: Denoiser, levels: Levels) -> None:
    """Refuse what has no posterior of Ho et al. 2020, Eq. 7."""
    preserving = all(abs(level.alpha**2 + level.sigma**2 - 1) <= 1e-6 for level in levels)
    if not preserving or not (np.diff(levels.alphas_cumprod) < 0).all() or not levels.alphas_cumprod[0] < 1:
        raise ValueError(
            "process must be variance preserving (alpha^2 + sigma^2 = 1, alpha below 1 and falling) for solver 'ddpm'; "
            "use VP"
        )
    if isinstance(denoise.prediction, PreviousX) and denoise.scaled:
        raise ValueError(
            "epsilon_scale must be 1 for prediction 'previous_x' with solver 'ddpm', whose mean is then the network's "
            "output itself (epsilon_scale_mode='eps' scales predictions of eps only)"
        )


@register(order=1, evaluations="1", stochastic=True, source="Ho et al. 2020 (DDPM), Algorithm 2")
def ddpm(
    denoise: Denoiser, x: State, levels: Levels, noise: Callable[..., State], *, variance: str = "fixed_small"
) -> Iterator[State]:
    """Ho et al. 2020, Algorithm 2: x_(i-1) = c1 x_0 + c2 x_i + std z, c1 and c2 of Eq. 7; no noise in the last step."""
    _check(denoise, levels)
    q = GaussianTables(levels.alphas_cumprod)
    a, b = log_variance(q, variance)
    for i, (level, following) in zip(reversed(range(levels.steps)), pairwise(levels)):
        evaluation = denoise.evaluate(x, level)
        mean = q.posterior_mean_coef1[i] * evaluation.x0 + q.posterior_mean_coef2[i] * x
        if isinstance(denoise.prediction, PreviousX):
            moved = evaluation.moved
            mean = evaluation.output if moved is None else evaluation.output + q.posterior_mean_coef1[i] * moved
        for weight, gradient in evaluation.pushes:  # Dhariwal & Nichol 2021, Algorithm 1
            if variance.startswith("learned"):
                mean = mean + denoise.learned(evaluation, a[i], b[i], weight * gradient)
            else:
                mean = (
                    mean
                    + weight * (q.posterior_variance[i] if variance == "fixed_small" else math.exp(b[i])) * gradient
                )
        if i == 0:
            x = mean
        elif variance.startswith("learned"):
            x = mean + denoise.learned(evaluation, a[i] / 2, b[i] / 2, noise(level, following))
        else:
            x = mean + math.exp(b[i] / 2) * noise(level, following)
        yield x
