"""What the network's output means: x_0 = c_skip x + c_out F(c_in x, time).

Every prediction type is linear in the state and the raw output F, so it costs no kernel: its coefficients are folded
into the launch that follows the network. A learned variance is the second half of the output's channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .errors import check_count, check_positive
from .process import Level
from .schedules import LevelTable, sigma_vp
from .symbols import Chosen, Number, each


class Coefficients(NamedTuple):
    """x_0 = c_skip x + c_out F; the network is called on c_in x."""

    c_skip: float
    c_out: float
    c_in: float = 1.0


class Prediction:
    """One parameterisation of the denoiser.

    Attributes:
        own_time: the network is told a time of the prediction's own, whatever the process.
    """

    name: str
    own_time = False

    def coefficients(self, level: Level) -> Coefficients:
        """The linear map from (x, F) to x_0 at a level."""
        raise NotImplementedError

    def time(self, level: Level) -> float:
        """What the network receives as its time argument."""
        return level.time

    def sigma_at(self, time: float) -> float:
        """With `own_time`: the noise level, in VE terms, that the network is told by a time."""
        raise NotImplementedError


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


class Preconditioned(Prediction):
    """F is the raw network of a preconditioner (Karras et al. 2022, Table 1): x_0 = c_skip u + c_out F(c_in u, c_noise)
    for the state u = x / alpha in VE terms. Subclasses know the coefficients at a noise level in VE terms."""

    own_time = True

    def coefficients(self, level: Level) -> Coefficients:
        _refuse_pure_noise(self, level)
        c = self.at_sigma(level.sigma_ve)
        return Coefficients(c.c_skip / level.alpha, c.c_out, c.c_in / level.alpha)

    def time(self, level: Level) -> float:
        return self.c_noise(level.sigma_ve)

    def at_sigma(self, s: float) -> Coefficients:
        """The coefficients of the state u."""
        raise NotImplementedError

    def c_noise(self, s: float) -> float:
        """What the network is told."""
        raise NotImplementedError


class EDMPrediction(Preconditioned):
    """EDM's raw network: c_noise = ln(sigma) / 4.

    Args:
        sigma_data: standard deviation of the training data.
    """

    name = "edm"

    def __init__(self, sigma_data: float = 0.5):
        self.sigma_data = check_positive("sigma_data", sigma_data)

    def at_sigma(self, s: float) -> Coefficients:
        sd, norm = self.sigma_data, np.hypot(s, self.sigma_data)
        return Coefficients(sd**2 / norm**2, s * sd / norm, 1 / norm)

    def c_noise(self, s: float) -> float:
        return np.log(s) / 4

    def sigma_at(self, time: float) -> float:
        return math.exp(4 * time)


class VPPrediction(Preconditioned):
    """The raw network of EDM's VP preconditioner, a DDPM++ told (M - 1) t: F predicts the noise.

    Args:
        beta_d, beta_min: of the VP SDE, beta(t) = beta_min + beta_d t.
        M: the times of the network's training.
    """

    name = "vp_precond"

    def __init__(self, beta_d: float = 19.9, beta_min: float = 0.1, M: int = 1000):
        self.beta_d, self.beta_min = check_positive("beta_d", beta_d), check_positive("beta_min", beta_min)
        self.M = check_count("M", M, 2)

    def at_sigma(self, s: float) -> Coefficients:
        return _unit_variance(s)

    def c_noise(self, s: float) -> float:
        root = np.sqrt(self.beta_min**2 + 2 * self.beta_d * np.log1p(np.square(s)))
        return (self.M - 1) * ((root - self.beta_min) / self.beta_d)

    def sigma_at(self, time: float) -> float:
        return float(sigma_vp(time / (self.M - 1), self.beta_d, self.beta_min))


class VEPrediction(Preconditioned):
    """The raw network of EDM's VE preconditioner, an NCSN++ told ln(sigma / 2): F predicts minus the noise."""

    name = "ve_precond"

    def at_sigma(self, s: float) -> Coefficients:
        return Coefficients(1.0, s)

    def c_noise(self, s: float) -> float:
        return np.log(s / 2)

    def sigma_at(self, time: float) -> float:
        return 2 * math.exp(time)


class IDDPMPrediction(Preconditioned):
    """The raw network of EDM's iDDPM preconditioner, told the timestep of the nearest level: F predicts the noise.

    Args:
        u: its levels, decreasing to u[M] = 0; timestep j is level u[M - 1 - j].
    """

    name = "iddpm_precond"

    def __init__(self, u: Sequence[float]):
        self.levels = LevelTable(u)

    def at_sigma(self, s: float) -> Coefficients:
        return _unit_variance(s)

    def c_noise(self, s: Number) -> float:
        if isinstance(s, Chosen):
            return Chosen([self.c_noise(value) for value in s.values], s.rows)  # type: ignore[return-value]
        return float(len(self.levels) - 2 - self.levels.index(s))

    def sigma_at(self, time: float) -> float:
        return self.levels[len(self.levels) - 2 - round(time)]


def _unit_variance(s: float) -> Coefficients:
    """For a network that predicts the noise and is called on the state in VP terms."""
    return Coefficients(1.0, -s, 1 / np.hypot(s, 1.0))


_KNOWN = {p.name: p for p in (Eps, X0, V, Score, FlowVelocity, PreviousX, EDMPrediction)}


def get_prediction(prediction: str | Prediction) -> Prediction:
    """A prediction by name (eps, x0, v, score, flow, previous_x, edm) or as it is."""
    if isinstance(prediction, Prediction):
        return prediction
    if prediction not in _KNOWN:
        known = ", ".join(_KNOWN)
        raise ValueError(f"prediction must be a fastdiff.Prediction or one of {known}, got {prediction!r}")
    return _KNOWN[prediction]()
