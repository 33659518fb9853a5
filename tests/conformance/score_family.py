"""Replays the losses of NCSN and score-SDE and score-SDE's tables: ddpm/ncsn_losses, sde_losses, sde_tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.sde import SDE, get_sde, score_fn
from fastdiff.training.losses import (
    dsm_loss,
    sde_ddpm_loss,
    sde_loss,
    sliced_terms,
    smld_loss,
    ssm_loss,
    ssm_vr_loss,
)

from .analytic import _vp_mixture, per_sample
from .cases import Case, compare
from .replay import Calls
from .sde_model import SdeModel

LIMITS = {"ve": ("sigma_min", "sigma_max"), "vp": ("beta_min", "beta_max"), "subvp": ("beta_min", "beta_max")}
DEFAULTS = {"sde": None, "N": 1000, "beta_min": 0.1, "beta_max": 20, "sigma_min": 0.01, "sigma_max": 50}


class LabelledScore:
    """The score of a mixture at x = x_0 + sigmas[label] z (`ve_labels`), called as model(x, label); x may be flat."""

    def __init__(self, description: Mapping[str, Any], sigmas: Tensor):
        if (description["kind"], description["target"]) != ("ve_labels", "score"):
            raise ValueError(f"no rule for the model {description['kind']!r} of {description['target']!r}")
        self.mixture, self.sigmas = _vp_mixture(description["mixture"]), sigmas.double()
        self.imperfect = bool(description["imperfect"])

    def __call__(self, x: Tensor, label: Tensor) -> Tensor:
        sigma = self.sigmas[label]
        out = self.mixture.score(x, torch.ones_like(sigma), sigma)
        if self.imperfect:
            out = out + 0.05 * (3 * x.double()).sin() / per_sample(sigma, x)
        return out.to(x.dtype)


def arrays(case: Case) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.asarray(array)) for name, array in case.arrays.items()}


def recorded_calls(case: Case, calls: Calls, repeats: int = 1) -> dict[str, Tensor]:
    """The one call of the network as the reference made it: with each sample once per direction, and its shape."""
    (x,), (label,), (out,) = calls.inputs, calls.times, calls.outputs
    shape = case.arrays["model_x"].shape
    got = {"model_x": x, "model_label": label, "model_out": out}
    tiled = {name: torch.cat([value.detach()] * repeats)[None] for name, value in got.items()}
    return {name: value if name == "model_label" else value.reshape(shape) for name, value in tiled.items()}


# --- NCSN ------------------------------------------------------------------------------------------------------------


def check_ncsn(case: Case) -> None:
    """ddpm/ncsn_losses, by the reference's function."""
    runners: dict[str, Callable[[Case, Calls, dict[str, Tensor]], dict[str, Tensor]]] = {
        "losses.dsm.anneal_dsm_score_estimation": _annealed_dsm,
        "losses.dsm.dsm_score_estimation": _single_dsm,
        "losses.sliced_sm.anneal_sliced_score_estimation_vr": _annealed_ssm_vr,
        "losses.sliced_sm.sliced_score_estimation_vr": _ssm_vr,
        "losses.sliced_sm.sliced_score_estimation": _ssm,
    }
    function = case.entry["function"]
    if function not in runners:
        raise ValueError(f"{case.id}: no rule for the function {function!r}")
    a = arrays(case)
    calls = Calls(LabelledScore(case.model, a["sigmas"]))
    got = runners[function](case, calls, a)
    compare(case, got, case.tolerance, inputs={"samples", "labels", "sigmas", "noise_0", "noise_1"})


def _annealed_dsm(case: Case, calls: Calls, a: dict[str, Tensor]) -> dict[str, Tensor]:
    power = case.arguments(anneal_power=2.0)["anneal_power"]
    loss = dsm_loss(calls, a["samples"], a["labels"], a["noise_0"], a["sigmas"], anneal_power=power)
    return {"loss": loss.mean(), **recorded_calls(case, calls)}


def _single_dsm(case: Case, calls: Calls, a: dict[str, Tensor]) -> dict[str, Tensor]:
    """One noise level, which this network is not told: it answers for its noisiest."""
    sigma = torch.full((len(a["samples"]),), case.arguments(sigma=0.01)["sigma"], dtype=torch.float64)
    zeros = torch.zeros_like(sigma, dtype=torch.int64)
    loss = dsm_loss(lambda x, _: calls(x, zeros), a["samples"], sigma, a["noise_0"], anneal_power=0.0)
    return {"loss": loss.mean(), **recorded_calls(case, calls)}


def _annealed_ssm_vr(case: Case, calls: Calls, a: dict[str, Tensor]) -> dict[str, Tensor]:
    count, v = _projections(case, a["noise_1"], a["samples"])
    loss = ssm_vr_loss(calls, a["samples"], a["labels"], a["noise_0"], a["sigmas"], particles=count, projections=v)
    return {"loss": loss.mean(), **recorded_calls(case, calls, count)}


def _ssm_vr(case: Case, calls: Calls, a: dict[str, Tensor]) -> dict[str, Tensor]:
    x = a["samples"]
    count, v = _projections(case, a["noise_0"], x)
    labels = torch.zeros(len(x), dtype=torch.int64)
    loss = ssm_vr_loss(calls, x, labels, None, annealed=False, particles=count, projections=v)
    terms = sliced_terms(LabelledScore(case.model, a["sigmas"]), x, labels, v)
    return {"loss": loss.mean(), **_named(terms), **recorded_calls(case, calls, count)}


def _ssm(case: Case, calls: Calls, a: dict[str, Tensor]) -> dict[str, Tensor]:
    x = a["samples"]
    count, v = _projections(case, a["noise_0"], x)
    labels = torch.zeros(len(x), dtype=torch.int64)
    loss = ssm_loss(calls, x, labels, None, annealed=False, particles=count, projections=v)
    unit = v / v.square().sum(-1, keepdim=True).sqrt()
    terms = sliced_terms(LabelledScore(case.model, a["sigmas"]), x, labels, unit, variance_reduced=False)
    return {"loss": loss.mean(), **_named(terms), **recorded_calls(case, calls, count)}


def _projections(case: Case, normals: Tensor, x: Tensor) -> tuple[int, Tensor]:
    """[particles, B, ...] of the recorded [particles B, ...]."""
    count = case.arguments(n_particles=1)["n_particles"]
    return count, normals.reshape(count, *x.shape)


def _named(terms: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return {"loss1": terms[0].mean(), "loss2": terms[1].mean()}


# --- score-SDE -------------------------------------------------------------------------------------------------------


def check_sde_losses(case: Case) -> None:
    """ddpm/sde_losses."""
    a = case.arguments(**DEFAULTS, reduce_mean=True, likelihood_weighting=True, eps=1e-5)
    sde, given, function = _sde(a), arrays(case), case.entry["function"]
    calls = Calls(SdeModel(case.model))
    x0, z, mean = given["x0"], given["noise"], a["reduce_mean"]
    if function == "losses.get_sde_loss_fn":
        t = given["u"] * (sde.T - a["eps"]) + a["eps"]
        loss = sde_loss(
            calls, x0, t, z, sde,
            reduce_mean=mean, likelihood_weighting=a["likelihood_weighting"], continuous=case.model["continuous"],
        )  # fmt: skip
    elif a["likelihood_weighting"]:
        raise ValueError(f"{case.id}: no rule for likelihood weighting on a chain")
    elif function == "losses.get_smld_loss_fn":
        loss = smld_loss(calls, x0, given["labels"], z, sde, reduce_mean=mean)
    elif function == "losses.get_ddpm_loss_fn":
        loss = sde_ddpm_loss(calls, x0, given["labels"], z, sde, reduce_mean=mean)
    else:
        raise ValueError(f"{case.id}: no rule for the function {function!r}")
    got = {"loss": loss.mean(), **recorded_calls(case, calls)}
    compare(case, got, case.tolerance, inputs={"x0", "noise", "u", "labels"})


def check_sde_tables(case: Case) -> None:
    """ddpm/sde_tables: every function of time and state, and the chain's tables."""
    sde, given = _sde(case.arguments(**DEFAULTS)), arrays(case)
    x, t = given["x"], given["t"]
    score = score_fn(SdeModel(case.model), sde, case.model["continuous"])(x, t)
    step, noise = sde.discretize(t)
    got = {
        "marginal_mean": per_sample(sde.alpha(t), x) * x,
        "marginal_std": sde.sigma(t),
        "drift": per_sample(sde.drift(t), x) * x,
        "diffusion": sde.diffusion(t),
        "prior_logp": sde.prior_logp(x),
        "discretize_f": per_sample(step, x) * x,
        "discretize_G": noise,
        "score": score,
    }
    for flow in (False, True):
        names = f"rev_drift_pf{flow:d}", f"rev_diffusion_pf{flow:d}", f"rev_f_pf{flow:d}", f"rev_G_pf{flow:d}"
        pairs = [sde.reverse(x, score, t, probability_flow=flow, discrete=discrete) for discrete in (False, True)]
        got |= dict(zip(names, [value for pair in pairs for value in pair]))
    if sde.name == "vp":
        abar = sde.alphas_cumprod
        got |= {
            "discrete_betas": sde.discrete_betas,
            "alphas": 1 - sde.discrete_betas,
            "alphas_cumprod": abar,
            "sqrt_1m_alphas_cumprod": (1 - abar).sqrt(),
        }
    elif sde.name == "ve":
        got["discrete_sigmas"] = sde.discrete_sigmas
    compare(case, got, case.tolerance, inputs={"x", "t"})


def _sde(a: Mapping[str, Any]) -> SDE:
    if a["sde"] not in LIMITS:
        raise ValueError(f"no rule for the SDE {a['sde']!r}")
    return get_sde(a["sde"], N=a["N"], **{name: a[name] for name in LIMITS[a["sde"]]})
