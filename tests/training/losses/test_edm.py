"""The EDM loss against its definition."""

from __future__ import annotations

import pytest
import torch

from fastdiff import EDMPrediction
from fastdiff.process import Level
from fastdiff.training.losses import edm_loss

from ...tolerances import LOSS


def network(x, c_noise, labels=None):
    """Something of both arguments that is cheap and not linear."""
    shift = 0 if labels is None else labels.reshape(-1, 1, 1, 1)
    return torch.tanh(x) * c_noise.reshape(-1, 1, 1, 1) + shift


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [None, 0.2])
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
@pytest.mark.parametrize("labels", [None, torch.tensor([0, 2, 1, 0])])
def test_equals_the_weighted_denoising_error(sigma_data, labels, gamma, dtype):
    generator = torch.Generator().manual_seed(0)
    x0, z, xi = (torch.randn(4, 1, 3, 5, dtype=torch.float64, generator=generator) for _ in range(3))
    sigma = torch.tensor([0.01, 0.3, 2.0, 50.0], dtype=torch.float64)
    loss = edm_loss(
        network, x0.to(dtype), sigma, z.to(dtype), sigma_data=sigma_data,
        gamma=gamma, xi=None if gamma is None else xi.to(dtype), cond=None if labels is None else {"labels": labels},
    )  # fmt: skip
    assert loss.dtype == dtype
    for i, s in enumerate(sigma.tolist()):
        one = slice(i, i + 1)
        c = EDMPrediction(sigma_data).coefficients(Level(1.0, s, s))
        told = c.c_in * (x0[one] + s * (z[one] + (gamma or 0) * xi[one]))
        output = network(told, sigma[one].log() / 4, None if labels is None else labels[one])
        # The target does not know of xi: it is the F whose D, at the unperturbed x, is x0.
        weight = (s**2 + sigma_data**2) / (s * sigma_data) ** 2
        error = c.c_skip * (x0[one] + s * z[one]) + c.c_out * output - x0[one]
        want = weight * error.square().mean().item()
        assert loss[i].item() == pytest.approx(want, rel=LOSS[torch.float32] if dtype == torch.float32 else 1e-9)


def test_is_about_one_for_a_network_that_outputs_zeros():
    x0 = 0.5 * torch.randn(1000, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for level in (0.01, 0.5, 20.0):
        loss = edm_loss(lambda x, _: torch.zeros_like(x), x0, torch.full((1000,), level), torch.arange(1000))
        assert loss.mean().item() == pytest.approx(1.0, rel=0.05)
