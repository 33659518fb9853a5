"""Score matching: denoising (Vincent 2011, NCSN) and sliced (Song et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ... import ops
from ...errors import check_choice, check_count
from .common import Network, call, check_levels, noised, per_sample, precision, reduce

__all__ = ["DIRECTIONS", "dsm_loss", "sliced_terms", "ssm_loss", "ssm_vr_loss"]

DIRECTIONS = ("gaussian", "rademacher", "sphere")
FIRST_DRAW = 2  # of the directions; 0 and 1 are z and xi of the perturbation


def dsm_loss(
    score: Network,
    x0: Tensor,
    levels: Tensor,
    noise: Tensor,
    sigmas: Tensor | None = None,
    *,
    anneal_power: float = 2.0,
    gamma: Tensor | float | None = None,
    xi: Tensor | None = None,
    perturbed_target: bool = False,
    cond: Mapping[str, Any] | None = None,
) -> Tensor:
    """1/2 |s + z / sigma|^2 sigma^anneal_power at x = x_0 + sigma z, summed over elements.

    Vincent 2011, Eq. 9 (anneal_power 0); Song & Ermon 2019, Eq. 5-6 (anneal_power 2).

    Args:
        score: s(x, level, **cond).
        x0: [B, ...] clean samples.
        levels: with `sigmas`, int64 [B] indices into them; without, the noise levels themselves, [B], positive. The
            network is told what is given here.
        noise: int64 [B] seeds, or z shaped as `x0` (see `perturb`).
        sigmas: [L] noise levels.
        anneal_power: of the weight.
        gamma, xi, perturbed_target: input perturbation, as in `edm_loss`.
        cond: further arguments of the network, say labels.

    Returns:
        [B].

    Raises:
        ValueError: an argument of another shape or kind; the message names it.
    """
    dtype, (levels, sigma) = precision(x0), _sigma(levels, sigmas, x0)
    x, z = noised(x0, torch.ones_like(sigma), sigma, "eps", noise, xi, gamma=gamma, perturbed_target=perturbed_target)
    error = per_sample(sigma, x).to(dtype) * call(score, x, levels, cond, dtype) + z  # sigma s + z
    return reduce(error.square(), mean=False) * sigma.pow(anneal_power - 2).to(dtype)


def ssm_loss(
    score: Network,
    x0: Tensor,
    levels: Tensor,
    noise: Tensor | None,
    sigmas: Tensor | None = None,
    *,
    annealed: bool = True,
    particles: int = 1,
    directions: str = "sphere",
    projections: Tensor | None = None,
    cond: Mapping[str, Any] | None = None,
) -> Tensor:
    """Sliced score matching: 1/2 (v . s)^2 + v . grad (v . s), averaged over directions v (Song et al. 2019, Eq. 7).

    Annealed, it is taken at x = x_0 + sigma z and weighted by sigma^2; otherwise at x_0 itself. Training it takes a
    second derivative through the network, so attention runs in its plain form here.

    Args:
        score: s(x, level, **cond), twice differentiable.
        x0: [B, ...] samples.
        levels, sigmas: as in `dsm_loss`; without `annealed`, what the network is told of a level.
        noise: int64 [B] seeds, of the perturbation and of the directions; or z shaped as `x0`, with `projections`; or
            None, with `projections` and without `annealed`.
        particles: directions per sample. The network is evaluated once, and differentiated once per direction.
        directions: "gaussian", "rademacher" (their signs) or "sphere" (of length 1: a loss smaller by the dimension).
        projections: [particles, B, ...] normals, in place of drawn ones (draws 2, 3, ... of the seeds).
        cond: further arguments of the network, say labels.

    Returns:
        [B].

    Raises:
        ValueError: an argument of another shape or kind; the message names it.
    """
    return _sliced(score, x0, levels, noise, sigmas, annealed, particles, directions, projections, cond, False)


def ssm_vr_loss(
    score: Network,
    x0: Tensor,
    levels: Tensor,
    noise: Tensor | None,
    sigmas: Tensor | None = None,
    *,
    annealed: bool = True,
    particles: int = 1,
    directions: str = "gaussian",
    projections: Tensor | None = None,
    cond: Mapping[str, Any] | None = None,
) -> Tensor:
    """Sliced score matching with less variance: 1/2 |s|^2 + v . grad (v . s) (Song et al. 2019, Eq. 8).

    The first term is exact, so directions must have the identity as their covariance ("gaussian" or "rademacher").
    Otherwise as `ssm_loss`.
    """
    check_choice("directions", directions, ("gaussian", "rademacher"))
    return _sliced(score, x0, levels, noise, sigmas, annealed, particles, directions, projections, cond, True)


def sliced_terms(
    score: Network,
    x: Tensor,
    time: Tensor,
    directions: Tensor,
    *,
    variance_reduced: bool = True,
    cond: Mapping[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """The two terms of sliced score matching at x, each averaged over directions.

    Args:
        score: s(x, time, **cond).
        x: [B, ...] where the score is matched.
        time: [B], what the network is told.
        directions: [P, B, ...].
        variance_reduced: the first term is 1/2 |s|^2 rather than 1/2 (v . s)^2.

    Returns:
        (1/2 |s|^2 or 1/2 (v . s)^2, v . J v with J the Jacobian of s), [B] each, in the dtype of x, at least float32.
        With gradients off, the result has none.
    """
    training = torch.is_grad_enabled()
    dtype, count = precision(x), len(directions)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        x = x.detach().requires_grad_()
        output = call(score, x, time, cond, dtype)
        half = torch.zeros(len(x), dtype=dtype, device=x.device)
        trace = torch.zeros_like(half)
        for i, v in enumerate(directions.to(dtype)):
            along = (output * v).flatten(1).sum(1)
            (slope,) = torch.autograd.grad(
                along.sum(), x, create_graph=training, retain_graph=training or i + 1 < count
            )
            trace = trace + (slope * v).flatten(1).sum(1) / count
            half = half if variance_reduced else half + along.square() / (2 * count)
        half = reduce(output.square(), mean=False) if variance_reduced else half
    return (half, trace) if training else (half.detach(), trace.detach())


def _sliced(
    score: Network,
    x0: Tensor,
    levels: Tensor,
    noise: Tensor | None,
    sigmas: Tensor | None,
    annealed: bool,
    particles: int,
    directions: str,
    projections: Tensor | None,
    cond: Mapping[str, Any] | None,
    variance_reduced: bool,
) -> Tensor:
    v = _directions(x0, noise, check_count("particles", particles), directions, projections)
    if not annealed:
        levels = check_levels("levels", levels, x0, integer=not levels.is_floating_point())
        return torch.stack(sliced_terms(score, x0, levels, v, variance_reduced=variance_reduced, cond=cond)).sum(0)
    if noise is None:
        raise ValueError("noise must be given with annealed=True, got None")
    levels, sigma = _sigma(levels, sigmas, x0)
    x, _ = noised(x0, torch.ones_like(sigma), sigma, "eps", noise)
    half, trace = sliced_terms(score, x, levels, v, variance_reduced=variance_reduced, cond=cond)
    return (half + trace) * sigma.square().to(half.dtype)


def _sigma(levels: Tensor, sigmas: Tensor | None, x0: Tensor) -> tuple[Tensor, Tensor]:
    """(what the network is told, sigma), [B] each."""
    levels = check_levels("levels", levels, x0, integer=sigmas is not None)
    return levels, levels if sigmas is None else sigmas.to(x0.device, torch.float64)[levels]


def _directions(x0: Tensor, noise: Tensor | None, particles: int, kind: str, normals: Tensor | None) -> Tensor:
    """[particles, B, ...], of the noise's draws 2, 3, ... or of given normals."""
    check_choice("directions", kind, DIRECTIONS)
    if normals is None:
        if noise is None or noise.dtype != torch.int64:
            raise ValueError("projections must be given without noise seeds, got None")
        draws = range(FIRST_DRAW, FIRST_DRAW + particles)
        normals = torch.stack([ops.normal(noise, x0.shape, draw) for draw in draws])
    elif normals.shape != (particles, *x0.shape):
        wanted = [particles, *x0.shape]
        raise ValueError(f"projections must be {wanted} (particles, then as the samples), got {list(normals.shape)}")
    if kind == "rademacher":
        return torch.where(normals < 0, -1.0, 1.0).to(normals.dtype)
    if kind == "sphere":
        length = torch.linalg.vector_norm(normals.flatten(2), dim=2)
        return normals / length.reshape(*length.shape, *(1,) * (x0.ndim - 1))
    return normals
