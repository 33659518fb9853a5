"""The objectives of DDPM, improved DDPM and DDPM-IP on a discrete chain."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import check_choice
from ..chain import Chain
from ..perturb import perturb
from .bound import check_signal, check_step, split_output, vb_terms
from .common import reduce

__all__ = ["LOSSES", "WEIGHTINGS", "DDPMLosses", "ddpm_loss"]

LOSSES = ("mse", "rescaled_mse", "kl", "rescaled_kl")
WEIGHTINGS = ("L_t",)


class DDPMLosses(NamedTuple):
    """Per sample, [B]: `loss` is what is minimised; of the mse losses also its part `mse` and, learned, `vb`."""

    loss: Tensor
    mse: Tensor | None = None
    vb: Tensor | None = None


def ddpm_loss(
    network: Callable[..., Tensor],
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    chain: Chain,
    *,
    prediction: str = "eps",
    variance: str = "fixed_small",
    loss: str = "mse",
    weighting: str | None = None,
    gamma: Tensor | float | None = None,
    xi: Tensor | None = None,
    perturbed_target: bool = False,
    cdf: str = "tanh",
    bins: int = 256,
    cond: Mapping[str, Any] | None = None,
) -> DDPMLosses:
    """The loss of every sample at its own step: x_t = alpha x_0 + sigma (z + gamma xi), F = network(x_t, time).

    - "mse": mean (F - target)^2 over a sample's elements. The target is z ("eps", Ho et al. 2020, Eq. 14), x_0 ("x0"),
      alpha z - sigma x_0 ("v", Salimans & Ho 2022) or the mean of q(x_(t-1) | x_t, x_0) ("previous_x"). With a learned
      variance it is L_hybrid of Nichol & Dhariwal 2021, Eq. 16: plus the term of the variational bound at t, in bits
      per dimension.
    - "rescaled_mse": the same with the bound's term times T'/1000.
    - "kl", "rescaled_kl": the term of the variational bound at t, in bits per dimension; times T', so that its mean
      over uniform t estimates the full bound without the prior term, L_vlb (Nichol & Dhariwal 2021, Eq. 4).

    guided-diffusion's ways, kept: in the hybrid losses the bound's term sees the prediction detached, so that it trains
    the variance alone, and x_0 is nowhere clipped to [-1, 1] (in `calc_bpd` it is). T' is the length of the *respaced*
    chain, so the factor is 1 for T' = 1000, 4 for 4000 and 0.01 for 10 steps; the paper's lambda = 0.001 is for the sum
    over t, T' times this term. At step 0, where the posterior variance is 0, every variance that is not learned freely
    starts from that of step 1.

    Input perturbation (DDPM-IP, Ning et al. 2023, Algorithm 2): with gamma the network sees z + gamma xi, and the
    target stays z; "previous_x" and the bound's term take the posterior at the perturbed x_t.

    Args:
        network: `network(x_t, time, **cond)`, raw output [B, C, ...], twice the channels for a learned variance.
        x0: [B, C, ...] clean samples; where the bound's term is used, in [-1, 1] and of `bins` values.
        t: int64 [B], steps of the chain, 0 the cleanest.
        noise: int64 [B] seeds, or z itself, as x0.
        chain: tables, times and dtype of the loss.
        prediction: "eps", "x0", "v" or "previous_x".
        variance: "fixed_small", "fixed_large", "learned" or "learned_range".
        loss: see above.
        weighting: None, or "L_t" for mse losses with a fixed variance: times the factor that makes the squared error
            the term L_(t-1) of the bound, in bits per dimension (Ho et al. 2020, Eqs. 8 and 12; at step 0 that of a
            Gaussian decoder, where "kl" has the likelihood of a bin). Without gamma, equal to "kl" at t > 0
            for fixed_small, and for fixed_large but for a constant of each t.
        gamma: None, a number or [T'] (`input_perturbation`); 0 draws xi and adds nothing.
        xi: as x0, with a given z and gamma.
        perturbed_target: with gamma, DDPM-y: the target holds z + gamma xi too (the negative control of Ning et al.
            2023, section 5).
        cdf, bins: of the likelihood at step 0, see `discretized_gaussian_log_likelihood`.
        cond: further arguments of the network, such as {"labels": labels}.

    Raises:
        ValueError: a name that is not one of the above, arguments that exclude each other, or another shape.
    """
    check_step(x0, t, prediction, variance)
    check_choice("loss", loss, LOSSES)
    bounded, learned = loss.endswith("kl"), variance.startswith("learned")
    if weighting is not None:
        check_choice("weighting", weighting, WEIGHTINGS)
        if bounded or learned:
            raise ValueError(
                f"weighting must be None with loss={loss!r} and variance={variance!r} (it is for mse losses with a "
                f"fixed variance), got {weighting!r}"
            )
    if perturbed_target and (gamma is None or bounded):
        raise ValueError(f"perturbed_target needs gamma and a loss with a target, got gamma={gamma!r}, loss={loss!r}")
    if bounded or learned or weighting:
        check_signal(chain, prediction)

    x_t, target = perturb(x0, chain.noising(prediction, gamma, perturbed_target), t, noise, xi)
    output = network(x_t, chain.times[t], **(cond or {})).to(chain.dtype)

    def bound_term(output: Tensor) -> Tensor:
        return vb_terms(
            output, x0, x_t, t, chain, prediction=prediction, variance=variance, clip=False, cdf=cdf, bins=bins
        ).bpd

    if bounded:
        term = bound_term(output)
        return DDPMLosses(term * chain.T if loss == "rescaled_kl" else term)
    predicted, head = split_output(output, x0, variance)
    mse = reduce((predicted - target).square(), mean=True)
    if weighting:
        mse = mse * _bound_weight(t, chain, prediction, variance)
    if head is None:
        return DDPMLosses(mse, mse)
    vb = bound_term(torch.cat([predicted.detach(), head], 1))
    if loss == "rescaled_mse":
        vb = vb * (chain.T / 1000)
    return DDPMLosses(mse + vb, mse, vb)


def _bound_weight(t: Tensor, chain: Chain, prediction: str, variance: str) -> Tensor:
    """[B]: (d mean / d output)^2 / (2 variance ln 2), the weight of a squared error of the output in L_(t-1)."""
    slope = torch.ones_like(chain("betas", t)) if prediction == "previous_x" else chain("posterior_mean_coef1", t)
    if prediction == "eps":
        slope = slope * chain("sqrt_recipm1_alphas_cumprod", t)
    elif prediction == "v":
        slope = slope * chain("sqrt_one_minus_alphas_cumprod", t)
    return slope.square() * (-chain(f"{variance}_log_variance", t)).exp() / (2 * math.log(2))
