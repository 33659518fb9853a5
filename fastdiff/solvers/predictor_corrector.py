"""Predictor-corrector samplers of the reverse SDE (Song et al. 2021, Sec. 4 and appendix G)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from ..denoiser import Denoiser, State
from ..errors import check_choice, check_count, check_positive
from ..process import Array, Levels
from ..sde import SDE
from .langevin import SnrStep, score
from .registry import register

PREDICTORS = ("reverse_diffusion", "ancestral_sampling", "euler_maruyama", "none")
CORRECTORS = ("langevin", "ald", "none")
NORMS = {"sample": SnrStep(), "batch": SnrStep(batch=True)}


class Kernel(NamedTuple):
    """One step of the forward chain, x_(i+1) = a x_i + b z."""

    a: float
    b: float


class Step(NamedTuple):
    """The reverse step x_i = x x_(i+1) + score s(x_(i+1)) + std z."""

    x: float
    score: float
    std: float


def euler(sde: SDE, t: Array, h: Array) -> list[Kernel]:
    """Euler's forward step of h in time."""
    times = torch.from_numpy(t)
    drift, diffusion = sde.drift(times).numpy(), sde.diffusion(times).numpy()
    return [Kernel(float(a), float(b)) for a, b in zip(1 + drift * h, diffusion * np.sqrt(h))]


class Exact:
    """The transitions of any process from level to level, however far apart they are."""

    def __init__(self, levels: Levels):
        self._levels = levels
        self.stds = [level.sigma for level in levels[:-1]]
        if any(level.alpha == 0 for level in levels):
            name = type(levels.process).__name__
            raise ValueError(f"process must have alpha > 0 at every level for solver 'predictor_corrector', got {name}")

    def chain(self) -> list[Kernel]:
        """q(x_(i+1) | x_i)."""
        found = []
        for level, following in pairwise(self._levels):
            a = level.alpha / following.alpha
            found.append(Kernel(a, math.sqrt(max(0.0, level.sigma**2 - (a * following.sigma) ** 2))))
        return found

    def euler(self) -> list[Kernel]:
        """Euler's step from each time to the next."""
        times, sde = self._levels.times, getattr(self._levels.process, "sde", None)
        if sde is None or times is None:
            name = type(self._levels.process).__name__
            raise ValueError(f'process must be an SDEProcess for predictor "euler_maruyama", which needs g, got {name}')
        return euler(sde, times[:-1], -np.diff(times))

    def ancestral_noise(self) -> list[float]:
        """The posterior's noise over b."""
        return [following.sigma / level.sigma for level, following in pairwise(self._levels)]


class Tabled:
    """score_sde's chain of N = steps: of dt = 1 / N, and tables of N at floor(t (N - 1)), whatever the times."""

    def __init__(self, levels: Levels):
        sde, name = getattr(levels.process, "sde", None), type(levels.process).__name__
        if sde is None or levels.times is None:
            raise ValueError(f'process must be an SDEProcess for discretization "score_sde", got {name}')
        if levels.steps < 2:
            raise ValueError('steps must be at least 2 for discretization "score_sde", whose tables have N - 1, got 1')
        self._sde, self._times = sde.with_chain(levels.steps), torch.from_numpy(levels.times[:-1])
        self.stds = self._sde.sigma(self._times).tolist()

    def chain(self) -> list[Kernel]:
        """1 + F and G."""
        step, noise = self._sde.discretize(self._times)
        return [Kernel(1 + f, g) for f, g in zip(step.tolist(), noise.tolist())]

    def euler(self) -> list[Kernel]:
        """Euler's step of dt = 1 / N."""
        return euler(self._sde, self._times.numpy(), np.full(self._sde.N, 1 / self._sde.N))

    def ancestral_noise(self) -> list[float]:
        """Of the chain's ancestral steps, over G."""
        return self._sde.ancestral_noise(self._times).tolist()


TRANSITIONS: dict[str, type[Exact] | type[Tabled]] = {"levels": Exact, "score_sde": Tabled}


def predictor_steps(transitions: Exact | Tabled, predictor: str, probability_flow: bool) -> list[Step]:
    """Of the reverse SDE, or of its ODE: Song et al. 2021, Eqs. 45 to 47 and (ancestral) appendix F."""
    if predictor == "ancestral_sampling":
        if probability_flow:
            raise ValueError(
                'probability_flow must be False for predictor "ancestral_sampling", which has no ODE, got True; use '
                '"reverse_diffusion"'
            )
        noises = transitions.ancestral_noise()
        return [Step(1 / a, b**2 / a, b * noise) for (a, b), noise in zip(transitions.chain(), noises)]
    kernels = transitions.euler() if predictor == "euler_maruyama" else transitions.chain()
    if probability_flow:
        return [Step(2 - a, b**2 / 2, 0.0) for a, b in kernels]
    return [Step(2 - a, b**2, b) for a, b in kernels]


@register(
    order=None,
    evaluations="1 and corrector_steps",
    stochastic=True,
    source="Song et al. 2021 (score SDE), Algorithms 1 to 5",
)
def predictor_corrector(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[..., State],
    *,
    predictor: str = "reverse_diffusion",
    corrector: str = "langevin",
    snr: float = 0.16,
    corrector_steps: int = 1,
    probability_flow: bool = False,
    final_denoise: bool = True,
    norm: str = "sample",
    discretization: str = "levels",
) -> Iterator[State]:
    """At each level the corrector's Langevin steps, then the predictor's step of the reverse SDE.

    Args:
        predictor: "reverse_diffusion", "ancestral_sampling", "euler_maruyama" (for an `SDEProcess`) or "none".
        corrector: "langevin" (Algorithms 4, 5: e = 2 a^2 (snr |z| / |s|)^2), "ald" (e = 2 a^2 (snr std)^2) or "none",
            with a of the chain's step x_(i+1) = a x_i + b z.
        probability_flow: the predictor steps along the ODE instead: half the score, and no noise.
        final_denoise: the last predictor step adds no noise.
        norm: of "langevin": each "sample"'s own, or the mean over the "batch" as in score_sde's code; then a sample
            depends on its neighbours, and on how a graph's `buckets` fill up a batch.
        discretization: steps lead from level to level ("levels"), or are "score_sde"'s: of dt = 1 / N in time, N the
            number of steps, with its tables of N at floor(t (N - 1)), and for VP its larger ancestral noise.
    """
    transitions = TRANSITIONS[check_choice("discretization", discretization, TRANSITIONS)](levels)
    if check_choice("corrector", corrector, CORRECTORS) == check_choice("predictor", predictor, PREDICTORS) == "none":
        raise ValueError('predictor must be another than "none" where corrector is "none", got "none"')
    adjust, snr = NORMS[check_choice("norm", norm, NORMS)], check_positive("snr", snr)
    corrections = check_count("corrector_steps", corrector_steps) if corrector != "none" else 0
    steps = predictor_steps(transitions, predictor, probability_flow) if predictor != "none" else []
    chain = transitions.chain() if corrections else []
    for n, (level, following) in enumerate(pairwise(levels)):
        for _ in range(corrections):
            s, z = score(denoise, x, level), noise()
            if corrector == "langevin":
                e, root = denoise.measure(adjust, [s, z], 2, told=(snr, chain[n].a ** 2))
            else:
                e = 2 * (chain[n].a * snr * transitions.stds[n]) ** 2
                root = math.sqrt(2 * e)
            x = x + e * s + root * z
        if steps:
            s, (carry, gain, std) = score(denoise, x, level), steps[n]
            x = carry * x + gain * s
            if std > 0 and not (final_denoise and n == levels.steps - 1):
                x = x + std * (noise(level, following) if following.sigma > 0 else noise())
        yield x
