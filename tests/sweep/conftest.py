"""A small denoiser, discriminator and score whose sweeps take milliseconds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import fastdiff
from fastdiff.sweep import Sweep, grid

from ..threads import one_thread

__all__ = ["one_thread"]


class Denoiser(torch.nn.Module):
    """The exact denoiser of N(mean, std^2) data, its noise overestimated by 3 %."""

    sample_shape = (2,)

    def __init__(self, mean=0.3, std=0.5):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.tensor(mean))
        self.std = torch.nn.Parameter(torch.tensor(std))

    def forward(self, x, sigma):
        sigma = sigma.reshape(-1, 1)
        exact = (self.std**2 * x + sigma**2 * self.mean) / (self.std**2 + sigma**2)
        return x - (x - exact) * 1.03


class Discriminator(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(0.2))

    def forward(self, y, tau, labels=None):
        return self.slope * y.sum(1)


class Score:
    """Distances of the mean and of the variance to the data's; counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, samples):
        self.calls += 1
        wrong = (samples.mean() - 0.3) ** 2 + (samples.std() - 0.5) ** 2
        return SimpleNamespace(frechet=float(wrong), precision=0.5, recall=float(samples.std()))


CELLS = grid(solver=["euler", "heun"], steps=[4], epsilon_scale=[0.98, 1.0, 1.03], w_1st=[0.0, 1.0], ranges=2)


@pytest.fixture
def open_toy(tmp_path):
    """open_toy(folder, cells, ...) -> a Sweep with a score of its own."""

    def make(folder="sweep", cells=CELLS, model=None, **options):
        options = {"discriminator": Discriminator(), "samples": 20, "identity": {"score": "toy"}, **options}
        sampler = fastdiff.Sampler(model or Denoiser())
        return Sweep(sampler, Score(), cells, tmp_path / folder, **options)

    return make
