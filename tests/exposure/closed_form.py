"""A mixture of Gaussians on the line: its exact denoiser and biased ones, its quantiles, and scores against it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

import fastdiff

MEANS = torch.tensor([-1.0, 0.2, 1.2], dtype=torch.float64)
STDS = torch.tensor([0.3, 0.5, 0.4], dtype=torch.float64)
WEIGHTS = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
MEAN = float((WEIGHTS * MEANS).sum())
STD = math.sqrt(float((WEIGHTS * (STDS**2 + MEANS**2)).sum()) - MEAN**2)
SIGMA_MAX = 80.0


@dataclass
class Denoiser:
    """D(x; sigma), exact where `bias` is 1 and `wrong` 0.

    bias: the predicted noise is this much too large at every level, which lambda = bias undoes exactly.
    wrong: relative error of the noise level the denoiser believes in, which no lambda undoes exactly.
    """

    bias: float = 1.0
    wrong: float = 0.0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        u, s = x.double(), sigma.double()[:, None] * (1 + self.wrong)
        v = STDS**2 + s**2
        weight = (WEIGHTS.log() - 0.5 * v.log() - 0.5 * (u - MEANS) ** 2 / v).softmax(1)
        x0 = (weight * (MEANS + STDS**2 / v * (u - MEANS))).sum(1, keepdim=True)
        return (u - self.bias * (u - x0)).to(x.dtype)


def runge_kutta(denoise, x, levels, noise):
    """The classical fourth-order method in sigma: 12 steps err so little here that lambda = 1 is right to .001."""
    for level, following in pairwise(levels):
        s, t = level.sigma, following.sigma
        h, k1 = t - s, (x - denoise(x, level)) / s
        if t == 0:
            x = x + h * k1
        else:
            between = levels.at_sigma((s + t) / 2)
            y = x + (h / 2) * k1
            k2 = (y - denoise(y, between)) / between.sigma
            y = x + (h / 2) * k2
            k3 = (y - denoise(y, between)) / between.sigma
            y = x + h * k3
            k4 = (y - denoise(y, following)) / t
            x = x + (h / 6) * (k1 + 2 * k2 + 2 * k3 + k4)
        yield x


def sampler(model, solver=runge_kutta, steps: int = 12, **options) -> fastdiff.Sampler:
    """A sampler of the mixture in float64."""
    process = fastdiff.EDM(0.02, SIGMA_MAX)
    return fastdiff.Sampler(
        model, process=process, solver=solver, steps=steps, shape=(1,), dtype=torch.float64, **options
    )


def data(count: int, seed: int = 0) -> Tensor:
    """[count, 1] float64."""
    generator = torch.Generator().manual_seed(seed)
    k = torch.multinomial(WEIGHTS, count, True, generator=generator)
    return (MEANS[k] + STDS[k] * torch.randn(count, generator=generator, dtype=torch.float64))[:, None]


@dataclass
class Scores:
    frechet: float
    precision: float = 0.5
    recall: float = 0.25


def frechet(samples: Tensor) -> Scores:
    """Frechet distance of raw samples to the mixture, whose moments are known."""
    x = samples.double().flatten()
    return Scores(float((x.mean() - MEAN) ** 2 + (x.std() - STD) ** 2))


def wasserstein(run: fastdiff.Sampler, count: int = 2000) -> float:
    """The true W2 between what a deterministic sampler draws and the mixture, without sampling error.

    The flow on the line keeps order, so that quantiles of the latent become quantiles of the samples.
    """
    level = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    latent = math.sqrt(2.0) * torch.erfinv(2 * level - 1)
    drawn = run((count, 1), seeds=0, x_init=SIGMA_MAX * latent[:, None]).flatten().sort().values
    return float((drawn - _quantiles(level)).square().mean().sqrt())


def _quantiles(level: Tensor) -> Tensor:
    low, high = torch.full_like(level, -5.0), torch.full_like(level, 5.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = 0.5 * (1 + torch.erf((middle[:, None] - MEANS) / STDS / math.sqrt(2.0))) @ WEIGHTS < level
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
