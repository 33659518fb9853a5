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
from ..ops import native
from ..process import Level, Levels
from .registry import register

TINY, INV_SQRT_2 = 2.0**-1022, math.sqrt(0.5)


def score(denoise: Denoiser, x: State, level: Level) -> State:
    """grad log p(x) = (alpha E[x_0 | x] - x) / sigma^2 (Robbins, Miyasawa, Tweedie)."""
    return (level.alpha * denoise(x, level) - x) / level.sigma**2


@dataclass(frozen=True)
class SnrStep:
    """(e, sqrt(2 e)) per sample, e = 2 a (r |z| / |s|)^2 (Song et al. 2021, Algorithms 4 and 5); 0 where the score is.

    Attributes:
        batch: the norms are their means over the batch, as in score_sde's code: samples depend on their neighbours.
    """

    batch: bool = False

    def __call__(self, squares: Tensor, told: Tensor) -> Tensor:
        """squares: |s|^2 and |z|^2, [2, B]; told: the signal-to-noise ratio r and the process's a."""
        ratio, a = told.double()
        if self.batch:
            squares = squares.sqrt().mean(1, keepdim=True).expand_as(squares).square()
        of_score, of_noise = squares
        e = torch.where(of_score > 0, 2 * a * (ratio * ratio) * of_noise / of_score, 0.0)
        return torch.stack([e, (2 * e).sqrt()])

    def small(self, squares: list[list[float]], told: list[float]) -> list[list[float]]:
        """The same, of numbers of Python."""
        ratio, a = told
        if self.batch:
            squares = [[(sum(map(math.sqrt, each)) / len(each)) ** 2] * len(each) for each in squares if each]
        sizes, roots, factor = [], [], 2 * a * (ratio * ratio)
        for of_score, of_noise in zip(*squares):
            e = factor * of_noise / of_score if of_score > 0 else 0.0
            sizes.append(e)
            roots.append(math.sqrt(2 * e))
        return [sizes, roots]


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

    def __call__(self, squares: Tensor, told: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """squares: |x - y - e s(y)|^2 and |noise of y|^2, [2, B]; told: e; z: normals, of which one per sample
        decides."""
        back, there = squares[0] / (4 * told[0].double()), squares[1] / 2
        climbed = self.energy(x).reshape(len(x)).double() - self.energy(y).reshape(len(x)).double()
        uniform = torch.special.log_ndtr(flat(z)[:, 0].double())  # ln of a uniform number
        return (uniform < climbed - back + there).double()[None]

    def small(
        self, squares: list[list[float]], told: list[float], x: Tensor, y: Tensor, z: Tensor
    ) -> list[list[float]]:
        """The same, of numbers of Python."""
        first = native.host_function("first_elements")
        normals = None if first is None else first(z)
        if normals is None:
            normals = flat(z)[:, 0].tolist()
        at_x, at_y = (e.tolist() if e.ndim == 1 else e.reshape(-1).tolist() for e in (self.energy(x), self.energy(y)))
        accepted, scale = [], 4 * told[0]
        for n, u_x, u_y, back, there in zip(normals, at_x, at_y, *squares):
            uniform = math.log(max(math.erfc(-n * INV_SQRT_2) / 2, TINY))
            accepted.append(float(uniform < u_x - u_y - back / scale + there / 2))
        return [accepted]


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
        z = noise()
        y = x + e * s + math.sqrt(2 * e) * z
        s_y = score(denoise, y, level)
        (accepted,) = denoise.measure(Metropolis(energy), [x - y - e * s_y, z], told=[e], read=[x, y, noise()])
        x = accepted * y + (1 - accepted) * x
        s = denoise.store(accepted * s_y + (1 - accepted) * s)
        yield x
