"""Replays the cases of EDM's sampler and of EDM-ES (edm/SPEC.md, sections 3, 5, 6 and 7) through fastdiff."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

import fastdiff
from fastdiff import schedules

from .analytic import Denoiser
from .cases import Case, compare, compare_results
from .replay import check_float32_state, run, same_for_all

EDM_DEFAULTS = {
    "num_steps": 18,
    "sigma_min": None,
    "sigma_max": None,
    "rho": 7.0,
    "S_churn": 0.0,
    "S_min": 0.0,
    "S_max": float("inf"),
    "S_noise": 1.0,
}
ES_DEFAULTS = EDM_DEFAULTS | {"eps_scaler": 1.0}
ABLATION_DEFAULTS = ES_DEFAULTS | {
    "solver": "heun",
    "discretization": "edm",
    "schedule": "linear",
    "scaling": "none",
    "alpha": 1.0,
    "epsilon_s": 1e-3,
    "C_1": 0.001,
    "C_2": 0.008,
    "M": 1000,
}


def arguments(case: Case) -> dict[str, Any]:
    """The reference's arguments with its defaults."""
    function = case.entry["source"]["function"]
    if function == "ablation_sampler":
        return case.arguments(**ABLATION_DEFAULTS)
    if function != "edm_sampler":
        raise ValueError(f"{case.id}: no rule for the reference function {function!r}")
    return case.arguments(**(ES_DEFAULTS if case.family == "es" else EDM_DEFAULTS))


def sampler_options(case: Case, net: Denoiser) -> dict[str, Any]:
    """The arguments of `fastdiff.Sampler` that mean what the reference's arguments mean."""
    a = arguments(case)
    discretization = a.get("discretization", "edm")
    limits = default_limits(discretization, a.get("epsilon_s"))
    lo, hi = (limit if given is None else given for limit, given in zip(limits, (a["sigma_min"], a["sigma_max"])))
    lo, hi = max(lo, net.sigma_min), min(hi, net.sigma_max)
    options: dict[str, Any] = {
        "process": fastdiff.EDM(lo, hi, net.round_sigma),
        "prediction": "x0",
        "schedule": grid_function(discretization, a, "as-is" in case.entry["precision"]),
        "steps": a["num_steps"],
        "solver": "heun",
        **{name: a[name] for name in ("S_churn", "S_min", "S_max", "S_noise")},
    }
    if "eps_scaler" in a:
        options["epsilon_scale"] = a["eps_scaler"]
        # EDM-ES scales both slopes in edm_sampler, only the first in ablation_sampler.
        options["epsilon_scale_mode"] = "first" if "solver" in a else "every"
    if "solver" in a:
        options |= {
            "solver": "edm_design_space",
            "order": {"euler": 1, "heun": 2}[a["solver"]],
            "alpha": a["alpha"],
            "time": a["schedule"],
            "scaling": a["scaling"],
            "betas": schedules.vp_betas(lo, hi, a["epsilon_s"]),
            "mixed_epsilon": True,
        }
    return options


def default_limits(discretization: str, epsilon_s: float | None) -> tuple[float, float]:
    """The ablation sampler's sigma_min and sigma_max."""
    if discretization == "vp":
        return float(schedules.sigma_vp(epsilon_s)), float(schedules.sigma_vp(1.0))
    return {"ve": (0.02, 100.0), "iddpm": (0.002, 81.0), "edm": (0.002, 80.0)}[discretization]


def grid_function(discretization: str, a: Mapping[str, Any], as_is: bool) -> Callable[..., np.ndarray]:
    """The schedule of a discretisation, a function of (n, sigma_min, sigma_max)."""
    return {
        "edm": lambda: partial(schedules.karras, rho=a["rho"]),
        "ve": lambda: schedules.ve,
        "vp": lambda: partial(schedules.vp_limits, eps_s=a["epsilon_s"]),
        "iddpm": lambda: partial(schedules.iddpm, M=a["M"], C_1=a["C_1"], C_2=a["C_2"], float32_table=as_is),
    }[discretization]()


def replay(case: Case, route: str, dtype: torch.dtype = torch.float64, rounded: bool = False) -> dict[str, Any]:
    """Everything the reference records of a run: state, grid, and every call of the denoiser."""
    net = Denoiser.of(case)
    options = sampler_options(case, net)
    data = case.arrays
    grid = options["process"].levels(options["steps"], options["schedule"]).sigmas
    done = run(
        net,
        route,
        data["latents"] * grid[0],
        noise=data.get("noise"),
        labels=data.get("labels"),
        dtype=dtype,
        rounded=rounded,
        **options,
    )
    scaled = done.states.new_tensor(1 / np.sqrt(1 + grid**2) if options.get("scaling") == "vp" else np.ones_like(grid))
    return {
        "states": done.states * scaled.reshape(-1, 1, 1, 1, 1),
        "final": done.final,
        "sigmas": done.sampler.levels.sigmas,
        "sigma_hat": done.sigma_hat,
        "call_x": torch.stack(done.calls.inputs),
        "call_sigma": same_for_all(done.calls.times),
        "call_denoised": torch.stack(done.calls.outputs),
    }


INPUTS = ("latents", "labels", "noise")


def check(case: Case, route: str) -> None:
    """edm/edm, edm/es and edm/ablation."""
    compare(case, replay(case, route), case.tolerance, inputs=INPUTS, label=route)


def check_float32(case: Case, route: str) -> None:
    """The same cases with a float32 state."""
    check_float32_state(case, route, replay, "states")


# --- family model -----------------------------------------------------------------------------------------------------

MODEL_INPUTS = ("sigma", "x", "labels", "round_in")
GUIDANCE_PREFIXES = ("dg_", "disc_", "tau", "vp_")
"""Arrays of the `model` family that belong to discriminator guidance; `dg_family.check_model` compares them."""


def _as_network(net: Denoiser, prediction: str, sigma_data: float) -> Any:
    """A network whose output in terms of `prediction` says what the denoiser `net` says."""

    def network(x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        sigma = (4 * t).exp() if prediction == "edm" else t
        level = sigma.reshape(-1, *(1,) * (x.ndim - 1))
        norm = (level**2 + sigma_data**2).sqrt()
        state = x * norm if prediction == "edm" else x
        x0 = net(state, sigma, labels=labels)
        return {
            "x0": x0,
            "eps": (state - x0) / level,
            "score": (x0 - state) / level**2,
            "edm": (x0 - sigma_data**2 / norm**2 * state) * norm / (level * sigma_data),
        }[prediction]

    return network


def _denoised_in_one_step(case: Case, kind: str, prediction: str, route: str) -> torch.Tensor:
    """D(x; sigma) for every recorded sigma: Euler's step from sigma to 0 is x - sigma (x - D) / sigma."""
    data, net, sigma_data = case.arrays, Denoiser(case.model["set"], kind), 0.5
    network = _as_network(net, prediction, sigma_data)
    results = []
    for x, sigma in zip(data["x"], data["sigma"]):
        done = run(
            network,
            route,
            x,
            labels=data["labels"] if net.conditional else None,
            process=fastdiff.EDM(),
            prediction=fastdiff.EDMPrediction(sigma_data) if prediction == "edm" else prediction,
            solver="euler",
            sigmas=[float(sigma), 0.0],
        )
        assert torch.equal(done.final, done.denoised[0]) or torch.allclose(
            done.final, done.denoised[0], rtol=1e-9, atol=1e-9
        )
        results.append(done.final)
    return torch.stack(results)


def check_model(case: Case, route: str) -> None:
    """edm/model: the denoisers, through every prediction type; rounding, through the process."""
    case.arguments()
    data = case.arrays
    wanted = {
        name: a for name, a in data.items() if name not in MODEL_INPUTS and not name.startswith(GUIDANCE_PREFIXES)
    }
    round_sigma = fastdiff.EDM(round_sigma=Denoiser(case.model["set"], "gmm_round").round_sigma)
    rounded = np.array([round_sigma.level_at_sigma(float(sigma)).sigma for sigma in data["round_in"]])
    for prediction in ("x0", "eps", "score", "edm"):
        got: dict[str, Any] = {"round_out": rounded}
        for name in wanted:
            if name.startswith("D_"):
                got[name] = _denoised_in_one_step(case, name.removeprefix("D_"), prediction, route)
        unknown = sorted(set(wanted) - set(got))
        assert not unknown, f"{case.id}: no rule for the array(s) {', '.join(unknown)}"
        compare_results(case, got, wanted, case.tolerance, label=route)
