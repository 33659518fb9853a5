"""The loss of flow matching along straight lines (Lipman et al. 2023, Eq. 23; Liu et al. 2023, Eq. 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .common import Network, call, check_levels, noised, precision, reduce

__all__ = ["flow_loss"]


def flow_loss(
    network: Network,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    *,
    time_scale: float = 1.0,
    gamma: Tensor | float | None = None,
    xi: Tensor | None = None,
    perturbed_target: bool = False,
    cond: Mapping[str, Any] | None = None,
) -> Tensor:
    """Error of the velocity z - x_0 at x_t = (1 - t) x_0 + t z.

    Args:
        network: called as network(x_t, t * time_scale, **cond).
        x0: [B, ...] clean samples.
        t: [B] times in [0, 1], 1 pure noise.
        noise: int64 [B] seeds, or z shaped as `x0` (see `perturb`).
        gamma, xi, perturbed_target: input perturbation, x_t = (1 - t) x_0 + t (z + gamma xi); as in `edm_loss`.
        cond: further arguments of the network, say labels.

    Returns:
        [B], the mean over each sample's elements.

    Raises:
        ValueError: an argument of another shape or kind; the message names it.
    """
    t, dtype = check_levels("t", t, x0), precision(x0)
    x, target = noised(x0, 1 - t, t, "flow", noise, xi, gamma=gamma, perturbed_target=perturbed_target)
    return reduce((call(network, x, t * time_scale, cond, dtype) - target).square(), mean=True)
