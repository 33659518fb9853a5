"""The losses of score-SDE (Song et al. 2021): continuous in time, and those of the two discrete chains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...sde import SDE, VESDE, VPSDE
from .common import Network, call, check_levels, noised, per_sample, precision, reduce

__all__ = ["sde_ddpm_loss", "sde_loss", "smld_loss"]


def sde_loss(
    network: Network,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    sde: SDE,
    *,
    reduce_mean: bool = True,
    likelihood_weighting: bool = False,
    continuous: bool = True,
    gamma: Tensor | float | None = None,
    xi: Tensor | None = None,
    perturbed_target: bool = False,
    cond: Mapping[str, Any] | None = None,
) -> Tensor:
    """Denoising score matching at x_t = alpha(t) x_0 + sigma(t) z, of the score s that the output stands for.

    The error is |sigma s + z|^2 (Song et al. 2021, Eq. 7 with lambda = sigma^2), or g^2 |s + z / sigma|^2 with
    likelihood weighting (Song et al. 2021, "Maximum likelihood training", theorem 1).

    Args:
        network: with score-SDE's conventions (see `SDE.label` and `SDE.score_factor`), called as
            network(x_t, label, **cond).
        x0: [B, ...] clean samples.
        t: [B] times in (0, 1]; score-SDE draws them uniformly from `SDE.training_eps` on.
        noise: int64 [B] seeds, or z shaped as `x0` (see `perturb`).
        sde: VESDE, VPSDE or subVPSDE.
        reduce_mean: the mean over elements; False: half the sum.
        continuous: False for a network with the conventions of the chain of N steps.
        gamma, xi, perturbed_target: input perturbation, as in `edm_loss`.
        cond: further arguments of the network, say labels.

    Returns:
        [B].

    Raises:
        ValueError: an argument of another shape or kind; the message names it.
    """
    t, dtype = check_levels("t", t, x0), precision(x0)
    sigma = sde.sigma(t)
    x, z = noised(x0, sde.alpha(t), sigma, "eps", noise, xi, gamma=gamma, perturbed_target=perturbed_target)
    output = call(network, x, sde.label(t, continuous), cond, dtype)
    error = output * per_sample(sigma * sde.score_factor(t, continuous), x).to(dtype) + z  # sigma s + z
    loss = reduce(error.square(), reduce_mean)
    return loss * (sde.diffusion(t) / sigma).square().to(dtype) if likelihood_weighting else loss


def smld_loss(
    network: Network,
    x0: Tensor,
    labels: Tensor,
    noise: Tensor,
    sde: VESDE,
    *,
    reduce_mean: bool = True,
    gamma: Tensor | float | None = None,
    xi: Tensor | None = None,
    perturbed_target: bool = False,
    cond: Mapping[str, Any] | None = None,
) -> Tensor:
    """|s + z / sigma|^2 sigma^2 at x = x_0 + sigma z, sigma of a VE chain of N levels (Song et al. 2021, Eq. 1).

    Args:
        network: the score s(x, label, **cond).
        labels: int64 [B], 0 to N - 1 from the noisiest level.

    The other arguments, the result and the errors are those of `sde_loss`.
    """
    labels, dtype = check_levels("labels", labels, x0, integer=True), precision(x0)
    sigma = sde.table("discrete_sigmas", x0.device)[sde.N - 1 - labels]
    x, z = noised(x0, torch.ones_like(sigma), sigma, "eps", noise, xi, gamma=gamma, perturbed_target=perturbed_target)
    error = per_sample(sigma, x).to(dtype) * call(network, x, labels, cond, dtype) + z
    return reduce(error.square(), reduce_mean)


def sde_ddpm_loss(
    network: Network,
    x0: Tensor,
    labels: Tensor,
    noise: Tensor,
    sde: VPSDE,
    *,
    reduce_mean: bool = True,
    gamma: Tensor | float | None = None,
    xi: Tensor | None = None,
    perturbed_target: bool = False,
    cond: Mapping[str, Any] | None = None,
) -> Tensor:
    """|output - z|^2 on a VP chain of N steps, DDPM's simple loss as score-SDE has it (Song et al. 2021, Eq. 3).

    `ddpm_loss` is the same with DDPM's other predictions, variances and weights; this one has score-SDE's reduction.

    Args:
        network: predicts z, called as network(x, label, **cond).
        labels: int64 [B], 0 to N - 1 from the cleanest step.

    The other arguments, the result and the errors are those of `sde_loss`.
    """
    labels, dtype = check_levels("labels", labels, x0, integer=True), precision(x0)
    alpha_bar = sde.table("alphas_cumprod", x0.device)[labels]
    x, z = noised(
        x0, alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), "eps", noise, xi, gamma=gamma, perturbed_target=perturbed_target
    )
    return reduce((call(network, x, labels, cond, dtype) - z).square(), reduce_mean)
