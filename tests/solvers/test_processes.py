"""Every solver on every kind of process and list of levels: finite and as its own lines, or refused with a reason."""

from __future__ import annotations

import pytest
import torch

from fastdiff import VP, Sampler
from fastdiff.continuous import SDEProcess
from fastdiff.ncsn import NCSN
from fastdiff.sde import VESDE, subVPSDE
from fastdiff.solvers import SOLVERS
from tests.tolerances import SMALL_SIGMA

from .every import energy, network

START = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(3, 5)
RUNS = {
    "a flow, from pure noise": {"process": "flow", "prediction": "flow", "steps": 4},
    "one step of a flow": {"process": "flow", "prediction": "x0", "steps": 1},
    "VE in time": {"process": SDEProcess(VESDE()), "prediction": "x0", "steps": 4},
    "sub-VP in time": {"process": SDEProcess(subVPSDE()), "prediction": "x0", "steps": 4},
    "noise-conditional": {"process": NCSN.geometric(), "prediction": "score", "steps": 4},
    "a chain": {"process": VP.linear(100), "prediction": "previous_x", "steps": 5},
    "noisy at its end": {"sigmas": [20.0, 5.0, 1.0, 0.3]},
    "two levels": {"sigmas": [5.0, 1.0]},
    "a schedule that repeats levels": {"steps": 6, "schedule": lambda n, sigma_min, sigma_max: [9, 9, 3, 3, 1, 1, 0]},
}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("run", RUNS)
def test_a_process_is_sampled_or_refused(name, run):
    options = {"solver": name, "dtype": torch.float64, **RUNS[run], **({"energy": energy} if name == "mala" else {})}
    given = {"x_init": START} if name == "ddim_inversion" else {}
    try:
        x = Sampler(network, **options)((3, 5), seeds=1, **given)
    except ValueError as error:
        assert " must " in str(error) and "traced state" not in str(error)
        return
    assert x.isfinite().all()
    plain = Sampler(network, **options, compiled=False)((3, 5), seeds=1, **given)
    assert (x - plain).abs().max() <= SMALL_SIGMA * plain.abs().max()
