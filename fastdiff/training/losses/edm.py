"""The denoising loss of EDM (Karras et al. 2022, Eq. 8 and table 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .common import Network, call, check_levels, noised, precision, reduce

__all__ = ["edm_loss"]


def edm_loss(
    network: Network,
    x0: Tensor,
    sigma: Tensor,
    noise: Tensor,
    *,
    sigma_data: float = 0.5,
    gamma: Tensor | float | None = None,
    xi: Tensor | None = None,
    perturbed_target: bool = False,
    cond: Mapping[str, Any] | None = None,
) -> Tensor:
    """Weighted error of D(x) = c_skip x + c_out F(c_in x, ln(sigma) / 4) at x = x_0 + sigma z.

    EDM's weight (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 is 1 / c_out^2, so the weighted error is the plain
    error of F against (x_0 - c_skip x) / c_out.

    Args:
        network: the raw network F(x, c_noise, **cond).
        x0: [B, ...] clean samples.
        sigma: [B] noise levels, positive.
        noise: int64 [B] seeds, or z shaped as `x0` (see `perturb`).
        sigma_data: standard deviation of the data, positive.
        gamma: input perturbation, a number or [B] (see `noising_table`).
        xi: as `x0`, with gamma and a given z.
        perturbed_target: the negative control DDPM-y.
        cond: further arguments of the network, say labels.

    Returns:
        [B], the mean over each sample's elements; about 1 for a network that outputs zeros.

    Raises:
        ValueError: an argument of another shape or kind; the message names it.
    """
    sigma, dtype = check_levels("sigma", sigma, x0), precision(x0)
    x, target = noised(
        x0, torch.ones_like(sigma), sigma, "edm", noise, xi,
        gamma=gamma, perturbed_target=perturbed_target, sigma_data=sigma_data,
    )  # fmt: skip
    return reduce((call(network, x, sigma.log() / 4, cond, dtype) - target).square(), mean=True)
