"""Energy models: a density exp(-E(x)), sampled by Langevin dynamics at one level."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .errors import check_count, check_positive
from .process import Level, Levels, Process

__all__ = ["EnergyScore", "OneLevel"]


class EnergyScore(torch.nn.Module):
    """The score -grad E of an energy, as a network of prediction "score" that does not look at the time.

    Args:
        energy: (x [B, ...], **cond) -> [B], differentiable; a module or a function.
    """

    def __init__(self, energy: Callable[..., Tensor]):
        super().__init__()
        if not callable(energy):
            raise TypeError(f"energy must be callable (x, **cond) -> [B], got {type(energy).__name__}")
        self.energy = energy

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """-grad E(x), [B, ...]."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.energy(x, **cond).sum(), x)
        return -gradient


class OneLevel(Process):
    """Every step at the same noise level, of which the model is told sigma: for solvers 'langevin' and 'mala'.

    An energy model's score has no noise level, and sigma then says only where prediction "score" puts x_0.

    Args:
        sigma: of a VE model's level; positive.
        std: standard deviation of the start; default: sigma.
    """

    def __init__(self, sigma: float = 1.0, std: float | None = None):
        self.sigma = check_positive("sigma", sigma)
        self.std = self.sigma if std is None else check_positive("std", std)

    def levels(self, steps=None, schedule=None, **options):  # type: ignore[no-untyped-def]
        if schedule is not None or options:
            name, value = ("schedule", schedule) if schedule is not None else next(iter(options.items()))
            raise ValueError(f"{name} must be left out for process OneLevel, got {value!r}")
        n = check_count("steps", 100 if steps is None else steps)
        return Levels([self.level_at_sigma(self.sigma)] * (n + 1), self)

    def levels_at(self, values):  # type: ignore[no-untyped-def]
        raise ValueError(f"sigmas must be left out for process OneLevel, which has one; give steps, got {values!r}")

    def level_at_sigma(self, sigma_ve: float) -> Level:
        return Level(1.0, self.sigma, self.sigma)

    def prior_std(self, first: Level) -> float:
        return self.std
