"""The denoising loss of EDM (Karras et al. 2022, equation 8 and table 1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["draw_sigma", "edm_loss"]


def draw_sigma(batch: int, P_mean: float = -1.2, P_std: float = 1.2, device: torch.device | str = "cpu") -> Tensor:
    """float32 [batch] noise levels: ln(sigma) is normal with mean `P_mean` and standard deviation `P_std`."""
    return torch.exp(P_mean + P_std * torch.randn(batch, device=device))


def edm_loss(
    network: Callable[..., Tensor],
    images: Tensor,
    sigma: Tensor,
    noise: Tensor,
    labels: Tensor | None = None,
    sigma_data: float = 0.5,
) -> Tensor:
    """Weighted error of `D(x) = c_skip x + c_out F(c_in x, ln(sigma) / 4)` at `x = images + sigma noise`.

    EDM's weight `(sigma^2 + sigma_data^2) / (sigma sigma_data)^2` is `1 / c_out^2`, so the weighted error is
    the plain error of F against the target `(images - c_skip x) / c_out`, written here without a division by
    a small sigma: `(sigma images - sigma_data^2 noise) / (sigma_data sqrt(sigma^2 + sigma_data^2))`.

    Args:
        network: raw network `F(x, c_noise, labels=...)`; `labels` is passed only when given.
        images: [B, ...] clean samples.
        sigma: [B] noise levels, positive.
        noise: as `images`, standard normal.
        labels: int64 [B] or None.
        sigma_data: standard deviation of the data, positive.

    Returns:
        float32 [B], the mean over each sample's elements; about 1 for a network that outputs zeros.
    """
    level = sigma.reshape(-1, *[1] * (images.dim() - 1))
    total = (level.square() + sigma_data**2).sqrt()
    target = (level * images - sigma_data**2 * noise) / (sigma_data * total)
    conditions = {} if labels is None else {"labels": labels}
    output = network((images + level * noise) / total, sigma.log() / 4, **conditions)
    return (output.float() - target.float()).square().flatten(1).mean(1)
