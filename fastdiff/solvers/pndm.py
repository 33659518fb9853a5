"""Pseudo numerical methods (Liu et al. 2022, PNDM) with the time shift of Li et al. 2024."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from ..denoiser import Denoiser, State
from ..errors import check_choice, check_count
from ..process import VP, Level, Levels
from .adams import extrapolated, require_signal
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
    noise: Callable[..., State],
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
            slope = extrapolated([e, past])
        past = denoise.keep(e)
        x = transfer(x, slope, here, there)
        yield x


@register(order=2, evaluations="1, 4 in the first 3", stochastic=False, source="Liu et al. 2022 (PNDM)")
def f_pndm(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[..., State],
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
            slope = extrapolated([e, *past])
        past = [denoise.store(e), *past][:3]
        x = transfer(x, slope, here, there)
        yield x


class _Rule:
    """What diffusers' PNDM extrapolates and where its steps go; `history` and `stride` as in `pndm`."""

    def __init__(self, denoise: Denoiser, levels: Levels, history: str, stride: int):
        self._denoise, self._levels = denoise, levels
        self._history = check_choice("history", history, ("eps", "output"))
        self._stride = check_count("stride", stride, 0)
        if stride and denoise.upwards:
            raise ValueError(f"stride must be 0 to go towards more noise, got {stride}")

    def value(self, x: State, level: Level) -> State:
        """One evaluation: the predicted noise, or the network's output."""
        evaluation = self._denoise.evaluate(x, level)
        eps = (x - level.alpha * evaluation.x0) / level.sigma
        return self._denoise.store(eps if self._history == "eps" else evaluation.output)

    def move(self, x: State, value: State, here: Level, there: Level) -> State:
        """DDIM's step along values; outputs are turned into noise at x."""
        if self._history == "output":
            c = self._denoise.prediction.coefficients(here)
            value = (x - here.alpha * (c.c_skip * x + c.c_out * value)) / here.sigma
        return transfer(x, value, here, there)

    def middle(self, here: Level, following: Level) -> tuple[Level, Level]:
        """Half-way between two levels: where the first trial step of Runge-Kutta ends, and what the model is told."""
        process, half = self._process, self._stride // 2
        t, j = process.step_of(here), process.step_of(following)
        there, told = (t - half, j + half) if self._stride else ((t + j) / 2, (t + j) / 2)
        return process.level(there), process.level(told)

    def after(self, here: Level, following: Level) -> Level:
        """The following level; with a stride, the one that much below this."""
        if not self._stride:
            return following
        t = self._process.step_of(here) - self._stride
        return self._process.level(t) if t >= 0 else self._levels[-1]

    def before(self, here: Level, following: Level) -> Level:
        """This level; with a stride, the one that much above the following."""
        return self._process.level(self._process.step_of(following) + self._stride) if self._stride else here

    @property
    def _process(self) -> VP:
        process = self._levels.process
        if not isinstance(process, VP):
            raise ValueError(
                "process must be a VP, which has timesteps, for start='runge_kutta' or a stride of solver 'pndm', got "
                f"{type(process).__name__}"
            )
        return process


@register(order=2, evaluations="1, 4 in the first 3", stochastic=False, source="diffusers, PNDMScheduler")
def pndm(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[..., State],
    *,
    start: str = "runge_kutta",
    history: str = "eps",
    stride: int = 0,
) -> Iterator[State]:
    """PNDM without time shift, as diffusers has it; its order of convergence is 2 (Liu et al. 2022).

    Args:
        start: "runge_kutta": three steps of 4 evaluations, then Adams-Bashforth of order 4, which is `f_pndm`; "heun":
            one step of 2 evaluations, then Adams-Bashforth of orders 2, 3, 4 (PLMS, diffusers' skip_prk_steps).
        history: what is extrapolated: the predicted noise, or the network's "output" (diffusers with v_prediction).
        stride: above 0, multistep transfers go this many timesteps down instead of to the next level, and midpoints are
            half a stride away: diffusers, whose stride is T // steps whatever the spacing.
    """
    check_choice("start", start, ("runge_kutta", "heun"))
    check_count("steps", levels.steps, 4 if start == "runge_kutta" else 1)
    require_signal(levels, "pndm")
    rule = _Rule(denoise, levels, history, stride)
    past: list[State] = []
    for n, (here, following) in enumerate(pairwise(levels)):
        e = rule.value(x, here)
        past = [e, *past][:4]
        if start == "runge_kutta" and n < 3:
            trial, middle = rule.middle(here, following)
            e2 = rule.value(rule.move(x, e, here, trial), middle)
            e3 = rule.value(rule.move(x, e2, here, middle), middle)
            e4 = rule.value(rule.move(x, e3, here, following), following)
            x = rule.move(x, (e + 2 * e2 + 2 * e3 + e4) / 6, here, following)
        elif n == 0 and levels.steps > 1:
            e2 = rule.value(rule.move(x, e, here, rule.after(here, following)), following)
            x = rule.move(x, (e + e2) / 2, rule.before(here, following), following)
        else:
            x = rule.move(x, extrapolated(past), here, rule.after(here, following))
        yield x
