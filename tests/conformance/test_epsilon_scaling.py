"""ADM-ES: guided-diffusion's loops with the predicted noise divided by lambda_i."""

from __future__ import annotations

import pytest

from . import ddpm_family
from .cases import case_params
from .registry import ROUTE_RUNNERS, implemented
from .replay import COMPILED_ROUTE_PARAMS, ROUTE_PARAMS
from .test_guided_diffusion import in_float64

LOOPS = ["es_p_sample", "es_ddim"]
FAMILIES = [("ddpm", family) for family in LOOPS]


@pytest.mark.parametrize("route", ROUTE_PARAMS)
@pytest.mark.parametrize("case", case_params("ddpm", LOOPS, implemented))
def test_recorded(case, route):
    ROUTE_RUNNERS[case.folder, case.family](case, route)


@pytest.mark.parametrize("route", COMPILED_ROUTE_PARAMS)
@pytest.mark.parametrize("case", case_params("ddpm", LOOPS, in_float64))
def test_float32_state_stays_close(case, route):
    ddpm_family.check_float32(case, route)
