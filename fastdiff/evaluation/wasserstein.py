"""Sliced Wasserstein distance between two sets of points, by Python Optimal Transport."""

from __future__ import annotations

from importlib import import_module

import torch
from torch import Tensor

from ..errors import check_count

__all__ = ["sliced_wasserstein"]


def sliced_wasserstein(a: Tensor, b: Tensor, *, projections: int = 128, seed: int = 0) -> float:
    """Sliced Wasserstein-2 distance (Bonneel et al. 2015): (mean over directions of W_2^2 of the projections)^(1/2).

    Both sets are projected on the same seeded directions, uniform on the sphere, and compared quantile by quantile.
    Two sets of n points of one distribution are about n^(-1/2) apart.

    Args:
        a: [N, ...] points, N at least 1, real; what follows N is flattened.
        b: [M, ...] points of as many elements each; M may differ from N.
        projections: number of directions.
        seed: of the directions.

    Returns:
        The distance, in the points' units, computed in float64 on the device of `a`; 0 for equal sets.

    Raises:
        ValueError: other shapes, or a point that is not finite.
        ModuleNotFoundError: POT is not installed.
    """
    check_count("projections", projections)
    for name, points in (("a", a), ("b", b)):
        if points.dim() < 2 or not len(points) or points.is_complex():
            raise ValueError(f"{name} must be real points [N, ...] with N at least 1, got {list(points.shape)}")
        if not points.isfinite().all():
            raise ValueError(f"{name} must be finite, got NaN or infinite values")
    a, b = (points.detach().flatten(1).to(a.device, torch.float64) for points in (a, b))
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"a and b must have equally many elements a point, got {a.shape[1]} and {b.shape[1]}")
    try:
        ot = import_module("ot")
    except ModuleNotFoundError as error:
        wanted = "the sliced Wasserstein distance needs POT: pip install 'fastdiff[eval]'"
        raise ModuleNotFoundError(f"{wanted} ({error})", name=error.name) from None
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(a.shape[1], projections, generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=0)
    return float(ot.sliced_wasserstein_distance(a, b, projections=directions.to(a.device)))
