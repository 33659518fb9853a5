"""Pseudo numerical methods (Liu et al. 2022, PNDM) with the time shift of Li et al. 2024."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..denoiser import Denoiser, State
from ..process import Level, Levels
from .registry import register
from .time_shift import TimeShift


def predicted_noise(denoise: Denoiser, x: State, level: Level) -> State:
    """eps of the (clipped) x_0, as guided-diffusion derives it."""
    x0 = denoise(x, level)
    return (x - level.alpha * x0) / level.sigma


def transfer(x: State, eps: State, here: Level, there: Level) -> State:
    """The transfer part of Liu et al. 2022 (Eq. 11): DDIM's step along eps, in an equal form."""
    return there.alpha * ((x - here.sigma * eps) / here.alpha) + there.sigma * eps


@register(order=2, evaluations="1, 2 in the first", stochastic=False, source="Liu et al. 2022 (PNDM)")
def s_pndm(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[[], State],
    *,
    window: int = 0,
    cutoff: float = 300,
    rule: str = "paper",
    normalize_variance: bool = False,
) -> Iterator[State]:
    """S-PNDM of Liu et al. 2022: second order, one evaluation per step and one more in the first.

    The options are those of `time_shift.TimeShift`; without a window, nothing is shifted.
    """
    if levels.steps < 2:
        raise ValueError(f"steps must be at least 2 for solver 's_pndm', got {levels.steps}")
    shift = TimeShift(denoise, levels, window, cutoff, rule, normalize_variance)
    past = None
    for n in range(levels.steps):
        x, (here, _, there) = shift(x, n)
        e = predicted_noise(denoise, x, here)
        if n == 0:
            e2 = predicted_noise(denoise, transfer(x, e, here, there), there)
            slope = (e + e2) / 2
        else:
            slope = (3 * e - past) / 2
        past = denoise.keep(e)
        x = transfer(x, slope, here, there)
        yield x


@register(order=4, evaluations="1, 4 in the first 3", stochastic=False, source="Liu et al. 2022 (PNDM)")
def f_pndm(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[[], State],
    *,
    window: int = 0,
    cutoff: float = 300,
    rule: str = "paper",
    normalize_variance: bool = False,
) -> Iterator[State]:
    """F-PNDM of Liu et al. 2022: three Runge-Kutta steps of 4 evaluations, then Adams-Bashforth of order 4.

    The options are those of `time_shift.TimeShift`; without a window, nothing is shifted.
    """
    if levels.steps < 4:
        raise ValueError(f"steps must be at least 4 for solver 'f_pndm', got {levels.steps}")
    shift = TimeShift(denoise, levels, window, cutoff, rule, normalize_variance)
    past: list[State] = []
    for n in range(levels.steps):
        x, (here, middle, there) = shift(x, n)
        e = predicted_noise(denoise, x, here)
        if n < 3:
            e2 = predicted_noise(denoise, transfer(x, e, here, middle), middle)
            e3 = predicted_noise(denoise, transfer(x, e2, here, middle), middle)
            e4 = predicted_noise(denoise, transfer(x, e3, here, there), there)
            slope = (e + 2 * e2 + 2 * e3 + e4) / 6
        else:
            slope = (55 * e - 59 * past[-1] + 37 * past[-2] - 9 * past[-3]) / 24
        past = [*past[-2:], denoise.keep(e)]
        x = transfer(x, slope, here, there)
        yield x
