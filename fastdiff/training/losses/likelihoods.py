"""Gaussian likelihoods and divergences, in nats: elementwise, differentiable, in the dtype of what they are given."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import check_choice, check_count

__all__ = ["CDFS", "approx_standard_normal_cdf", "discretized_gaussian_log_likelihood", "normal_kl"]

CDFS = ("tanh", "exact")
FLOOR = 1e-12  # of a probability, in guided-diffusion


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor | float, log_variance2: Tensor | float) -> Tensor:
    """KL(N(mean1, exp(log_variance1)) || N(mean2, exp(log_variance2))) of every element, in nats.

    Args:
        mean1, log_variance1, mean2, log_variance2: of shapes that broadcast; the second pair may be numbers.
    """
    # expm1 keeps the digits where the two variances are nearly equal.
    ratio = log_variance1 - log_variance2
    precision = math.exp(-log_variance2) if isinstance(log_variance2, (int, float)) else (-log_variance2).exp()
    return 0.5 * (ratio.expm1() - ratio + (mean1 - mean2).square() * precision)


def approx_standard_normal_cdf(x: Tensor) -> Tensor:
    """(1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, within 3e-4 of the normal CDF (Page 1977; as in GELU)."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def discretized_gaussian_log_likelihood(
    x: Tensor, *, means: Tensor, log_scales: Tensor, cdf: str = "tanh", bins: int = 256
) -> Tensor:
    """Log probability, in nats, that a Gaussian gives to the bin of a data value (Ho et al. 2020, Eq. 13).

    The bins are, for 8-bit data, x - 1/255 to x + 1/255; that of -1 (x < -0.999) is open below, that of 1 (x > 0.999)
    above.

    Args:
        x: data in [-1, 1]: value k of 0 to bins - 1 as 2 k / (bins - 1) - 1.
        means, log_scales: of the Gaussians, as x; a log scale is the log of the standard deviation.
        cdf: "tanh" as in the code of guided-diffusion, on which published bits per dimension rest: an approximation,
            where no probability is below 1e-12, so that a badly wrong mean costs 27.6 nats and has no gradient.
            "exact": the normal CDF, differences taken of logarithms, with digits and a gradient in the far tails.
        bins: how many values the data has, at least 2.

    Returns:
        As x.
    """
    check_choice("cdf", cdf, CDFS)
    half = 1 / (check_count("bins", bins, 2) - 1)
    if not x.shape == means.shape == log_scales.shape:
        shapes = ", ".join(str(list(value.shape)) for value in (x, means, log_scales))
        raise ValueError(f"x, means and log_scales must have one shape, got {shapes}")
    centred, inverse = x - means, (-log_scales).exp()
    low, high = inverse * (centred - half), inverse * (centred + half)
    edge = 1 - 0.255 * half  # 0.999 for 256 bins
    first, last = x < -edge, x > edge
    if cdf == "exact":
        return _log_mass(low.masked_fill(first, -torch.inf), high.masked_fill(last, torch.inf))
    below, above = approx_standard_normal_cdf(low), approx_standard_normal_cdf(high)
    mass = torch.where(first, above, torch.where(last, 1 - below, above - below))
    return mass.clamp(min=FLOOR).log()


def _log_mass(low: Tensor, high: Tensor) -> Tensor:
    """ln(Phi(high) - Phi(low)) for low < high, either of them possibly infinite."""
    # Phi(high) - Phi(low) = Phi(-low) - Phi(-high): in the tail where both are small, neither has lost digits.
    mirrored = low + high > 0
    near = torch.where(mirrored, -low, high)
    far = torch.where(mirrored, -high, low)
    open_ended = far.isinf()
    top = torch.special.log_ndtr(near)
    # ln(Phi(far) / Phi(near)); a stand-in where Phi(far) is 0, so that no derivative is inf - inf.
    ratio = torch.special.log_ndtr(far.masked_fill(open_ended, 0.0)) - top
    ratio = ratio.masked_fill(open_ended, -1.0)
    return torch.where(open_ended, top, top + (-ratio.expm1()).log())
