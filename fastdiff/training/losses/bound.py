"""The variational bound of a discrete chain, term by term, in bits per dimension (Ho et al. 2020, Eq. 5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import ops
from ...errors import check_choice, check_count
from ...solvers.ddpm import VARIANCES
from ..chain import Chain
from ..perturb import perturb
from .common import per_sample, reduce
from .likelihoods import CDFS, discretized_gaussian_log_likelihood, normal_kl

__all__ = ["PREDICTIONS", "Bound", "ReverseStep", "VBTerms", "calc_bpd", "prior_bpd", "reverse_step", "vb_terms"]

PREDICTIONS = ("eps", "x0", "v", "previous_x")


class ReverseStep(NamedTuple):
    """p(x_(t-1) | x_t), a Gaussian: `mean` and `log_variance`, and the prediction of x_0 behind it; each as x_t."""

    mean: Tensor
    log_variance: Tensor
    pred_xstart: Tensor


class VBTerms(NamedTuple):
    """`bpd` [B], a term of the bound for each sample at its own step, and the prediction of x_0 it comes from."""

    bpd: Tensor
    pred_xstart: Tensor


class Bound(NamedTuple):
    """A bound on the bits per dimension; the columns of [B, T'] go from the noisiest step to the cleanest.

    `total` [B] is `prior` [B] plus the sum of `vb` [B, T']. `xstart_mse` and `mse` [B, T'] are the mean squared errors
    of the predicted x_0 and of the noise that this x_0 stands for.
    """

    total: Tensor
    prior: Tensor
    vb: Tensor
    xstart_mse: Tensor
    mse: Tensor


def check_step(x0: Tensor, t: Tensor, prediction: str, variance: str) -> None:
    """Refuses wrong names, and steps of another dtype or number, before anything is computed."""
    check_choice("prediction", prediction, PREDICTIONS)
    check_choice("variance", variance, VARIANCES)
    if x0.ndim < 2 or t.dtype != torch.int64 or t.shape != x0.shape[:1]:
        came = f"{list(x0.shape)} and {t.dtype} {list(t.shape)}"
        raise ValueError(f"x0 and t must be [B, C, ...] and int64 [B], got {came}")


def check_signal(chain: Chain, prediction: str) -> None:
    """Refuses a zero terminal SNR where x_0 is computed from eps: there x_T says nothing of x_0."""
    if prediction == "eps" and chain.tables.alphas_cumprod[-1] == 0:
        raise ValueError(
            "prediction must be 'x0', 'v' or 'previous_x' for a bound on a chain that ends in pure noise "
            "(alpha = 0: no x_0 follows from eps), got 'eps'"
        )


def split_output(output: Tensor, like: Tensor, variance: str) -> tuple[Tensor, Tensor | None]:
    """The halves of the network's channels: what it predicts and, if it is learned, its variance half."""
    channels = like.shape[1]
    learned = variance.startswith("learned")
    wanted = (like.shape[0], 2 * channels if learned else channels, *like.shape[2:])
    if output.shape != wanted:
        raise ValueError(f"network must return {list(wanted)} with variance={variance!r}, got {list(output.shape)}")
    return output[:, :channels], output[:, channels:] if learned else None


def reverse_step(
    output: Tensor,
    x_t: Tensor,
    t: Tensor,
    chain: Chain,
    *,
    prediction: str = "eps",
    variance: str = "fixed_small",
    clip: bool = True,
) -> ReverseStep:
    """p(x_(t-1) | x_t) of a network's raw output (guided-diffusion's `p_mean_variance`).

    The mean is that of q(x_(t-1) | x_t, x_0) at the predicted x_0 (Ho et al. 2020, Eq. 7), for "previous_x" the output
    itself, which clip then leaves alone. The variances are those of `fastdiff.solvers.ddpm.log_variance`: at step 0,
    where the posterior variance is 0, that of step 1 stands in for it, for fixed_large too.

    Args:
        output: [B, C, ...] or, for a learned variance, [B, 2 C, ...].
        x_t: [B, C, ...].
        t: int64 [B], steps of the chain.
        chain: whose dtype the results have.
        prediction: "eps", "x0", "v" or "previous_x".
        variance: "fixed_small", "fixed_large", "learned" or "learned_range".
        clip: clamp the predicted x_0 to [-1, 1].
    """
    check_step(x_t, t, prediction, variance)
    check_signal(chain, prediction)
    raw, head = split_output(output.to(chain.dtype), x_t, variance)

    def at(name: str) -> Tensor:
        return per_sample(chain(name, t), x_t)

    c1, c2 = at("posterior_mean_coef1"), at("posterior_mean_coef2")
    if prediction == "eps":
        x0 = at("sqrt_recip_alphas_cumprod") * x_t - at("sqrt_recipm1_alphas_cumprod") * raw
    elif prediction == "v":
        x0 = at("sqrt_alphas_cumprod") * x_t - at("sqrt_one_minus_alphas_cumprod") * raw
    elif prediction == "previous_x":
        x0 = (raw - c2 * x_t) / c1
    else:
        x0 = raw
    if clip:
        x0 = x0.clamp(-1, 1)
    mean = raw if prediction == "previous_x" else c1 * x0 + c2 * x_t
    log_variance = at(f"{variance}_log_variance")
    if head is not None:
        log_variance = at(f"{variance}_log_variance_scale") * head + log_variance
    return ReverseStep(mean, log_variance.expand_as(mean), x0)


def vb_terms(
    output: Tensor,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    chain: Chain,
    *,
    prediction: str = "eps",
    variance: str = "fixed_small",
    clip: bool = True,
    cdf: str = "tanh",
    bins: int = 256,
) -> VBTerms:
    """The terms L_(t-1) of the variational bound (Ho et al. 2020, Eq. 5), and L_0 at step 0, in bits per dimension.

    L_(t-1) = KL(q(x_(t-1) | x_t, x_0) || p(x_(t-1) | x_t)); L_0 = -log p(x_0 | x_1), the likelihood of a bin.

    Args:
        output: the network's raw output at x_t.
        x0: [B, C, ...] clean samples in [-1, 1], for L_0 of `bins` values.
        x_t, t, chain, prediction, variance, clip: see `reverse_step`.
        cdf, bins: of L_0, see `discretized_gaussian_log_likelihood`.
    """
    step = reverse_step(output, x_t, t, chain, prediction=prediction, variance=variance, clip=clip)
    x0 = x0.to(chain.dtype)
    c1, c2 = (per_sample(chain(f"posterior_mean_coef{i}", t), x_t) for i in (1, 2))
    divergence = normal_kl(
        c1 * x0 + c2 * x_t,
        per_sample(chain("posterior_log_variance_clipped", t), x_t),
        step.mean,
        step.log_variance,
    )
    decoded = discretized_gaussian_log_likelihood(
        x0, means=step.mean, log_scales=0.5 * step.log_variance, cdf=cdf, bins=bins
    )
    nats = torch.where(t == 0, reduce(-decoded, mean=True), reduce(divergence, mean=True))
    return VBTerms(nats / math.log(2), step.pred_xstart)


def prior_bpd(x0: Tensor, chain: Chain) -> Tensor:
    """L_T = KL(q(x_T | x_0) || N(0, 1)) in bits per dimension, [B] (Ho et al. 2020, Eq. 5); no parameter changes it.

    Args:
        x0: [B, ...].
    """
    last = torch.full((len(x0),), chain.T - 1, device=chain.device)
    mean = per_sample(chain("sqrt_alphas_cumprod", last), x0) * x0.to(chain.dtype)
    nats = normal_kl(mean, per_sample(chain("log_one_minus_alphas_cumprod", last), x0), 0.0, 0.0)
    return reduce(nats, mean=True) / math.log(2)


@torch.no_grad()
def calc_bpd(
    network: Callable[..., Tensor],
    x0: Tensor,
    chain: Chain,
    noise: Tensor,
    *,
    prediction: str = "eps",
    variance: str = "fixed_small",
    clip: bool = True,
    cdf: str = "tanh",
    bins: int = 256,
    cond: Mapping[str, Any] | None = None,
) -> Bound:
    """The variational bound over the whole chain, every term at one draw of its x_t: T' network evaluations.

    Bits per dimension of discrete data: nothing is dequantised, the likelihood of L_0 is that of the bins. The bound of
    a respaced chain is that chain's own, not that of the chain it was taken from.

    Args:
        network: `network(x_t, time, **cond)`, raw output.
        x0: [B, C, ...] data in [-1, 1], of `bins` values (8 bits: 2 k / 255 - 1).
        chain: its steps, tables and dtype.
        noise: int64 [B] seeds, whose draw i is the noise of column i; or [T', B, C, ...] standard normals, one a
            column.
        prediction, variance, clip: see `reverse_step`.
        cdf, bins: see `discretized_gaussian_log_likelihood`.
        cond: further arguments of the network, such as {"labels": labels}.
    """
    check_step(x0, torch.zeros(len(x0), dtype=torch.int64), prediction, variance)
    check_signal(chain, prediction)
    check_choice("cdf", cdf, CDFS)
    check_count("bins", bins, 2)
    seeded = noise.dtype == torch.int64
    wanted = (len(x0),) if seeded else (chain.T, *x0.shape)
    if noise.shape != wanted:
        raise ValueError(f"noise must be int64 [{len(x0)}] or {[chain.T, *x0.shape]}, got {list(noise.shape)}")
    columns = []
    for i, step in enumerate(reversed(range(chain.T))):
        t = torch.full((len(x0),), step, device=chain.device)
        z = ops.normal(noise, x0.shape, i, chain.dtype) if seeded else noise[i]
        x_t, _ = perturb(x0, chain.noising(), t, z)
        output = network(x_t, chain.times[t], **(cond or {}))
        terms = vb_terms(
            output, x0, x_t, t, chain, prediction=prediction, variance=variance, clip=clip, cdf=cdf, bins=bins
        )
        alpha = per_sample(chain("sqrt_alphas_cumprod", t), x0)
        eps = (x_t - alpha * terms.pred_xstart) / per_sample(chain("sqrt_one_minus_alphas_cumprod", t), x0)
        errors = (terms.pred_xstart - x0).square(), (eps - z).square()
        columns.append((terms.bpd, *(reduce(error, mean=True) for error in errors)))
    vb, xstart_mse, mse = (torch.stack(values, 1) for values in zip(*columns))
    prior = prior_bpd(x0, chain)
    return Bound(prior + vb.sum(1), prior, vb, xstart_mse, mse)
