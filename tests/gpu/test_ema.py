"""Averages of weights on a GPU: as on the CPU, and nothing waits for the device."""

from __future__ import annotations

import torch
from torch import nn

from fastdiff.training.ema import Averages

from ..tolerances import FLOAT32_STATE


def test_a_flagged_update_does_not_wait_for_the_device():
    weights = [torch.linspace(-1, 1, 15).reshape(5, 3) * (i + 1) for i in range(6)]
    results = []
    for device in ("cpu", "cuda"):
        model = nn.Linear(3, 5, device=device).requires_grad_(False)
        for parameter in model.parameters():
            parameter.zero_()
        averages = Averages(model, [0.9], [0.1])
        drawn = [value.to(device) for value in weights]
        flags = [torch.tensor(float(i == 2), device=device) for i in range(6)]
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            for i, (value, flag) in enumerate(zip(drawn, flags)):
                model.weight.copy_(value)
                averages.update(model, i, found_inf=flag)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        results.append([tensor.cpu() for tensor in averages.state().values()])
    for on_cpu, on_gpu in zip(*results):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=FLOAT32_STATE, atol=FLOAT32_STATE)
