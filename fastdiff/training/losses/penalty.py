"""The gradient penalty: the size of a network's Jacobian, by first-order gradients only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from ... import ops
from ...errors import check_positive

__all__ = ["gradient_penalty"]


def gradient_penalty(
    network: Callable[..., Tensor],
    x: Tensor,
    time: Tensor,
    output: Tensor | None,
    directions: Tensor,
    *,
    delta: float = 1e-2,
    draw: int = 2,
    cond: Mapping[str, Any] | None = None,
) -> Tensor:
    """An estimate of |dF/dx|_F^2, the squared Frobenius norm of every sample's Jacobian, from one direction.

    E |J v|^2 = |J|_F^2 for v with E[v v^T] = I (Hutchinson 1990; Hoffman et al. 2019), and J v is taken as
    (F(x + delta v) - F(x)) / delta, so that one more evaluation and an ordinary backward pass are enough: the product
    J v itself would need the graph of a derivative. The error is of order delta^2 in expectation, as odd moments of v
    vanish. This is the regulariser that Ning et al. 2023 compare input perturbation with: a Lipschitz prediction makes
    less of a state that is off.

    Both evaluations are done in the parameters' own precision: under autocast, bfloat16's rounding divided by delta
    would be larger than the derivative. They also see the same dropout mask, for the same reason.

    Args:
        network: `network(x, time, **cond)`, a module or any callable.
        x: [B, ...] the network's input.
        time: [B] what the network is told.
        output: F(x), with its graph, if it is at hand. None evaluates it here, and so do autocast and a module with
            dropout. A callable that hides dropout needs None.
        directions: v, as `x`, of independent elements with mean 0 and variance 1; or int64 [B] seeds, of which `draw`
            gives v (normals).
        delta: step of the difference, in the units of `x`.
        draw: of the seeds; 0 and 1 are the noise and the input perturbation.
        cond: further arguments of the network.

    Returns:
        [B], summed over the elements of x and of F. Of an output with twice the channels of `x` (dim 1), a learned
        variance, only the first half counts.

    Raises:
        ValueError: `delta` is not positive, or `directions` has another shape.
    """
    check_positive("delta", delta)
    if directions.dtype == torch.int64:
        directions = ops.normal(directions, x.shape, draw, x.dtype)
    elif directions.shape != x.shape:
        raise ValueError(f"directions must be {list(x.shape)} or int64 seeds [B], got {list(directions.shape)}")
    conditions = cond or {}
    rng_devices = [x.device] if x.device.type == "cuda" else []
    if _has_dropout(network) or torch.is_autocast_enabled(x.device.type):
        output = None
    with torch.autocast(x.device.type, enabled=False):
        if output is None:
            with torch.random.fork_rng(rng_devices):  # the second evaluation starts where this one did
                output = network(x, time, **conditions)
        moved = network(x + delta * directions, time, **conditions)
    difference = (moved - output) / delta
    if difference.shape[1:] == (2 * x.shape[1], *x.shape[2:]):
        difference = difference[:, : x.shape[1]]
    return difference.square().flatten(1).sum(1)


def _has_dropout(network: Callable[..., Tensor]) -> bool:
    """Whether a module drops anything now."""
    modules = network.modules() if isinstance(network, nn.Module) else ()
    return any(isinstance(part, _DropoutNd) and part.training and part.p > 0 for part in modules)
