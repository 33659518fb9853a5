"""Multistep DPM-Solver and DPM-Solver++, of the probability flow and of the reverse SDE: one rule, k-diffusion's names.

One evaluation per step; the polynomial goes through the values of the last steps. A step to clean data is of first
order, whatever is asked for: no polynomial in lambda has a limit there (the official codes give NaN, or refuse).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from ..denoiser import Denoiser, State
from ..errors import check_choice, check_finite
from ..process import Levels
from ..symbols import Number
from .exponential import PREDICTIONS, Exponential, Past, predicted
from .registry import register

SOLVER_TYPES = ("midpoint", "heun")
QUADRATICS = ("published", "exact", "diffusers")
ORDERS = (1, 2, 3)


def multistep_moments(step: Exponential, order: int, solver_type: str, quadratic: str) -> list[Number]:
    """The moments that the published rules put in place of the exact ones.

    "midpoint" halves the constant's for the slope (Lu et al. 2022b, Algorithm 2, and 2022a, DPM-Solver-2); "heun" is
    exact. Third order: the published codes give the quadratic term half its weight, which makes it of second order;
    diffusers moreover has a wrong sign in it for "x0" with eta > 0.
    """
    moments = [step.moment(k) for k in range(order)]
    if order == 2 and solver_type == "midpoint":
        moments[1] = moments[0] / 2
    if order == 3 and quadratic != "exact":
        moments[2] = moments[2] / 2
        if quadratic == "diffusers" and step.predict == "x0" and step.eta > 0:
            moments[2] = moments[2] - step.end.alpha
    return moments


@register(order=2, evaluations="1", stochastic=False, source="Lu et al. 2022a, 2022b, multistep DPM-Solver(++)")
def dpm_multistep(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[..., State],
    *,
    predict: str = "x0",
    order: int = 2,
    eta: float = 0.0,
    S_noise: float = 1.0,
    solver_type: str = "midpoint",
    quadratic: str = "published",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Iterator[State]:
    """DPM-Solver (predict="eps") and DPM-Solver++ ("x0") of order 1, 2 or 3; with eta = 1 their SDE forms.

    Lu et al. 2022b, Proposition 4.1 and Algorithm 2; Lu et al. 2022a, Proposition 3.1 (Eq. 3.4). As in diffusers'
    DPMSolverMultistepScheduler, `lower_order_final` ends runs of fewer than 15 steps by one of order 2 and one of order
    1, `euler_at_final` every run by one of order 1. For `solver_type` and `quadratic` see `multistep_moments`.
    """
    check_choice("predict", predict, PREDICTIONS)
    check_choice("solver_type", solver_type, SOLVER_TYPES)
    check_choice("quadratic", quadratic, QUADRATICS)
    check_finite("eta", eta)
    order = int(check_choice("order", order, ORDERS))
    past = Past(order, denoise.store if order > 2 else None)
    for n, (level, following) in enumerate(pairwise(levels)):
        past.add(level, predicted(denoise, x, level, predict))
        step = Exponential(level, following, predict, eta)
        left = levels.steps - n
        p = min(order, len(past), left if lower_order_final and levels.steps < 15 else order)
        if not step.smooth or (euler_at_final and left == 1):
            p = 1
        moments = multistep_moments(step, p, solver_type, quadratic)
        x = step(x, past.values(p), past.nodes(step, p), moments)
        if step.std > 0:
            x = x + S_noise * step.std * noise(level, following, step.clock)
        yield x


@register(order=2, evaluations="1", stochastic=False, source="Lu et al. 2022b (DPM-Solver++), Algorithm 2; k-diffusion")
def dpmpp_2m(denoise: Denoiser, x: State, levels: Levels, noise: Callable[..., State]) -> Iterator[State]:
    """k-diffusion's sample_dpmpp_2m: `dpm_multistep` of order 2."""
    return dpm_multistep(denoise, x, levels, noise, lower_order_final=False)


@register(order=2, evaluations="1", stochastic=True, source="Lu et al. 2022b, SDE-DPM-Solver++(2M); k-diffusion")
def dpmpp_2m_sde(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[..., State],
    *,
    eta: float = 1.0,
    S_noise: float = 1.0,
    solver_type: str = "midpoint",
) -> Iterator[State]:
    """k-diffusion's sample_dpmpp_2m_sde: `dpm_multistep` of order 2 on the reverse SDE, midpoint or heun."""
    return dpm_multistep(
        denoise, x, levels, noise, eta=eta, S_noise=S_noise, solver_type=solver_type, lower_order_final=False
    )


@register(order=2, evaluations="1", stochastic=True, source="k-diffusion, DPM-Solver++(3M) SDE")
def dpmpp_3m_sde(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[..., State],
    *,
    eta: float = 1.0,
    S_noise: float = 1.0,
    quadratic: str = "published",
) -> Iterator[State]:
    """k-diffusion's sample_dpmpp_3m_sde: `dpm_multistep` of order 3 on the reverse SDE, whose second step is heun."""
    return dpm_multistep(
        denoise,
        x,
        levels,
        noise,
        order=3,
        eta=eta,
        S_noise=S_noise,
        solver_type="heun",
        quadratic=quadratic,
        lower_order_final=False,
    )
