"""The losses on a GPU are those of the CPU, noise included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastdiff.process import VP
from fastdiff.training.chain import Chain
from fastdiff.training.losses import calc_bpd, ddpm_loss

from ..tolerances import BOUND


def network(x: Tensor, time: Tensor) -> Tensor:
    x = x + time.reshape(-1, 1, 1, 1) / 50
    return torch.cat([x.sin(), x.cos()], 1)


@pytest.mark.parametrize("loss", ["rescaled_mse", "kl"])
def test_losses_of_a_chain(loss):
    x0 = torch.linspace(-1, 1, 4 * 3 * 5 * 5).reshape(4, 3, 5, 5)
    t, seeds = torch.tensor([0, 49, 7, 20]), torch.arange(4)
    results = []
    for device in ("cpu", "cuda"):
        chain = Chain(VP.linear(50), device=device, dtype=torch.float64)
        inputs = [value.to(device) for value in (x0, t, seeds)]
        options = {"variance": "learned_range"}
        losses = ddpm_loss(network, *inputs, chain, loss=loss, gamma=0.1, **options).loss
        bound = calc_bpd(network, inputs[0], chain, inputs[2], **options)
        results.append([losses.cpu(), *(value.cpu() for value in bound)])
    for on_cpu, on_gpu in zip(*results):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=BOUND, atol=BOUND)
