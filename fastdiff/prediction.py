"""What the network's output means: x_0 = c_skip x + c_out F(c_in x, time).

Every prediction type is linear in the state and the raw output F, so it costs no kernel: its coefficients are folded
into the launch that follows the network. A learned variance is the second half of the output's channels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .errors import check_positive
from .process import Level
from .symbols import each


class Coefficients(NamedTuple):
    """x_0 = c_skip x + c_out F; the network is called on c_in x."""

    c_skip: float
    c_out: float
    c_in: float = 1.0


class Prediction:
    """One parameterisation of the denoiser."""

    name: str

    def coefficients(self, level: Level) -> Coefficients:
        """The linear map from (x, F) to x_0 at a level."""
        raise NotImplementedError

    def time(self, level: Level) -> float:
        """What the network receives as its time argument."""
        return level.time


def _refuse_pure_noise(prediction: Prediction, level: Level) -> None:
    """At alpha = 0 (a zero terminal SNR) neither noise nor score says anything of x_0, and VE terms are infinite."""
    if 0 in each(level.alpha):
        raise ValueError(f"prediction={prediction.name!r} has no x_0 at alpha = 0 (zero terminal SNR); use 'v' or 'x0'")


class Eps(Prediction):
    """F predicts the noise z: x_0 = (x - sigma F) / alpha (Ho et al. 2020)."""

    name = "eps"

    def coefficients(self, level: Level) -> Coefficients:
        _refuse_pure_noise(self, level)
        return Coefficients(1 / level.alpha, -level.sigma / level.alpha)


class X0(Prediction):
    """F predicts x_0 itself: EDM's denoiser D(x; sigma), guided-diffusion's START_X."""

    name = "x0"

    def coefficients(self, level: Level) -> Coefficients:
        return Coefficients(0.0, 1.0)


class V(Prediction):
    """F predicts v = alpha z - sigma x_0, for alpha^2 + sigma^2 = 1 (Salimans & Ho 2022): x_0 = alpha x - sigma v."""

    name = "v"

    def coefficients(self, level: Level) -> Coefficients:
        if max(map(abs, each(level.alpha**2 + level.sigma**2 - 1))) > 1e-6:
            raise ValueError('prediction="v" is defined for alpha^2 + sigma^2 = 1, so process must be a VP')
        return Coefficients(level.alpha, -level.sigma)


class Score(Prediction):
    """F predicts grad log p(x) = -z / sigma (Song et al. 2021): x_0 = (x + sigma^2 F) / alpha."""

    name = "score"

    def coefficients(self, level: Level) -> Coefficients:
        _refuse_pure_noise(self, level)
        return Coefficients(1 / level.alpha, level.sigma**2 / level.alpha)


class FlowVelocity(Prediction):
    """F predicts z - x_0, the velocity of x_t = (1 - t) x_0 + t z (Lipman et al. 2023, Eq. 23): x_0 = x - t F."""

    name = "flow"

    def coefficients(self, level: Level) -> Coefficients:
        if max(map(abs, each(level.alpha + level.sigma - 1))) > 1e-6:
            raise ValueError('prediction="flow" is defined for alpha + sigma = 1, so process must be "flow"')
        return Coefficients(1.0, -level.sigma)


class PreviousX(Prediction):
    """F predicts the posterior mean of the previous state (guided-diffusion's PREVIOUS_X); `ddpm` uses F as the mean.

    x_0 = (F - c2 x) / c1 needs the next level of the run, so the denoiser asks `coefficients_between`.
    """

    name = "previous_x"

    def coefficients(self, level: Level) -> Coefficients:
        raise ValueError(
            'prediction="previous_x" is defined between two levels of a chain; use solver "ddpm" or "ddim"'
        )

    def coefficients_between(self, level: Level, following: Level) -> Coefficients:
        """Ho et al. 2020, Eq. 7 solved for x_0."""
        if abs(level.alpha**2 + level.sigma**2 - 1) > 1e-6:
            raise ValueError('prediction="previous_x" is the mean of a discrete chain, so process must be a VP')
        abar, prev = level.alpha**2, following.alpha**2
        beta = 1 - abar / prev
        c1 = beta * math.sqrt(prev) / (1 - abar)
        c2 = (1 - prev) * math.sqrt(1 - beta) / (1 - abar)
        return Coefficients(-c2 / c1, 1 / c1)


class EDMPrediction(Prediction):
    """EDM's preconditioned raw network F (Karras et al. 2022, Table 1), told c_noise = ln(sigma) / 4.

    Args:
        sigma_data: standard deviation of the training data.
    """

    name = "edm"

    def __init__(self, sigma_data: float = 0.5):
        self.sigma_data = check_positive("sigma_data", sigma_data)

    def coefficients(self, level: Level) -> Coefficients:
        _refuse_pure_noise(self, level)
        s, sd = level.sigma_ve, self.sigma_data
        norm = np.hypot(s, sd)
        # The network lives in VE terms: u = x / alpha.
        return Coefficients(sd**2 / norm**2 / level.alpha, s * sd / norm, 1 / norm / level.alpha)

    def time(self, level: Level) -> float:
        return np.log(level.sigma_ve) / 4


_KNOWN = {p.name: p for p in (Eps, X0, V, Score, FlowVelocity, PreviousX, EDMPrediction)}


def get_prediction(prediction: str | Prediction) -> Prediction:
    """A prediction by name (eps, x0, v, score, flow, previous_x, edm) or as it is."""
    if isinstance(prediction, Prediction):
        return prediction
    if prediction not in _KNOWN:
        known = ", ".join(_KNOWN)
        raise ValueError(f"prediction must be a fastdiff.Prediction or one of {known}, got {prediction!r}")
    return _KNOWN[prediction]()
