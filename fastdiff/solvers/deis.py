"""DEIS in log rho: the exponential integrator of the predicted noise, with a polynomial through its last values."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..denoiser import Denoiser, State
from ..process import Levels
from .adams import require_signal
from .dpmpp_multistep import dpm_multistep
from .registry import register


@register(order=3, evaluations="1", stochastic=False, source="Zhang & Chen 2023 (DEIS), Eqs. 14-15 in log rho")
def deis(
    denoise: Denoiser,
    x: State,
    levels: Levels,
    noise: Callable[..., State],
    *,
    order: int = 3,
    lower_order_final: bool = False,
) -> Iterator[State]:
    """du/drho = eps for u = x / alpha, rho = sigma / alpha: u' = u + the integral over [rho, rho'] of the polynomial in
    log rho through the last `order` values of eps, 1 to 3 of them (in rho itself: `lms`).

    `dpm_multistep` with every integral exact; `lower_order_final` is explained there.
    """
    require_signal(levels, "deis")
    return dpm_multistep(
        denoise,
        x,
        levels,
        noise,
        predict="eps",
        order=order,
        solver_type="heun",
        quadratic="exact",
        lower_order_final=lower_order_final,
    )
