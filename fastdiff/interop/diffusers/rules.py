"""Steps of diffusers' schedulers that are no published rule: where a step goes, which noise it keeps, when it draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

from ...denoiser import Denoiser, Evaluation, State
from ...errors import check_choice
from ...prediction import V
from ...process import VP, Level, Levels
from ...solvers.euler import churn


def _evaluate(denoise: Denoiser, x: State, level: Level) -> Evaluation:
    """One evaluation, for rules that have no mean to move."""
    evaluation = denoise.evaluate(x, level)
    if evaluation.pushes:
        raise ValueError("guidance with rule='mean' moves the mean of solver 'ddpm', not of diffusers' schedulers")
    return evaluation


def ddim(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[..., State],
    *,
    eta: float = 0.0,
    use_clipped_model_output: bool = False,
) -> Iterator[State]:
    """DDIMScheduler.step: Song et al. 2021, Eqs. 12 and 16, from time t to t - T // n, whatever the next time is.

    So with linspace spacing, or n that does not divide T, a step ends at another level than the next one starts from.
    The noise kept is that of the x_0 before clipping, unless `use_clipped_model_output`.
    """
    process = levels.process
    assert isinstance(process, VP)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be from 0 (deterministic) to 1 (ancestral), got {eta}")
    for level in levels[:-1]:
        t = process.step_of(level) - process.T // levels.steps
        following = process.level(t) if t >= 0 else levels[-1]
        evaluation = _evaluate(denoise, x, level)
        x0 = evaluation.x0 if use_clipped_model_output else evaluation.unclipped
        eps = (x - level.alpha * x0) / level.sigma
        r = following.sigma_ve / level.sigma_ve
        std = eta * following.sigma * math.sqrt(max(0.0, (1 - r) * (1 + r)))
        x = following.alpha * evaluation.x0 + following.sigma * math.sqrt((1 - eta**2) + (eta * r) ** 2) * eps
        if std > 0:
            x = x + std * noise(level, following, eta**2)
        yield x


def ddpm(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[..., State],
    *,
    variance: str = "fixed_small",
) -> Iterator[State]:
    """DDPMScheduler.step: Ho et al. 2020, Eq. 7, with noise in every step from a time above 0.

    Where the spacing's last time is above 0 (trailing, steps_offset), noise is added to the sample itself; its variance
    fixed_small is 1e-20 there. fixed_large is beta, learned_range interpolates their logarithms (`solvers.ddpm`).
    """
    check_choice("variance", variance, ("fixed_small", "fixed_large", "learned_range"))
    for level, following in pairwise(levels):
        evaluation = _evaluate(denoise, x, level)
        abar, prev = level.alpha**2, following.alpha**2
        beta = 1 - abar / prev
        x = math.sqrt(prev) * beta / (1 - abar) * evaluation.x0 + math.sqrt(abar / prev) * (1 - prev) / (1 - abar) * x
        if level.time > 0:
            small = math.log(max((1 - prev) / (1 - abar) * beta, 1e-20))
            large = math.log(beta)
            z = noise(level, following) if following.sigma > 0 else noise()
            if variance == "learned_range":
                x = x + denoise.learned(evaluation, (large - small) / 4, (large + small) / 4, z)
            else:
                x = x + math.exp((small if variance == "fixed_small" else large) / 2) * z
        yield x


def euler(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[..., State],
    *,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
) -> Iterator[State]:
    """EulerDiscreteScheduler.step and EDMEulerScheduler.step: the network sees the state before churn, and its output
    is used at the state and the level after churn (Karras et al. 2022, Algorithm 2, evaluates the network there).

    A v-prediction is read with the coefficients of the level before churn, any other with those after.
    """
    for level, following in pairwise(levels):
        u, s = x / level.alpha, level.sigma_ve
        x0 = _evaluate(denoise, x, level).x0
        x_hat, hat = churn(denoise, x, level, noise, S_churn, S_min, S_max, S_noise)
        u_hat, s_hat, t = x_hat / hat.alpha, hat.sigma_ve, following.sigma_ve
        if s_hat > s:
            c, c_hat = denoise.prediction.coefficients(level), denoise.prediction.coefficients(hat)
            if isinstance(denoise.prediction, V):
                x0 = x0 + c.c_skip * level.alpha * (u_hat - u)
            else:
                x0 = c_hat.c_skip * hat.alpha * u_hat + c_hat.c_out / c.c_out * (x0 - c.c_skip * level.alpha * u)
            denoise.last_x0 = x0
        x = following.alpha * (u_hat + (t - s_hat) * (u_hat - x0) / s_hat)
        yield x


def renoised(denoise: Denoiser, x: State, levels: Levels, noise: Callable[..., State]) -> Iterator[State]:
    """FlowMatchEulerDiscreteScheduler.step with stochastic_sampling: the predicted x_0, noised anew to the next level
    (Song et al. 2023, consistency models, Algorithm 1)."""
    for level, following in pairwise(levels):
        x = following.alpha * _evaluate(denoise, x, level).x0
        if following.sigma > 0:
            x = x + following.sigma * noise()
        yield x
