"""ODEs solved by other libraries: torchdiffeq's methods and SciPy's RK45."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["ADAPTIVE", "FIXED", "solve"]

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", "RK45")
FIXED = ("rk4", "heun3", "midpoint", "euler")


def solve(
    derivative: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    points: Sequence[float],
    purpose: str,
    method: str,
    rtol: float,
    atol: float,
    norm: Callable[[Tensor], Tensor],
    grid: Sequence[float] | None = None,
) -> Tensor:
    """The solution at every point but the first, [P - 1, *start.shape], float64.

    torchdiffeq would look beyond the end to choose its first step, and step over it and interpolate back: it is given a
    `first_step`, which it shrinks as needed, and `step_t`.

    Args:
        derivative: (s, state) -> d state / ds; start: the state at the first point, float64.
        points: rising or falling.
        purpose: what needs torchdiffeq or scipy, for the message where it is missing.
        method: one of `ADAPTIVE`, or one of `FIXED` with its `grid`; norm: of errors in units of the tolerance, flat,
            for torchdiffeq's; RK45's is the root mean square over all.

    Raises:
        FloatingPointError: the solver gave up. ModuleNotFoundError: the library is not installed.
    """
    library = "scipy" if method == "RK45" else "torchdiffeq"
    try:
        if method == "RK45":
            from scipy.integrate import solve_ivp
        else:
            from torchdiffeq import odeint
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{purpose} need {library} for method {method!r}: pip install 'fastdiff[likelihood]'", name=library
        ) from None
    if method == "RK45":
        return _scipy(solve_ivp, derivative, start, points, rtol, atol)
    times = torch.tensor(points, dtype=torch.float64, device=start.device)
    options: dict[str, Any] = {"norm": norm, "step_t": times[-1:], "first_step": abs(points[-1] - points[0]) / 100}
    if grid is not None:
        fixed = torch.tensor(grid, dtype=torch.float64, device=start.device)
        options = {"grid_constructor": lambda *_: fixed}
    try:
        with torch.no_grad():
            return odeint(derivative, start, times, rtol=rtol, atol=atol, method=method, options=options)[1:]
    except AssertionError as error:  # its steps became shorter than rounding
        raise FloatingPointError(f"torchdiffeq did not reach the end of {tuple(points)}: {error}") from None


def _scipy(
    solve_ivp: Callable[..., Any],
    derivative: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    points: Sequence[float],
    rtol: float,
    atol: float,
) -> Tensor:
    """scipy's RK45 on the flattened batch, as score_sde solves it; its arithmetic is NumPy's."""

    def flat(s: float, state: Any) -> Any:
        y = torch.from_numpy(state).view(start.shape).to(start.device)
        return derivative(torch.tensor(s, dtype=torch.float64), y).flatten().cpu().numpy()

    span, between = (points[0], points[-1]), points[1:-1]
    found = solve_ivp(
        flat, span, start.flatten().cpu().numpy(), method="RK45", rtol=rtol, atol=atol, dense_output=len(between) > 0
    )
    if not found.success:
        raise FloatingPointError(f"scipy's RK45 did not reach the end of {span}: {found.message}")
    states = [*(found.sol(s) for s in between), found.y[:, -1]]
    return torch.from_numpy(np.stack(states)).view(-1, *start.shape).to(start.device)
