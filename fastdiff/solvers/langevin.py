"""Langevin dynamics: the plain one, with a Metropolis test for energy models, and the steps of correctors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoiser import Denoiser, State
from ..engine import flat
from ..errors import check_positive
from ..process import Level, Levels
from .registry import register


def score(denoise: Denoiser, x: State, level: Level) -> State:
    """grad log p(x) = (alpha E[x_0 | x] - x) / sigma^2 (Robbins, Miyasawa, Tweedie)."""
    return (level.alpha * denoise(x, level) - x) / level.sigma**2


def snr_step(squares: Tensor, told: Tensor) -> Tensor:
    """(e, sqrt(2 e)) per sample, e = 2 a (r |z| / |s|)^2 (Song et al. 2021, Algorithms 4 and 5); 0 where the score is.

    Args:
        squares: |s|^2 and |z|^2, [2, B]; told: the signal-to-noise ratio r and the process's a.
    """
    return _sizes(squares[0], squares[1], told)


def snr_step_of_batch(squares: Tensor, told: Tensor) -> Tensor:
    """The same with the norms' means over the batch, as score_sde's code has it: samples depend on their neighbours."""
    of_score, of_noise = squares.sqrt().mean(1, keepdim=True).expand_as(squares).square()
    return _sizes(of_score, of_noise, told)


def _sizes(of_score: Tensor, of_noise: Tensor, told: Tensor) -> Tensor:
    ratio, a = told
    e = torch.where(of_score > 0, 2 * a * ratio**2 * of_noise / of_score, 0.0)
    return torch.stack([e, (2 * e).sqrt()])


def _check_one_level(solver: str, levels: Levels) -> None:
    if len(set(levels)) > 1:
        raise ValueError(
            f"process must stay at one noise level for solver {solver!r} (fastdiff.energy.OneLevel); 'ald' anneals"
        )


@register(order=None, evaluations="1", stochastic=True, source="Welling & Teh 2011; Song & Ermon 2019, Eq. 4")
def langevin(
    denoise: Denoiser, x: State, levels: Levels, noise: Callable[..., State], *, step_size: float = 1e-3
) -> Iterator[State]:
    """x' = x + e s(x) + sqrt(2 e) z, for e = step_size: unadjusted, so with an error of order e in what it samples.

    Song & Ermon's own epsilon is 2 e. Levels stay the same: `fastdiff.energy.OneLevel`.
    """
    _check_one_level("langevin", levels)
    e = check_positive("step_size", step_size)
    for level in levels[:-1]:
        x = x + e * score(denoise, x, level) + math.sqrt(2 * e) * noise()
        yield x


@dataclass(frozen=True)
class Metropolis:
    """Whether samples go from x to y: 1 with probability min(1, p(y) q(x | y) / (p(x) q(y | x))), else 0.

    p is exp(-energy), q(y | x) = N(x + e s(x), 2 e) (Roberts & Tweedie 1996, Eq. 3).
    """

    energy: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, y: Tensor, s_x: Tensor, s_y: Tensor, z: Tensor, told: Tensor) -> Tensor:
        """s_x, s_y: the scores; z: normals, of which one per sample decides; told: e."""

        def misses(target: Tensor, start: Tensor, slope: Tensor) -> Tensor:
            away = target - start - told[0] * slope
            return flat(away).double().square().sum(1) / (4 * told[0])

        climbed = self.energy(x).reshape(len(x)).double() - self.energy(y).reshape(len(x)).double()
        uniform = torch.special.log_ndtr(flat(z)[:, 0].double())  # ln of a uniform number
        return (uniform < climbed - misses(x, y, s_y) + misses(y, x, s_x)).long()


@register(order=None, evaluations="1, 2 of the energy", stochastic=True, source="Roberts & Tweedie 1996 (MALA)")
def mala(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[..., State],
    *,
    energy: Callable[[Tensor], Tensor],
    step_size: float = 1e-3,
) -> Iterator[State]:
    """Langevin's step as a proposal that is accepted or refused, so that exp(-energy) itself is sampled.

    Args:
        energy: [B, ...] -> [B]; minus its gradient is the score that the sampler's network gives
            (`fastdiff.energy.EnergyScore`). Called without gradients and without conditioning, for both points.
        step_size: e of the proposal x + e s(x) + sqrt(2 e) z.
    """
    _check_one_level("mala", levels)
    e = check_positive("step_size", step_size)
    s = score(denoise, x, levels[0])
    for level in levels[:-1]:
        y = x + e * s + math.sqrt(2 * e) * noise()
        s_y = score(denoise, y, level)
        accepted = denoise.choose(Metropolis(energy), [x, y, s, s_y, noise()], [e]).number([0.0, 1.0])
        x = accepted * y + (1 - accepted) * x
        s = denoise.store(accepted * s_y + (1 - accepted) * s)
        yield x
