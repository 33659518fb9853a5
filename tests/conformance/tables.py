"""Replays the cases that are only tables of numbers: noise schedules, betas, posterior tables, respacing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fastdiff import schedules
from fastdiff.process import VP, GaussianTables

from ..tolerances import FLOAT32_GRID
from .cases import Case, compare, compare_results

TABLE_NAMES = (
    "betas alphas_cumprod alphas_cumprod_prev alphas_cumprod_next sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod "
    "log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod posterior_variance "
    "posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2"
).split()

GRIDS = {
    "get_sigmas_karras": schedules.karras,
    "get_sigmas_exponential": schedules.exponential,
    "get_sigmas_polyexponential": schedules.polyexponential,
    "get_sigmas_vp": schedules.vp,
}


def chain(beta_schedule: str, T: int, respacing: Any, rescale_timesteps: bool = False) -> tuple[VP, Any]:
    """The discrete process of a guided-diffusion case and the `steps` that respaces it (None: all)."""
    makers = {"linear": VP.linear, "cosine": VP.cosine}
    if beta_schedule not in makers:
        raise ValueError(f"no rule for the beta schedule {beta_schedule!r}")
    return makers[beta_schedule](T, rescale_timesteps=rescale_timesteps), respacing or None


def gaussian_tables(process: VP, steps: Any) -> dict[str, np.ndarray]:
    """guided-diffusion's tables of a respaced process, by its own names."""
    tables = GaussianTables(process.levels(steps).alphas_cumprod)
    kept = schedules.space_timesteps(process.T, "" if steps is None else steps)
    return {**{name: getattr(tables, name) for name in TABLE_NAMES}, "timestep_map": np.array(kept)}


def _ablation_grid(arguments: dict[str, Any], float32_table: bool) -> np.ndarray:
    """The ablation sampler's grid for its `discretization`; its other arguments do not change the grid."""
    options = {"num_steps": 18, "solver": "heun", "discretization": "edm", "schedule": "linear", "scaling": "none"}
    options |= {
        "sigma_min": None,
        "sigma_max": None,
        "rho": 7,
        "epsilon_s": 1e-3,
        "C_1": 0.001,
        "C_2": 0.008,
        "M": 1000,
    }
    unknown = sorted(set(arguments) - set(options))
    if unknown:
        raise TypeError(f"no rule for the ablation sampler's argument(s) {', '.join(unknown)}")
    options |= arguments
    n, kind, eps_s = options["num_steps"], options["discretization"], options["epsilon_s"]
    defaults = {
        "vp": (float(schedules.sigma_vp(eps_s)), float(schedules.sigma_vp(1.0))),
        "ve": (0.02, 100.0),
        "iddpm": (0.002, 81.0),
        "edm": (0.002, 80.0),
    }
    limits = tuple(
        default if options[k] is None else options[k] for k, default in zip(("sigma_min", "sigma_max"), defaults[kind])
    )
    if kind == "vp":
        return schedules.vp_limits(n, *limits, eps_s)
    if kind == "iddpm":
        return schedules.iddpm(n, *limits, options["M"], options["C_1"], options["C_2"], float32_table=float32_table)
    return schedules.ve(n, *limits) if kind == "ve" else schedules.karras(n, *limits, options["rho"])


def _grid(function: str, arguments: list[Any], as_is: bool) -> np.ndarray:
    keywords = {k: math.inf if v == "inf" else v for k, v in arguments[-1].items()}
    if function == "ablation_sampler":
        return _ablation_grid(keywords, float32_table=as_is)
    if function == "edm_sampler":
        return schedules.karras(keywords.pop("num_steps", 18), **keywords)
    if function not in GRIDS:
        raise ValueError(f"no rule for the schedule {function!r}")
    return GRIDS[function](*arguments[:-1], **keywords)


def schedule_grids(case: Case) -> None:
    """edm/schedules: each array is `<item>__<precision>`, an item is [function, positional..., keywords]."""
    case.arguments()
    tolerances: dict[float, dict[str, np.ndarray]] = {}
    for name, array in case.arrays.items():
        item, precision = name.split("__")
        if precision not in ("f64", "asis", "asis_f32"):
            raise ValueError(f"{case.id}: no rule for the precision {precision!r}")
        tolerances.setdefault(case.tolerance if precision == "f64" else FLOAT32_GRID, {})[name] = array
    for tolerance, wanted in tolerances.items():
        got = {}
        for name in wanted:
            item, precision = name.split("__")
            function, *arguments = case.entry["items"][item]
            got[name] = _grid(function, arguments, precision != "f64")
        compare_results(case, got, wanted, tolerance, label="" if tolerance == case.tolerance else "as is")


def beta_schedules(case: Case) -> None:
    """ddpm/beta_schedules: one array per schedule name."""
    a = case.arguments(beta_start=1e-4, beta_end=0.02, num_diffusion_timesteps=1000)
    got = {
        name: schedules.betas(name, a["num_diffusion_timesteps"], a["beta_start"], a["beta_end"])
        for name in case.arrays
    }
    compare(case, got, case.tolerance)


def posterior_tables(case: Case) -> None:
    """ddpm/gd_tables."""
    a = case.arguments(beta_schedule=None, T=None, respacing="")
    compare(case, gaussian_tables(*chain(a["beta_schedule"], a["T"], a["respacing"])), case.tolerance)


def respacing(case: Case) -> None:
    """ddpm/gd_respace: for every input, the array of kept steps or an exception's name."""
    got = {}
    for entry in case.arguments(inputs=())["inputs"]:
        T, counts, result = entry["T"], entry["section_counts"], entry["result"]
        if result in case.arrays:
            got[result] = np.array(schedules.space_timesteps(T, counts))
        elif result == "ValueError":
            with pytest.raises(ValueError, match="steps"):
                schedules.space_timesteps(T, counts)
        else:
            raise ValueError(f"{case.id}: no rule for the result {result!r}")
    compare(case, got, 0.0)
