"""The losses of networks told a time or a level on a GPU: those of the CPU, noise and gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastdiff.models import UNet
from fastdiff.sde import VESDE, VPSDE, subVPSDE
from fastdiff.training import losses

from ..tolerances import LOSS

SIGMA = torch.tensor([0.02, 0.5, 7.0])
TIME = torch.tensor([0.1, 0.5, 0.9])
LABELS = torch.tensor([0, 7, 3])
SEEDS = torch.tensor([3, 4, 2**40])
CASES = {
    "edm": (losses.edm_loss, SIGMA, (), {"gamma": 0.1}),
    "flow": (losses.flow_loss, TIME, (), {"gamma": 0.1}),
    "vp": (losses.sde_loss, TIME, (VPSDE(),), {"likelihood_weighting": True}),
    "subvp": (losses.sde_loss, TIME, (subVPSDE(),), {"reduce_mean": False}),
    "ve": (losses.sde_loss, TIME, (VESDE(),), {}),
    "smld": (losses.smld_loss, LABELS, (VESDE(N=10),), {}),
    "ddpm": (losses.sde_ddpm_loss, LABELS, (VPSDE(N=20),), {}),
    "dsm": (losses.dsm_loss, LABELS, (torch.linspace(3, 0.1, 10),), {}),
    "ssm": (losses.ssm_loss, SIGMA, (), {"particles": 2}),
    "ssm_vr": (losses.ssm_vr_loss, SIGMA, (), {"particles": 2, "directions": "rademacher"}),
}


@pytest.fixture(scope="module")
def unet():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet(image_size=8, width=32, mults=(1, 2), blocks=1, attention=(1,))
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
    return network.double()


@pytest.mark.parametrize("levels_on", ["cpu", "cuda"])
@pytest.mark.parametrize("name", CASES)
def test_as_on_the_cpu(name, levels_on, unet):
    loss, levels, more, options = CASES[name]
    x0 = torch.linspace(-1, 1, 3 * 64, dtype=torch.float64).reshape(3, 1, 8, 8).sin()
    results = []
    for device in ("cpu", "cuda"):
        network = unet.to(device)
        level = levels.to(device if levels_on == "cuda" else "cpu")
        values = loss(network, x0.to(device), level, SEEDS.to(device), *more, **options)
        gradients = torch.autograd.grad(values.sum(), list(network.parameters()))
        results.append([values.detach().cpu(), *(gradient.cpu() for gradient in gradients)])
    for on_cpu, on_gpu in zip(*results):
        scale = 1 + on_cpu.abs().max().item()
        torch.testing.assert_close(on_gpu, on_cpu, rtol=0, atol=scale * LOSS[torch.float32])  # the noise is float32
