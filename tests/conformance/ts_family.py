"""Replays the two official codes of the time-shift sampler (ddpm/SPEC.md, sections 3 and 4) through fastdiff."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.solvers.time_shift import NearestVariance, TimeShift, ts_dpm_timesteps

from .analytic import DiscreteModel
from .cases import Case, compare
from .ddpm_family import LOOP_DEFAULTS, PREDICTIONS
from .replay import Run, check_float32_state, run
from .tables import chain, gaussian_tables

DPM_DEFAULTS = {
    "method": "euler",
    "S": None,
    "discr_method": "uniform",
    "beta_schedule": None,
    "T": None,
    "window_size": None,
    "cut_off_value": None,
    "eta": 0,
    "scale": None,
    "normalize_variance": False,
}
SOLVERS = {"euler": "time_shift", "ddpm": "time_shift", "s_pndm": "s_pndm", "f_pndm": "f_pndm"}


def dpm_options(case: Case) -> dict[str, Any]:
    """`fastdiff.Sampler`'s arguments for TS-DPM's PNM solver."""
    a = case.arguments(**DPM_DEFAULTS)
    if a["discr_method"] != "uniform":
        raise ValueError(f"{case.id}: no rule for the grid {a['discr_method']!r}")
    process, _ = chain(a["beta_schedule"], a["T"], None, rescale_timesteps=True)  # f_pndm tells times between two steps
    timesteps = ts_dpm_timesteps(a["S"], a["T"])
    kind, value = a["scale"] or ("fix", 1.0)
    options = {
        "process": process,
        "prediction": "eps",
        "solver": SOLVERS[a["method"]],
        "timesteps": timesteps,
        "rule": "ts_dpm",
        "normalize_variance": a["normalize_variance"],
        "window": a["window_size"] or 0,
        "cutoff": a["cut_off_value"] or 0,
        "epsilon_scale": {"fix": value, "step": [1 + value * n for n in range(len(timesteps))]}[kind],
    }
    if options["solver"] == "time_shift":
        options["eta"] = a["eta"] if a["method"] == "ddpm" else 0.0
    return options


def adm_options(case: Case) -> dict[str, Any]:
    """`fastdiff.Sampler`'s arguments for TS-DPM-ADM's DDIM loop."""
    a = case.arguments(**LOOP_DEFAULTS, time_shift=None)
    if a["classifier_scale"] is not None or a["denoised_fn"] is not None or not a["spaced"]:
        raise ValueError(f"{case.id}: no rule for guidance, a denoised_fn or an unspaced chain")
    process, steps = chain(a["beta_schedule"], a["T"], a["respacing"], a["rescale_timesteps"])
    shift = a["time_shift"] or {"window": 0, "cutoff": 0}
    return {
        "process": process,
        "prediction": PREDICTIONS[a["mean_type"]],
        "solver": "time_shift",
        "steps": steps,
        "clip_denoised": a["clip_denoised"],
        "eta": a["eta"] or 0.0,
        "rule": "ts_adm",
        **shift,
    }


def gathered(recorded: list[Tensor], batch: int) -> Tensor:
    """[n, B, ...] of the calls of a run, whether the samples ran together or one at a time."""
    calls = torch.stack(recorded)
    return calls if calls.shape[1] == batch else calls.reshape(batch, -1, *calls.shape[2:]).transpose(0, 1)


def times(done: Run, window: int, cutoff: float, rule: str) -> dict[str, Tensor]:
    """The times from and to which every sample went in every step: [N, B]."""
    levels = done.sampler.levels
    shift = TimeShift(done.sampler.denoiser(None, levels), levels, window, cutoff, rule, normalize_variance=False)
    taken = []
    for n, x in enumerate(done.states[:-1]):
        moves, variances = shift.moves(n)
        alone = torch.zeros(len(x), dtype=torch.int64)
        choice = NearestVariance()(x, torch.tensor(variances, dtype=x.dtype)) if variances else alone
        taken.append(torch.tensor(moves)[choice])
    t, t_next = torch.stack(taken).unbind(-1)
    return {"t": t, "t_next": t_next}


def replay(case: Case, route: str, dtype: torch.dtype | None = None, rounded: bool = False) -> dict[str, Any]:
    """Everything the reference records of a run."""
    options = (dpm_options if case.family == "ts_dpm" else adm_options)(case)
    start = case.arrays["x_init"]
    done = run(
        DiscreteModel(case.model),
        route,
        start,
        noise=case.arrays.get("noise"),
        dtype=dtype or torch.float64,
        rounded=rounded,
        **options,
    )
    calls = {"model_x": done.calls.inputs, "model_t": done.calls.times, "model_out": done.calls.outputs}
    got = {"x_steps": done.states[1:], **{name: gathered(values, len(start)) for name, values in calls.items()}}
    if case.family == "ts_dpm":
        got["images"] = ((done.final + 1) / 2).clamp(0, 1)
        return got | times(done, options["window"], options["cutoff"], options["rule"])
    return got | {"pred_xstart": done.denoised, **gaussian_tables(options["process"], options["steps"])}


def check(case: Case, route: str) -> None:
    """ts_dpm and ts_adm_ddim."""
    compare(case, replay(case, route), case.tolerance, inputs=("x_init", "noise"), label=route)


def check_float32(case: Case, route: str) -> None:
    """The same cases with a float32 state."""
    check_float32_state(case, route, replay, "x_steps")
