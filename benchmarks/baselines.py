"""What everyone else runs, written from the papers' formulas in the style of the official codes.

Each is the arithmetic between network calls only: the network's output is an argument.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def edm_heun_step(x: Tensor, first: Tensor, second: Tensor, t_hat: Tensor, t_next: Tensor, draw: bool) -> Tensor:
    """One step of EDM's Algorithm 2 with S_churn = 0: float64 state, levels as 0-d tensors, slopes written out.

    `draw=True` is the sampler as published: a float64 normal is drawn for every step even when it is multiplied by 0.
    """
    x_hat = x + (t_hat**2 - t_hat**2).sqrt() * 1.0 * torch.randn_like(x) if draw else x
    x_hat.to(torch.float32)  # the network's input
    d_cur = (x_hat - first.to(torch.float64)) / t_hat
    x_next = x_hat + (t_next - t_hat) * d_cur
    x_next.to(torch.float32)
    d_prime = (x_next - second.to(torch.float64)) / t_next
    return x_hat + (t_next - t_hat) * (0.5 * d_cur + 0.5 * d_prime)


class GuidedDiffusionStep:
    """One ancestral step, learned-range variance, clipping; NumPy tables uploaded at every lookup, as published."""

    def __init__(self, q) -> None:  # type: ignore[no-untyped-def]
        self.q = q

    def _extract(self, table: np.ndarray, t: Tensor, x: Tensor) -> Tensor:
        values = torch.from_numpy(table).to(x.device)[t].float()
        return values.reshape(-1, *[1] * (x.ndim - 1)).expand(x.shape)

    def __call__(self, x: Tensor, output: Tensor, t: Tensor) -> Tensor:
        q = self.q
        eps, v = output.chunk(2, dim=1)
        low = self._extract(q.posterior_log_variance_clipped, t, x)
        high = self._extract(np.log(q.betas), t, x)
        fraction = (v + 1) / 2
        log_variance = fraction * high + (1 - fraction) * low
        x0 = self._extract(q.sqrt_recip_alphas_cumprod, t, x) * x
        x0 = x0 - self._extract(q.sqrt_recipm1_alphas_cumprod, t, x) * eps
        x0 = x0.clamp(-1, 1)
        mean = self._extract(q.posterior_mean_coef1, t, x) * x0 + self._extract(q.posterior_mean_coef2, t, x) * x
        nonzero = (t != 0).float().reshape(-1, *[1] * (x.ndim - 1))
        return mean + nonzero * torch.exp(0.5 * log_variance) * torch.randn_like(x)


def ancestral_update(x: Tensor, eps: Tensor, a: Tensor, b: Tensor, std: Tensor) -> Tensor:
    """a x + b eps + std z: the leanest eager noise-injecting step."""
    return a * x + b * eps + std * torch.randn_like(x)


def noise_batch(x0: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, gamma: float | None) -> tuple[Tensor, Tensor]:
    """x_t and the noise, as training loops write it; with gamma, DDPM-IP's (Ning et al. 2023, algorithm 2)."""
    noise = torch.randn_like(x0)
    moved = noise if gamma is None else noise + gamma * torch.randn_like(x0)
    shape = (-1, *[1] * (x0.ndim - 1))
    return alpha[t].reshape(shape) * x0 + sigma[t].reshape(shape) * moved, noise


def noise_batch_into(
    out: list[Tensor], x0: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, gamma: float | None
) -> tuple[Tensor, Tensor]:
    """The same into given tensors, with the fewest operations: the best that PyTorch has."""
    state, noise, other = out
    moved = noise.normal_()
    if gamma is not None:
        moved = torch.add(noise, other.normal_(), alpha=gamma, out=other)
    shape = (-1, *[1] * (x0.ndim - 1))
    return torch.mul(x0, alpha[t].reshape(shape), out=state).addcmul_(moved, sigma[t].reshape(shape)), noise
