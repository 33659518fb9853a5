"""Solvers: one generator each, in the paper's symbols, running on tensors or on symbols.

    def solver(denoise, x, levels, noise, *, option=...):
        for level, following in pairwise(levels):
            x0 = denoise(x, level)             # one network evaluation
            x = ...                            # + - * / with numbers, and noise()
            yield x                            # the end of a step

Write x = x + d, not x += d, which on tensors would change a state someone else may hold.
Any callable of this form can be passed as `Sampler(solver=...)`; it is traced and fused like the ones here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from .ddim import ddim, ddim_inversion
from .ddpm import ddpm
from .euler import euler
from .heun import heun
from .pndm import f_pndm, s_pndm
from .time_shift import time_shift, ts_dpm_timesteps

Solver = Callable[..., Iterator[Any]]

SOLVERS: dict[str, Solver] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "ddim_inversion": ddim_inversion,
    "euler": euler,
    "heun": heun,
    "time_shift": time_shift,
    "s_pndm": s_pndm,
    "f_pndm": f_pndm,
}


def get_solver(solver: str | Solver) -> Solver:
    """A solver by name, or any generator function of the form above."""
    if callable(solver):
        return solver
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)} or a generator function, got {solver!r}")
    return SOLVERS[solver]


def check_options(solver: Solver, options: dict[str, Any]) -> None:
    """Refuse an option the solver does not have, and (of the solvers here) a negative or NaN number."""
    parameters = inspect.signature(solver).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for name in options:
        if name not in known and not anything:
            takes = f"takes {', '.join(known)}" if known else "takes no options"
            raise TypeError(f"solver {getattr(solver, '__name__', solver)!r} {takes}, got {name!r}")
        value = options[name]
        if solver in SOLVERS.values() and isinstance(value, (int, float)) and not value >= 0:  # NaN included
            raise ValueError(f"{name} must be a number of at least 0, got {value!r}")


__all__ = [
    "SOLVERS",
    "check_options",
    "ddim",
    "ddim_inversion",
    "ddpm",
    "euler",
    "f_pndm",
    "get_solver",
    "heun",
    "s_pndm",
    "time_shift",
    "ts_dpm_timesteps",
]
