"""EDM's design space: every combination of a time sigma(t), a scaling s(t) and a method of one or two stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..denoiser import Denoiser, State
from ..errors import check_choice
from ..process import VP, Level, Levels
from ..symbols import Number, each
from .euler import churn
from .registry import register


@dataclass(frozen=True)
class Coordinates:
    """sigma(t) and s(t) of Karras et al. 2022, Table 1: the ODE is solved for y = s(t) u in the time t.

    Attributes:
        time: sigma = t ("linear"), sqrt(t) ("ve") or sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1) ("vp").
        scaling: s = 1 ("none") or 1 / sqrt(1 + sigma^2) ("vp").
    """

    time: str
    scaling: str
    beta_d: float
    beta_min: float

    def __post_init__(self) -> None:
        check_choice("time", self.time, ("linear", "ve", "vp"))
        check_choice("scaling", self.scaling, ("none", "vp"))
        if self.time == "vp" and not max(self.beta_min, self.beta_min + self.beta_d) > 0:
            raise ValueError(f"betas must be of a sigma(t) that grows at t = 0 or 1, got {self.betas}")

    @property
    def betas(self) -> tuple[float, float]:
        return self.beta_d, self.beta_min

    def s(self, sigma: Number) -> Number:
        """The scaling at a level."""
        return 1 / np.sqrt(1 + sigma**2) if self.scaling == "vp" else 1.0

    def t(self, sigma: Number) -> Number:
        """The time of a level above 0; that of 0 is 0."""
        if self.time == "vp":
            depth = np.log1p(sigma**2)
            square = self.beta_min**2 + 2 * self.beta_d * depth
            if min(each(square)) < 0:
                raise ValueError(f"betas must be of a sigma(t) that reaches every level, got {self.betas} for {sigma}")
            root = np.sqrt(square)
            positive = self.beta_min > 0  # the same root in the form that does not cancel
            return 2 * depth / (root + self.beta_min) if positive else (root - self.beta_min) / self.beta_d
        return sigma**2 if self.time == "ve" else sigma

    def sigma(self, t: Number) -> Number:
        """The level of a time."""
        if self.time == "vp":
            return np.sqrt(np.expm1(0.5 * self.beta_d * t**2 + self.beta_min * t))
        return np.sqrt(t) if self.time == "ve" else t

    def rate(self, sigma: Number) -> Number:
        """sigma'(t) at a level."""
        if self.time == "vp":
            return 0.5 * (self.beta_min + self.beta_d * self.t(sigma)) * (sigma + 1 / sigma)
        return 1 / (2 * sigma) if self.time == "ve" else 1.0

    def slope(self, y: State, x0: State, sigma: Number) -> State:
        """dy/dt = (sigma' s / sigma) (s y - x_0): Eq. 4 with the score (x_0 - u) / sigma^2, for both scalings."""
        s = self.s(sigma)
        return (self.rate(sigma) * s / sigma) * (s * y - x0)

    def stage(self, hat: Level, following: Level, alpha: Number, levels: Levels) -> tuple[Level, Number]:
        """The level at the fraction alpha of the step, and alpha: another one where a table has no level there."""
        if alpha == 1:
            return following, 1.0
        t = self.t(hat.sigma_ve)
        h = self.t(following.sigma_ve) - t
        if 0 in each(h):  # a grid may repeat a level
            return following, 1.0
        between = levels.between(self.sigma(t + alpha * h))
        if isinstance(levels.process, VP):
            alpha = (self.t(between.sigma_ve) - t) / h
        return (following, 1.0) if 0 in each(alpha) else (between, alpha)


@register(
    name="edm_design_space",
    order=2,
    evaluations="2 (order 1: 1)",
    stochastic=False,
    source="Karras et al. 2022 (EDM), Table 1 and Algorithm 1; its ablation sampler",
)
def design_space(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[..., State],
    *,
    order: int = 2,
    alpha: float = 1.0,
    time: str = "linear",
    scaling: str = "none",
    betas: Sequence[float] = (19.9, 0.1),
    mixed_epsilon: bool = False,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
) -> Iterator[State]:
    """Karras et al. 2022, Algorithm 1 with churn, for y = s(t) u in the time t (`Coordinates`).

    The slope is (1 - 1/(2 alpha)) d + 1/(2 alpha) d', d' at the fraction alpha of the step: 1 is Heun, 1/2 the
    midpoint method, 2/3 Ralston's; order 1 is Euler's method, as is the step to 0. The grid is the sampler's.

    Args:
        betas: (beta_d, beta_min) of time "vp"; `schedules.vp_betas` gives those of a sigma_min and a sigma_max.
        mixed_epsilon: what epsilon scaling divides is y - x_0, as in EDM-ES's published code, and not u - x_0.
    """
    check_choice("order", order, (1, 2))
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must be above 0 and at most 1, got {alpha}")
    if np.shape(betas) != (2,):
        raise ValueError(f"betas must be two numbers (beta_d, beta_min), got {betas!r}")
    to = Coordinates(time, scaling, *betas)
    for level, following in pairwise(levels):
        x_hat, hat = churn(denoise, x, level, noise, S_churn, S_min, S_max, S_noise)
        x0 = denoise(x_hat, hat)
        u, sigma, end = x_hat / hat.alpha, hat.sigma_ve, following.sigma_ve
        y = to.s(sigma) * u
        if mixed_epsilon:
            x0 = x0 + (1 - 1 / denoise.epsilon_scale[denoise.place]) * (y - u)
        h = (to.t(end) if end > 0 else 0.0) - to.t(sigma)
        d = to.slope(y, x0, sigma)
        if order == 2 and end > 0:
            between, a = to.stage(hat, following, alpha, levels)
            v = (y + (a * h) * d) / to.s(between.sigma_ve)
            d_prime = to.slope(to.s(between.sigma_ve) * v, denoise(between.alpha * v, between), between.sigma_ve)
            d = (1 - 1 / (2 * a)) * d + (1 / (2 * a)) * d_prime
        x = (following.alpha / to.s(end)) * (y + h * d)
        yield x
