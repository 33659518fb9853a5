"""Replays score_sde's probability-flow sampler, ddpm/sde_ode (SPEC.md, section 5), and k-diffusion's likelihood,
edm/kdiff_ll (its SPEC.md, section 10)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastdiff
from fastdiff.continuous import SDEProcess
from fastdiff.likelihood import nll_network
from fastdiff.sde import get_sde

from ..tolerances import DEFAULT_SOLVER
from .analytic import Denoiser
from .cases import Case, compare
from .likelihood_family import TIGHT_SOLVER
from .replay import ROUTES, Calls
from .score_family import LIMITS
from .sde_family import SCALERS
from .sde_model import SdeModel

ODE_DEFAULTS: dict[str, Any] = {
    "sde": None,
    "N": 1000,
    "beta_min": 0.1,
    "beta_max": 20,
    "sigma_min": 0.01,
    "sigma_max": 50,
    "rtol": 1e-5,
    "atol": 1e-5,
    "denoise": False,
    "eps": 1e-3,
    "method": "RK45",
    "inverse_scaler": "identity",
}


def check_ode(case: Case, route: str) -> None:
    """By SciPy's solver, whose evaluations are counted; where that is quick by torchdiffeq's, whose result is as far
    off as the recorded one's own error (SPEC.md, section 1). In float32 rounding decides on the steps as well."""
    a = case.arguments(**ODE_DEFAULTS)
    if a["inverse_scaler"] not in SCALERS or a["method"] != "RK45":
        raise ValueError(f"{case.id}: no rule for {a['inverse_scaler']!r} or {a['method']!r}")
    inputs = ("z", "nfe") if case.float32 else ("z",)
    compare(case, replay_ode(case, route, a, "RK45"), case.tolerance, inputs=inputs, label=route)
    if a["rtol"] > TIGHT_SOLVER:
        own = max(case.tolerance, DEFAULT_SOLVER)
        by_torch = replay_ode(case, route, a, "dopri5")
        compare(case, by_torch, own, inputs=("z", "nfe"), label=f"by dopri5, {route}")


def replay_ode(case: Case, route: str, a: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The samples and the number of evaluations; the reference counts the solver's, not that of the last step."""
    sde = get_sde(a["sde"], N=a["N"], **{name: a[name] for name in LIMITS[a["sde"]]})
    network = SdeModel(case.model)
    calls, z = Calls(network), torch.from_numpy(case.arrays["z"])
    sampler = fastdiff.Sampler(
        calls,
        process=SDEProcess(sde, network.continuous),
        prediction="score" if a["sde"] == "ve" else "eps",
        solver="ode",
        timesteps=[1.0, a["eps"]],
        dtype=torch.float32 if case.float32 else torch.float64,
        method=method,
        rtol=a["rtol"],
        atol=a["atol"],
        final="reverse_diffusion" if a["denoise"] else "none",
        **ROUTES[route],
    )
    x = sampler(z.shape, x_init=z.to(sampler.dtype))
    return {"samples": SCALERS[a["inverse_scaler"]](x), "nfe": np.array(len(calls.times) - a["denoise"])}


def check_likelihood(case: Case) -> None:
    """edm/kdiff_ll: the log-likelihood with the recorded probe. `fevals` is not compared: the reference integrates in
    sigma with one error for the batch, ours in log sigma with one for each sample."""
    a = case.arguments(sigma_min=None, sigma_max=None, atol=1e-4, rtol=1e-4)
    data = {name: torch.from_numpy(array) for name, array in case.arrays.items()}
    labels: Tensor | None = data.get("labels")
    got = nll_network(
        Denoiser.of(case),
        data["x0"],
        process=fastdiff.EDM(a["sigma_min"], a["sigma_max"]),
        prediction="x0",
        labels=labels,
        hutchinson=data["v"],
        rtol=a["rtol"],
        atol=a["atol"],
    )
    compare(case, {"log_likelihood": got.logp}, case.tolerance, inputs=("x0", "v", "labels", "fevals"))
