"""Solvers: one generator each, in the paper's symbols, running on tensors or on symbols.

    def solver(denoise, x, levels, noise, *, option=...):
        for level, following in pairwise(levels):
            x0 = denoise(x, level)             # one network evaluation
            x = ...                            # + - * / with numbers, and noise(level, following)
            yield x                            # the end of a step

Write x = x + d, not x += d, which on tensors would change a state someone else may hold.
Any callable of this form can be passed as `Sampler(solver=...)`; it is traced and fused like the ones here.
"""

from __future__ import annotations

from .adams import ipndm, lms
from .ancestral import euler_ancestral
from .ddim import ddim, ddim_inversion
from .ddpm import ddpm
from .deis import deis
from .design_space import design_space
from .dpm_2 import dpm_2, dpm_2_ancestral
from .dpmpp_multistep import dpm_multistep, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde
from .euler import euler
from .heun import heun
from .pndm import f_pndm, pndm, s_pndm
from .registry import FACTS, SOLVERS, Driver, Facts, Solver, check_options, get_solver, name_of, register
from .time_shift import time_shift, ts_dpm_timesteps
from .unipc import unipc

__all__ = [
    "FACTS",
    "SOLVERS",
    "Driver",
    "Facts",
    "Solver",
    "check_options",
    "ddim",
    "ddim_inversion",
    "ddpm",
    "deis",
    "design_space",
    "dpm_2",
    "dpm_2_ancestral",
    "dpm_multistep",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m_sde",
    "euler",
    "euler_ancestral",
    "f_pndm",
    "get_solver",
    "heun",
    "ipndm",
    "lms",
    "name_of",
    "pndm",
    "register",
    "s_pndm",
    "time_shift",
    "ts_dpm_timesteps",
    "unipc",
]
