"""Adams-Bashforth methods: a polynomial through the last slopes, integrated over the step (LMS, iPNDM, PNDM)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from ..denoiser import Denoiser, State
from ..errors import check_count
from ..process import Levels
from .exponential import quadrature
from .registry import register


def adams(values: Sequence[State], nodes: Sequence[float], h: float) -> State:
    """The integral from 0 to h of the polynomial through `values` at `nodes`, of which the first is 0."""
    weights = quadrature(nodes, [h ** (k + 1) / (k + 1) for k in range(len(nodes))])
    return sum((w * value for w, value in zip(weights, values)), 0.0)


def extrapolated(values: Sequence[State]) -> State:
    """The mean over the next of equal steps, from the values of the last ones, newest first: (3 e_0 - e_1) / 2, or
    (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3) / 24."""
    return adams(values, [-float(k) for k in range(len(values))], 1.0)


def require_signal(levels: Levels, solver: str) -> None:
    """Refuse a run from pure noise, where sigma / alpha is infinite.

    Raises:
        ValueError: alpha is 0 at a level.
    """
    if any(level.alpha == 0 for level in levels):
        raise ValueError(
            f"process must have alpha > 0 at every level for solver {solver!r}, which works in sigma / alpha; use "
            "solver 'ddim' or 'ipndm' from pure noise (zero terminal SNR, a flow's t = 1)"
        )


@register(
    order=4,
    evaluations="1",
    stochastic=False,
    source="k-diffusion, sample_lms; Zhang & Chen 2023 (DEIS), rhoAB-DEIS",
)
def lms(denoise: Denoiser, x: State, levels: Levels, noise: Callable[..., State], *, order: int = 4) -> Iterator[State]:
    """du/ds = d = (u - x_0) / s for u = x / alpha, s = sigma / alpha: u' = u + the integral over [s, s'] of the
    polynomial in s through the last `order` values of d.

    The first steps, with fewer values behind them, have lower orders; their error is of order 2 unless they are short.
    """
    check_count("order", order)
    require_signal(levels, "lms")
    past: list[tuple[float, State]] = []
    for level, following in pairwise(levels):
        x0 = denoise(x, level)
        u, s, t = x / level.alpha, level.sigma_ve, following.sigma_ve
        d = denoise.store((u - x0) / s)
        past = [(s, d), *(old for old in past if old[0] != s)][:order]
        x = following.alpha * (u + adams([d for _, d in past], [r - s for r, _ in past], t - s))
        yield x


@register(order=2, evaluations="1", stochastic=False, source="Zhang & Chen 2023 (DEIS), iPNDM; diffusers")
def ipndm(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[..., State],
    *,
    order: int = 4,
    blind: bool = False,
) -> Iterator[State]:
    """iPNDM: DDIM's step along the noise extrapolated from its last `order` values as if the steps were equally long.

    PNDM (Liu et al. 2022) with lower orders in the first steps instead of Runge-Kutta's. Where steps are not equal in
    sigma / alpha its order of convergence is 2, whatever `order` is.

    Args:
        blind: a step from alpha = 0 takes x_0 = 0, as diffusers' IPNDMScheduler does, instead of the predicted x_0.
    """
    check_count("order", order)
    past: list[State] = []
    for level, following in pairwise(levels):
        x0 = denoise(x, level)
        past = [denoise.store((x - level.alpha * x0) / level.sigma), *past][:order]
        eps = extrapolated(past)
        if level.alpha > 0:
            x0 = (x - level.sigma * eps) / level.alpha
        elif blind:
            x0 = 0.0 * x0
        x = following.alpha * x0 + following.sigma * eps
        yield x
