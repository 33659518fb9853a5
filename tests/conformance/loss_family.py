"""Replays guided-diffusion's losses and likelihoods, and DDPM-IP's (ddpm/SPEC.md, section 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.training.chain import Chain
from fastdiff.training.levels import LossSecondMoment
from fastdiff.training.losses import (
    approx_standard_normal_cdf,
    calc_bpd,
    ddpm_loss,
    discretized_gaussian_log_likelihood,
    normal_kl,
    prior_bpd,
    reverse_step,
    vb_terms,
)
from fastdiff.training.perturb import perturb

from .analytic import DiscreteModel
from .cases import Case, compare
from .ddpm_family import CHAIN_DEFAULTS, PREDICTIONS
from .replay import Calls
from .tables import chain, gaussian_tables

BOUND_DEFAULTS = CHAIN_DEFAULTS | {"rescale_timesteps": False}
LOSS_DEFAULTS = {name: value for name, value in BOUND_DEFAULTS.items() if name != "clip_denoised"} | {
    "loss_type": None,
    "input_perturb_gamma": None,
}


def start(case: Case, **defaults: Any) -> tuple[dict[str, Any], Chain, dict[str, Any], dict[str, Any]]:
    """The reference's arguments, the chain they mean, its recorded tables, and what a loss is told of the network."""
    a = case.arguments(**defaults)
    kept = chain(a["beta_schedule"], a["T"], a["respacing"], a["rescale_timesteps"])
    steps = Chain(*kept, dtype=torch.float32 if case.float32 else torch.float64)
    return a, steps, gaussian_tables(*kept), {"prediction": PREDICTIONS[a["mean_type"]], "variance": a["var_type"]}


def given(case: Case, name: str) -> Tensor:
    """A recorded input in its own dtype, which is the run's."""
    value = torch.from_numpy(case.arrays[name])
    assert value.dtype in (torch.int64, torch.float32 if case.float32 else torch.float64)
    return value


def recorded_calls(calls: Calls) -> dict[str, Tensor]:
    names = {"model_x": calls.inputs, "model_t": calls.times, "model_out": calls.outputs}
    return {name: torch.stack(values) for name, values in names.items()}


def check_loss(case: Case) -> None:
    """gd_losses, ip_losses: the losses of each sample, and the gradient of their sum in the network's output."""
    a, steps, tables, options = start(case, **LOSS_DEFAULTS)
    inputs = ["x0", "t", "noise"]
    if a["input_perturb_gamma"] is not None:
        inputs.append("xi")
        options |= {"gamma": a["input_perturb_gamma"], "xi": given(case, "xi")}
    calls, leaves = Calls(DiscreteModel(case.model)), []

    def network(x: Tensor, time: Tensor) -> Tensor:
        leaves.append(calls(x, time).requires_grad_())
        return leaves[-1]

    x0, t, noise = (given(case, name) for name in inputs[:3])
    result = ddpm_loss(network, x0, t, noise, steps, loss=a["loss_type"], **options)
    result.loss.sum().backward()
    gradients = torch.stack([leaf.grad for leaf in leaves])
    parts = {name: value for name, value in result._asdict().items() if value is not None}
    assert {name for name in ("mse", "vb") if name in case.arrays} == set(parts) - {"loss"}
    got = {**tables, **parts, **recorded_calls(calls), "dsumloss_dmodelout": gradients}
    compare(case, got, case.tolerance, inputs=inputs)


def check_vb_terms(case: Case) -> None:
    """gd_vb_terms: every step of the chain by itself, the cleanest first."""
    a, steps, tables, options = start(case, **BOUND_DEFAULTS)
    options |= {"clip": a["clip_denoised"]}
    x0, noise = given(case, "x0"), given(case, "noise")
    calls = Calls(DiscreteModel(case.model))
    names = "x_t vb_bpd pred_xstart p_mean p_log_variance p_variance q_posterior_mean".split()
    results: dict[str, list[Tensor]] = {name: [] for name in names}
    for i in range(steps.T):
        t = torch.full((len(x0),), i)
        x_t, q_mean = perturb(x0, steps.noising("previous_x"), t, noise[i])
        output = calls(x_t, steps.times[t])
        bpd, x0_of_term = vb_terms(output, x0, x_t, t, steps, **options)
        mean, log_variance, pred_xstart = reverse_step(output, x_t, t, steps, **options)
        assert torch.equal(x0_of_term, pred_xstart)
        # guided-diffusion's variance is 0 at step 0 for fixed_small, though its log variance is finite there.
        fixed = steps("posterior_variance", t).reshape(-1, 1, 1, 1).expand_as(mean)
        p_variance = fixed if a["var_type"] == "fixed_small" else log_variance.exp()
        for name, value in zip(names, (x_t, bpd, pred_xstart, mean, log_variance, p_variance, q_mean)):
            results[name].append(value)
    got = {name: torch.stack(values) for name, values in results.items()}
    got |= {"prior_bpd": prior_bpd(x0, steps), **recorded_calls(calls), **tables}
    compare(case, got, case.tolerance, inputs=("x0", "noise"))


def check_bound(case: Case) -> None:
    """gd_calc_bpd: the bound over the whole chain, the noisiest step first."""
    a, steps, tables, options = start(case, **BOUND_DEFAULTS)
    calls = Calls(DiscreteModel(case.model))
    bound = calc_bpd(calls, given(case, "x0"), steps, given(case, "noise"), clip=a["clip_denoised"], **options)
    renamed = {"total_bpd": bound.total, "prior_bpd": bound.prior}
    got = {**tables, **bound._asdict(), **renamed, **recorded_calls(calls)}
    compare(case, got, case.tolerance, inputs=("x0", "noise"))


def check_unit(case: Case) -> None:
    """gd_unit: the likelihood functions by themselves, and the importance sampler of the steps."""
    function = case.entry["function"]
    if "LossSecondMoment" in function:
        _check_second_moment(case)
    elif "discretized_gaussian_log_likelihood" in function:
        case.arguments()
        x, means, log_scales = (given(case, name) for name in ("x", "means", "log_scales"))
        kl = [given(case, f"kl_{name}") for name in ("mean1", "logvar1", "mean2", "logvar2")]
        got = {
            "log_probs_nats": discretized_gaussian_log_likelihood(x, means=means, log_scales=log_scales),
            "cdf_out": approx_standard_normal_cdf(given(case, "cdf_in")),
            "kl_nats": normal_kl(*kl),
            "kl_vs_standard_normal": normal_kl(*kl[:2], 0.0, 0.0),
        }
        inputs = [name for name in case.arrays if name not in got]
        compare(case, got, case.tolerance, inputs=inputs)
    else:
        raise ValueError(f"{case.id}: no rule for the function {function!r}")


def _check_second_moment(case: Case) -> None:
    a = case.arguments(num_timesteps=None, history_per_term=10, uniform_prob=0.001)
    sampler = LossSecondMoment(a["num_timesteps"], history=a["history_per_term"], uniform_prob=a["uniform_prob"])
    steps, losses = given(case, "ts"), given(case, "losses")
    checkpoints = case.arrays["checkpoints"].tolist()
    weights = {0: sampler.weights()}
    for i in range(len(steps)):
        sampler.update(steps[i : i + 1], losses[i : i + 1])
        weights[i + 1] = sampler.weights()
    p = sampler.probabilities()
    got = {
        "weights": torch.stack([weights[count] for count in checkpoints]),
        "final_p": p,
        "final_importance_weight": 1 / (a["num_timesteps"] * p),
    }
    compare(case, got, case.tolerance, inputs=("ts", "losses", "checkpoints"))
