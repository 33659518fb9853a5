"""The EDM loss against its definition."""

from __future__ import annotations

import pytest
import torch

from fastdiff import EDMPrediction
from fastdiff.process import Level
from fastdiff.training import draw_sigma, edm_loss


def network(x, c_noise, labels=None):
    """Something of both arguments that is cheap and not linear."""
    shift = 0 if labels is None else labels.reshape(-1, 1, 1, 1)
    return torch.tanh(x) * c_noise.reshape(-1, 1, 1, 1) + shift


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
@pytest.mark.parametrize("labels", [None, torch.tensor([0, 2, 1, 0])])
def test_equals_the_weighted_denoising_error(sigma_data, labels):
    torch.manual_seed(0)
    images = torch.rand(4, 1, 3, 3, dtype=torch.float64) * 2 - 1
    noise = torch.randn_like(images)
    sigma = torch.tensor([0.01, 0.3, 2.0, 50.0], dtype=torch.float64)
    loss = edm_loss(network, images, sigma, noise, labels, sigma_data)
    for i, s in enumerate(sigma.tolist()):
        x = images[i : i + 1] + s * noise[i : i + 1]
        c = EDMPrediction(sigma_data).coefficients(Level(1.0, s, s))
        kind = None if labels is None else labels[i : i + 1]
        denoised = c.c_skip * x + c.c_out * network(c.c_in * x, sigma[i : i + 1].log() / 4, kind)
        weight = (s**2 + sigma_data**2) / (s * sigma_data) ** 2
        assert loss[i].item() == pytest.approx(weight * (denoised - images[i]).square().mean().item(), rel=1e-5)


def test_is_about_one_for_a_network_that_outputs_zeros():
    generator = torch.Generator().manual_seed(0)
    images = 0.5 * torch.randn(1000, 1, 4, 4, generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    for level in (0.01, 0.5, 20.0):
        loss = edm_loss(lambda x, _: torch.zeros_like(x), images, torch.full((1000,), level), noise)
        assert loss.mean().item() == pytest.approx(1.0, rel=0.05)


def test_noise_levels_are_log_normal():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        logs = draw_sigma(100_000, P_mean=-1.2, P_std=1.2).log()
    assert logs.mean().item() == pytest.approx(-1.2, abs=0.02)
    assert logs.std().item() == pytest.approx(1.2, abs=0.02)
