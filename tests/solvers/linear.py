"""Runs of models that are linear in the state are linear in their start and their draws: exact moments."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import fastdiff


def sample_moments(sampler: fastdiff.Sampler, mean: float, std: float) -> tuple[float, float]:
    """Exact mean and standard deviation of the samples of a run that starts from N(mean, std^2), in VE terms.

    Their factors are read from a batch whose samples have no noise, the start alone, or one of the draws alone.
    """
    drawn = [0]

    def count(draw: int, step: int) -> Tensor:
        drawn[0] = max(drawn[0], draw)
        return torch.zeros(1, 1, dtype=torch.float64)

    alpha = sampler.levels[0].alpha
    sampler((1, 1), x_init=torch.zeros(1, 1, dtype=torch.float64), noise=count)
    start = torch.zeros(drawn[0] + 2, 1, dtype=torch.float64)
    start[1] = alpha

    def one_at_a_time(draw: int, step: int) -> Tensor:
        z = torch.zeros_like(start)
        z[draw + 1] = 1.0
        return z

    end = sampler(start.shape, x_init=start, noise=one_at_a_time)[:, 0]
    constant, of_start, *of_draws = [end[0].item(), *(end[1:] - end[0]).tolist()]
    return constant + of_start * mean, math.hypot(of_start * std, *of_draws)
