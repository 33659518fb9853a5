"""How weights start; a checkpoint's do not depend on it."""

from __future__ import annotations

import math

from torch import Tensor, nn

__all__ = ["variance_scaling_", "zero_"]

MODES = ("fan_in", "fan_avg")
DISTRIBUTIONS = ("uniform", "normal")


def variance_scaling_(
    weight: Tensor, scale: float = 1.0, mode: str = "fan_avg", distribution: str = "uniform"
) -> Tensor:
    """Fills with independent numbers of mean 0 and variance scale / fan (He et al. 2015; Ho et al. 2020 with fan_avg).

    Args:
        weight: [out, in, ...] of a linear layer or a convolution; on the device "meta" it stays as it is.
        scale: not negative; 0 is zeros.
        mode: "fan_in" or "fan_avg" (the mean of inputs and outputs); distribution: "uniform" or "normal".

    Raises:
        ValueError: an unknown mode or distribution, or a negative scale.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution must be one of {', '.join(DISTRIBUTIONS)}, got {distribution!r}")
    if not 0.0 <= scale < math.inf:
        raise ValueError(f"scale must be finite and not negative, got {scale}")
    if weight.is_meta:
        return weight
    if scale == 0:
        return nn.init.zeros_(weight)
    inputs, outputs = (side * math.prod(weight.shape[2:]) for side in (weight.shape[1], weight.shape[0]))
    deviation = math.sqrt(scale / (inputs if mode == "fan_in" else (inputs + outputs) / 2))
    if distribution == "normal":
        return nn.init.normal_(weight, 0.0, deviation)
    return nn.init.uniform_(weight, -math.sqrt(3) * deviation, math.sqrt(3) * deviation)


def zero_(module: nn.Module) -> nn.Module:
    """Sets every parameter of `module` to zero, so that its branch adds nothing at the start."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
