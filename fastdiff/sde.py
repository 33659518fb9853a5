"""Diffusion in continuous time: dx = f(t) x dt + g(t) dw, t from 0 (data) to 1 (noise), as in score-SDE.

Song et al. 2021 (sections 3.4, appendix B and C). Every f is linear in x, so x_t = alpha(t) x_0 + sigma(t) z with z
standard normal. Functions of t take a tensor [B], compute in float64 and return float64 [B] on its device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .errors import check_choice, check_count, check_positive

__all__ = ["SDE", "SDES", "VESDE", "VPSDE", "get_sde", "score_fn", "subVPSDE"]


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """[B] as [B, 1, ...] of `like`'s rank."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


class SDE:
    """One diffusion; subclasses: VPSDE, subVPSDE, VESDE.

    Attributes:
        name: "vp", "subvp" or "ve".
        T: the time of the prior, 1.
        eps: the time at which sampling stops: 1e-3, VE 1e-5.
        training_eps: the smallest time of training and of likelihoods, 1e-5.
        N: steps of the discretised chain.
        prior_std: standard deviation of the state at T as sampling and likelihoods take it.
    """

    name: str
    T = 1.0
    eps = 1e-3
    training_eps = 1e-5
    prior_std = 1.0

    def __init__(self, N: int = 1000):
        self.N = check_count("N", N, 2)
        self._on_device: dict[tuple[str, torch.device], Tensor] = {}

    def alpha(self, t: Tensor) -> Tensor:
        """The factor of x_0 in x_t."""
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        """The standard deviation of the noise in x_t."""
        raise NotImplementedError

    def time(self, ratio: Tensor) -> Tensor:
        """The t at which sigma / alpha is `ratio`, a positive number."""
        raise NotImplementedError

    def drift(self, t: Tensor) -> Tensor:
        """f: the drift of x is f(t) x."""
        raise NotImplementedError

    def diffusion(self, t: Tensor) -> Tensor:
        """g."""
        raise NotImplementedError

    def discretize(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(F, G) of one step of the chain of N: x_(i+1) = (1 + F) x_i + G z; here Euler's with dt = 1 / N."""
        return self.drift(t) / self.N, self.diffusion(t) / math.sqrt(self.N)

    def reverse(
        self, x: Tensor, score: Tensor, t: Tensor, *, probability_flow: bool = False, discrete: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The drift and the diffusion of the reverse process (Song et al. 2021, Eq. 6, and Eq. 13 its ODE).

        Args:
            x, score: [B, ...], the state and its score at t [B].
            probability_flow: of the ODE: half the score, no diffusion.
            discrete: of the chain of N, per step: (F x - G^2 score, G) of `discretize`, so x_i = x_(i+1) - drift + G z.

        Returns:
            (drift as x, at least float32; diffusion float64 [B]).
        """
        factor, diffusion = self.discretize(t) if discrete else (self.drift(t), self.diffusion(t))
        kept = diffusion.square() * (0.5 if probability_flow else 1.0)
        dtype = torch.promote_types(x.dtype, torch.float32)
        drift = per_sample(factor, x).to(dtype) * x - per_sample(kept, x).to(dtype) * score
        return drift, torch.zeros_like(diffusion) if probability_flow else diffusion

    def step(self, t: Tensor) -> Tensor:
        """The index of t in the tables of the chain of N: int64 [B], floor(t (N - 1))."""
        return (t.double() * (self.N - 1)).long()

    def label(self, t: Tensor, continuous: bool = True) -> Tensor:
        """What score-SDE's networks are told of t.

        Args:
            continuous: whether the network was trained at all times, or on the chain of N.

        Returns:
            VP, sub-VP: 999 t; VP on the chain: t (N - 1), both float64. VE: sigma(t), float64; on the chain: int64, the
            index counted from the noisiest level.
        """
        raise NotImplementedError

    def score_factor(self, t: Tensor, continuous: bool = True) -> Tensor:
        """The score of x_t over the output of score-SDE's networks: -1 / sigma(t) (VP, sub-VP: they predict the noise),
        1 (VE). On VP's chain sigma is that of the step below t."""
        raise NotImplementedError

    def ancestral_noise(self, t: Tensor) -> Tensor:
        """The noise of the chain's ancestral step over the G of `discretize` (Song et al. 2021, appendix F)."""
        raise ValueError(
            f"sde must be 'vp' or 've' for score_sde's ancestral sampling, which has no rule for {self.name!r}"
        )

    def moments(self, t: Tensor, continuous: bool = True) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) of x_t, float64 [B]; if not `continuous`, those of the chain's step that `label` tells of."""
        return self.alpha(t), self.sigma(t)

    def with_chain(self, N: int) -> SDE:
        """The same SDE, with a chain of N steps."""
        if N == self.N:
            return self
        tables = [k for k in vars(self) if isinstance(getattr(type(self), k, None), cached_property)]
        other = object.__new__(type(self))
        kept = {k: v for k, v in vars(self).items() if k not in tables}
        vars(other).update(kept, N=check_count("N", N, 2), _on_device={})
        return other

    def prior_logp(self, z: Tensor) -> Tensor:
        """ln of the prior's density at z [B, ...], in nats: float64 [B]."""
        flat = z.double().flatten(1)
        variance = self.prior_std**2
        return -0.5 * (flat.shape[1] * math.log(2 * math.pi * variance) + flat.square().sum(1) / variance)

    def table(self, name: str, device: torch.device) -> Tensor:
        """A table of the chain by its attribute's name, kept on each device that asks for it."""
        key = (name, device)
        if key not in self._on_device:
            self._on_device[key] = getattr(self, name).to(device)
        return self._on_device[key]


class VPSDE(SDE):
    """Variance preserving: f = -beta(t) / 2, g = sqrt(beta(t)), beta linear in t (Song et al. 2021, Eq. 11 and 32-33).

    Args:
        beta_min, beta_max: beta at t = 0 and t = 1; positive, increasing.
        N: steps of the discretised chain (DDPM's), whose betas are beta_min / N to beta_max / N.
    """

    name = "vp"

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, N: int = 1000):
        super().__init__(N)
        self.beta_min, self.beta_max = check_positive("beta_min", beta_min), check_positive("beta_max", beta_max)
        if self.beta_min >= self.beta_max:
            raise ValueError(f"beta_min must be below beta_max={beta_max}, got {beta_min}")

    def beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t.double() * (self.beta_max - self.beta_min)

    def log_alpha(self, t: Tensor) -> Tensor:
        """ln alpha(t) = -(integral of beta from 0 to t) / 2."""
        t = t.double()
        return -t.square() * (self.beta_max - self.beta_min) / 4 - t * self.beta_min / 2

    def alpha(self, t: Tensor) -> Tensor:
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return (-(2 * self.log_alpha(t)).expm1()).sqrt()

    def time(self, ratio: Tensor) -> Tensor:
        return self._time_of(0.5 * ratio.double().square().log1p())

    def _time_of(self, depth: Tensor) -> Tensor:
        """The t at which -ln alpha(t) is `depth`; without the cancellation of the usual formula of a quadratic."""
        half = self.beta_min / 2
        return 2 * depth / (half + (half**2 + (self.beta_max - self.beta_min) * depth).sqrt())

    def drift(self, t: Tensor) -> Tensor:
        return -self.beta(t) / 2

    def diffusion(self, t: Tensor) -> Tensor:
        return self.beta(t).sqrt()

    def discretize(self, t: Tensor) -> tuple[Tensor, Tensor]:
        beta = self.table("discrete_betas", t.device)[self.step(t)]
        return (1 - beta).sqrt() - 1, beta.sqrt()

    def ancestral_noise(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float64)

    def label(self, t: Tensor, continuous: bool = True) -> Tensor:
        return t.double() * (999 if continuous else self.N - 1)

    def score_factor(self, t: Tensor, continuous: bool = True) -> Tensor:
        return -1 / self.moments(t, continuous)[1]

    def moments(self, t: Tensor, continuous: bool = True) -> tuple[Tensor, Tensor]:
        if continuous:
            return self.alpha(t), self.sigma(t)
        abar = self.table("alphas_cumprod", t.device)[self.step(t)]
        return abar.sqrt(), (1 - abar).sqrt()

    @cached_property
    def discrete_betas(self) -> Tensor:
        """float64 [N], cleanest first."""
        if self.beta_max > self.N:
            raise ValueError(
                f"N, the steps of a chain, must be at least beta_max={self.beta_max} (beta_max / N is a variance), "
                f"got {self.N}"
            )
        return torch.linspace(self.beta_min / self.N, self.beta_max / self.N, self.N, dtype=torch.float64)

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """alpha_bar of the chain: float64 [N], cleanest first."""
        return (1 - self.discrete_betas).cumprod(0)


class subVPSDE(VPSDE):
    """VP's mean with a smaller variance: sigma = 1 - alpha^2 (Song et al. 2021, Eq. 13 and 35). It has no chain of its
    own: networks are told 999 t whether continuous or not."""

    name = "subvp"

    def sigma(self, t: Tensor) -> Tensor:
        return -(2 * self.log_alpha(t)).expm1()

    def time(self, ratio: Tensor) -> Tensor:
        return self._time_of((ratio.double() / 2).asinh())  # r = 1 / alpha - alpha

    def diffusion(self, t: Tensor) -> Tensor:
        return (self.beta(t) * -(4 * self.log_alpha(t)).expm1()).sqrt()

    def discretize(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return SDE.discretize(self, t)

    def ancestral_noise(self, t: Tensor) -> Tensor:
        return SDE.ancestral_noise(self, t)

    def label(self, t: Tensor, continuous: bool = True) -> Tensor:
        return super().label(t)

    def moments(self, t: Tensor, continuous: bool = True) -> tuple[Tensor, Tensor]:
        return super().moments(t)


class VESDE(SDE):
    """Variance exploding: f = 0, sigma = sigma_min (sigma_max / sigma_min)^t (Song et al. 2021, Eq. 9 and 30-31).

    Args:
        sigma_min, sigma_max: sigma at t = 0 and t = 1; positive, increasing.
        N: steps of the discretised chain (SMLD's), geometric from sigma_min to sigma_max.
    """

    name = "ve"
    eps = 1e-5

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0, N: int = 1000):
        super().__init__(N)
        self.sigma_min, self.sigma_max = check_positive("sigma_min", sigma_min), check_positive("sigma_max", sigma_max)
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min must be below sigma_max={sigma_max}, got {sigma_min}")
        self.prior_std = self.sigma_max
        self._log_ratio = math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (t.double() * self._log_ratio).exp()

    def time(self, ratio: Tensor) -> Tensor:
        return (ratio.double() / self.sigma_min).log() / self._log_ratio

    def drift(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t, dtype=torch.float64)

    def diffusion(self, t: Tensor) -> Tensor:
        return self.sigma(t) * math.sqrt(2 * self._log_ratio)

    def discretize(self, t: Tensor) -> tuple[Tensor, Tensor]:
        here, before = self._neighbours(t)
        return self.drift(t), (here.square() - before.square()).sqrt()

    def ancestral_noise(self, t: Tensor) -> Tensor:
        here, before = self._neighbours(t)
        return before / here

    def _neighbours(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """sigma of the chain at t, and of the step below it, 0 below the last."""
        step, sigmas = self.step(t), self.table("discrete_sigmas", t.device)
        return sigmas[step], torch.where(step > 0, sigmas[(step - 1).clamp(min=0)], 0.0)

    def label(self, t: Tensor, continuous: bool = True) -> Tensor:
        return self.sigma(t) if continuous else ((self.T - t.double()) * (self.N - 1)).round().long()

    def score_factor(self, t: Tensor, continuous: bool = True) -> Tensor:
        return torch.ones_like(t, dtype=torch.float64)

    def moments(self, t: Tensor, continuous: bool = True) -> tuple[Tensor, Tensor]:
        if continuous:
            return self.alpha(t), self.sigma(t)
        return self.alpha(t), self.table("discrete_sigmas", t.device).flip(0)[self.label(t, continuous)]

    @cached_property
    def discrete_sigmas(self) -> Tensor:
        """float64 [N], cleanest first (SMLD's labels count from the other end)."""
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return torch.linspace(low, high, self.N, dtype=torch.float64).exp()


SDES: dict[str, Callable[..., SDE]] = {"vp": VPSDE, "subvp": subVPSDE, "ve": VESDE}


def get_sde(sde: str | SDE, **options: Any) -> SDE:
    """An SDE by name ("vp", "subvp", "ve") with options, or as it is."""
    return sde if isinstance(sde, SDE) else SDES[check_choice("sde", sde, SDES)](**options)


def score_fn(network: Callable[..., Tensor], sde: SDE, continuous: bool = True) -> Callable[..., Tensor]:
    """The score of a network with score-SDE's conventions (see `SDE.label` and `SDE.score_factor`).

    Args:
        network: called as network(x, label, **cond); the label is in x's dtype, at least float32, or int64.
        continuous: whether it was trained at all times, or on the chain of N.

    Returns:
        score(x, t, **cond): x [B, ...], t [B] in (0, 1] -> as x, at least float32.
    """

    def score(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        precision = torch.promote_types(x.dtype, torch.float32)
        label = sde.label(t, continuous)
        output = network(x, label.to(precision) if label.is_floating_point() else label, **cond)
        return output.to(precision) * per_sample(sde.score_factor(t, continuous), x).to(precision)

    return score
