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
from .ald import ald
from .ancestral import euler_ancestral
from .ddim import ddim, ddim_inversion
from .ddpm import ddpm
from .deis import deis
from .design_space import design_space
from .dpm_2 import dpm_2, dpm_2_ancestral
from .dpm_fast import dpm_fast
from .dpmpp_multistep import dpm_multistep, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde
from .dpmpp_sde import dpmpp_2s_ancestral, dpmpp_sde
from .euler import euler
from .heun import heun
from .langevin import langevin, mala
from .pndm import f_pndm, pndm, s_pndm
from .predictor_corrector import predictor_corrector
from .registry import FACTS, SOLVERS, Driver, Facts, Solver, check_options, get_solver, name_of, options_of, register
from .singlestep import dpm_singlestep, exponential_rk
from .srk import sra1, srk_heun
from .time_shift import time_shift, ts_dpm_timesteps
from .unipc import unipc

__all__ = [
    "FACTS",
    "SOLVERS",
    "Driver",
    "Facts",
    "Solver",
    "ald",
    "check_options",
    "ddim",
    "ddim_inversion",
    "ddpm",
    "deis",
    "design_space",
    "dpm_2",
    "dpm_2_ancestral",
    "dpm_fast",
    "dpm_multistep",
    "dpm_singlestep",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s_ancestral",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "euler",
    "euler_ancestral",
    "exponential_rk",
    "f_pndm",
    "get_solver",
    "heun",
    "ipndm",
    "langevin",
    "lms",
    "mala",
    "name_of",
    "options_of",
    "pndm",
    "predictor_corrector",
    "register",
    "s_pndm",
    "sra1",
    "srk_heun",
    "time_shift",
    "ts_dpm_timesteps",
    "unipc",
]
