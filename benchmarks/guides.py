"""What loops without fastdiff do for discriminator guidance (Kim et al. 2023): grad_x log D / (1 - D) by autograd."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastdiff.process import Level

BETA_MIN, BETA_MAX = 0.1, 20.0
CLIP = math.log((1 - 1e-5) / 1e-5)  # where probabilities are clipped, the gradient is zero


class DiscriminatorGradient:
    """guide(x, level) -> gradient with respect to x, float32.

    Args:
        discriminator: (y in the VP process's scaling, time in [0, 1]) -> logits [B]; its parameters need no gradient.
    """

    def __init__(self, discriminator: nn.Module):
        self.discriminator = discriminator

    def __call__(self, x: Tensor, level: Level, **cond: Tensor) -> Tensor:
        return self.at(x, level.sigma_ve)

    def at(self, x: Tensor, sigma: float) -> Tensor:
        """The gradient at a noise level in VE terms."""
        slope = BETA_MAX - BETA_MIN
        tau = (math.sqrt(BETA_MIN**2 + 2 * slope * math.log1p(sigma**2)) - BETA_MIN) / slope
        scale = 1 / math.sqrt(1 + sigma**2)
        with torch.enable_grad():
            y = (scale * x.detach().float()).requires_grad_()
            logits = self.discriminator(y, torch.full((len(x),), tau, device=x.device))
            (gradient,) = torch.autograd.grad(logits.clamp(-CLIP, CLIP).sum(), y)
        return scale * gradient
