"""Replays score_sde's likelihoods: ddpm/sde_likelihood."""

from __future__ import annotations

import torch

from fastdiff.likelihood import nll_ode
from fastdiff.sde import get_sde, score_fn

from ..tolerances import DEFAULT_SOLVER
from .cases import Case, compare
from .sde_model import SdeModel

# What the recorded inverse scaler makes of -1: SPEC.md, section 5.
LOWEST = {"(x+1)/2": 0.0, "identity": -1.0}
TIGHT_SOLVER = 1e-7
LIMITS = {"ve": ("sigma_min", "sigma_max"), "vp": ("beta_min", "beta_max"), "subvp": ("beta_min", "beta_max")}


def check(case: Case) -> None:
    """With the recorded probe: by scipy's solver, which decides `nfe`; and by ours, if the recorded one ran so tightly
    that its own error is not what is compared (SPEC.md, section 1)."""
    a = case.arguments(
        sde="vp",
        N=1000,
        beta_min=0.1,
        beta_max=20,
        sigma_min=0.01,
        sigma_max=50,
        rtol=1e-5,
        atol=1e-5,
        eps=1e-5,
        method="RK45",
        hutchinson_type="Rademacher",
        inverse_scaler="(x+1)/2",
    )
    if a["method"] != "RK45" or a["hutchinson_type"] not in ("Rademacher", "Gaussian"):
        raise ValueError(f"{case.id}: no rule for {a['method']!r} or {a['hutchinson_type']!r}")
    sde = get_sde(a["sde"], N=a["N"], **{name: a[name] for name in LIMITS[a["sde"]]})
    network = SdeModel(case.model)
    data, probe = (torch.from_numpy(case.arrays[name]) for name in ("data", "hutchinson_eps"))
    if a["hutchinson_type"] == "Rademacher":
        assert bool((probe.abs() == 1).all()), f"{case.id}: its probe is no Rademacher one"
    inputs = ("data", "hutchinson_eps")
    for method in ("RK45", "dopri5"):
        got = nll_ode(
            score_fn(network, sde, continuous=case.model["continuous"]),
            data,
            sde,
            eps=a["eps"],
            hutchinson=probe,
            method=method,
            rtol=a["rtol"],
            atol=a["atol"],
            offset=7 - LOWEST[a["inverse_scaler"]],
        )
        results = {"bpd": got.bpd, "z": got.z, "nfe": got.nfe}
        results["analytic_logp_at_eps_nats"] = network.log_density(data, a["eps"])  # of the stand-in itself
        if method == "RK45":
            compare(case, results, case.tolerance, inputs=inputs)
        else:
            own = max(case.tolerance, 0.0 if a["rtol"] <= TIGHT_SOLVER else DEFAULT_SOLVER)
            compare(case, results, own, inputs=(*inputs, "nfe"), label="by dopri5")
