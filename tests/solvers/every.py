"""A short run of any registered solver, for the tests that go over all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff import VP, Sampler
from fastdiff.continuous import SDEProcess
from fastdiff.energy import OneLevel
from fastdiff.sde import VPSDE
from fastdiff.solvers import SOLVERS, Driver

PLANNED = sorted(name for name, solver in SOLVERS.items() if not isinstance(solver, Driver))
"""The solvers that are traced: all but those that look at states to find their steps."""

CHAIN = ("ddim_inversion", "ddpm", "f_pndm", "pndm", "s_pndm", "time_shift")
CHURN = ("dpm_2", "edm_design_space", "euler", "heun")


def network(x: Tensor, t: Tensor) -> Tensor:
    """Smooth, bounded, and not linear."""
    return 0.3 * torch.sin(3 * x) + 0.4 * x


def energy(x: Tensor) -> Tensor:
    """Whose gradient `network` is minus of."""
    return (0.1 * torch.cos(3 * x) - 0.2 * x**2).reshape(len(x), -1).sum(1)


def short_run(name: str, steps: int = 7, **options: Any) -> Sampler:
    """A sampler with the solver, on a process it can run on; one that can churn does."""
    chosen: dict[str, Any] = {"sigma_min": 0.1, "sigma_max": 10.0}
    if name in CHAIN:
        chosen = {"process": VP.cosine(100), "prediction": "eps"}
    elif name in ("langevin", "mala"):
        chosen = {"process": OneLevel(), "prediction": "score"} | ({"energy": energy} if name == "mala" else {})
    elif name == "predictor_corrector":
        chosen = {"process": SDEProcess(VPSDE(N=100)), "prediction": "eps"}
    elif name in CHURN:
        chosen["S_churn"] = 3.0
    elif name == "ddim":
        chosen["eta"] = 0.7
    return Sampler(network, solver=name, steps=steps, dtype=torch.float64, **{**chosen, **options})
