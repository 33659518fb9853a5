"""What the losses of networks told a time, a noise level or its label share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...sde import per_sample
from ..perturb import noising_table, perturb

__all__ = ["Network", "call", "check_levels", "noised", "per_sample", "precision", "reduce"]

Network = Callable[..., Tensor]
"""network(x [B, ...], time [B], **cond) -> raw output, shaped as x."""


def precision(x0: Tensor) -> torch.dtype:
    """The dtype of a loss of these samples: float64 for float64, else float32."""
    return torch.promote_types(x0.dtype, torch.float32)


def check_levels(name: str, levels: Tensor, x0: Tensor, *, integer: bool = False) -> Tensor:
    """One level per sample, on the samples' device: float64, or int64 with `integer`.

    Raises:
        ValueError: another shape, or another kind of number; samples that are bare numbers.
    """
    if x0.ndim < 2:
        raise ValueError(f"x0 must be samples [B, ...], points [B, D] at least, got {list(x0.shape)}")
    kind = "an integer" if integer else "a floating"
    if levels.shape != x0.shape[:1] or levels.is_floating_point() == integer:
        raise ValueError(
            f"{name} must be {kind} tensor [{len(x0)}], one per sample, got {levels.dtype} {list(levels.shape)}"
        )
    return levels.to(x0.device, torch.int64 if integer else torch.float64)


def noised(
    x0: Tensor, alpha: Tensor, sigma: Tensor, target: str, noise: Tensor, xi: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """The network's input and its target: `perturb` by a row for each sample, of `noising_table` with `options`."""
    table = noising_table(alpha, sigma, target, dtype=precision(x0), **options)
    return perturb(x0, table, None, noise, xi)


def call(network: Network, x: Tensor, time: Tensor, cond: Mapping[str, Any] | None, dtype: torch.dtype) -> Tensor:
    """The network's output in `dtype`, the time as it is told: int64, or in `dtype`."""
    told = time.to(dtype) if time.is_floating_point() else time
    output = network(x, told, **(cond or {}))
    if output.shape != x.shape:
        raise ValueError(f"network must return the shape of its input, {list(x.shape)}, got {list(output.shape)}")
    return output.to(dtype)


def reduce(values: Tensor, mean: bool) -> Tensor:
    """[B] of [B, ...]: the mean over each sample's elements, or half their sum (score-SDE's and NCSN's)."""
    flat = values.flatten(1)
    return flat.mean(1) if mean else 0.5 * flat.sum(1)
