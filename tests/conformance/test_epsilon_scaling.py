"""ADM-ES: guided-diffusion's loops with the predicted noise divided by lambda_i."""

from __future__ import annotations

import pytest
import torch

from tolerances import FLOAT32_STATE

from . import ddpm_family
from .cases import case_params, compare_results
from .registry import ROUTE_RUNNERS, implemented
from .replay import ROUTES
from .test_guided_diffusion import in_float64

LOOPS = ["es_p_sample", "es_ddim"]
FAMILIES = [("ddpm", family) for family in LOOPS]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", case_params("ddpm", LOOPS, implemented))
def test_recorded(case, route):
    ROUTE_RUNNERS[case.folder, case.family](case, route)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", case_params("ddpm", LOOPS, in_float64))
def test_float32_state_stays_close(case, route):
    exact, single = ddpm_family.replay(case, route), ddpm_family.replay(case, route, torch.float32)
    compare_results(case, single, {"x_steps": exact["x_steps"]}, FLOAT32_STATE, label=f"float32 {route}")
