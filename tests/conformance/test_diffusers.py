"""diffusers' schedulers and the DDIM repository's samplers."""

from __future__ import annotations

import pytest

from . import diffusers_family
from .cases import case_params
from .registry import ROUTE_RUNNERS, implemented
from .replay import COMPILED_ROUTE_PARAMS, ROUTE_PARAMS

FAMILIES = [("ddpm", "ddim_repo"), ("ddpm", "diffusers"), ("edm", "diffusers")]
CASES = [param for folder, family in FAMILIES for param in case_params(folder, [family], implemented)]


@pytest.mark.parametrize("route", ROUTE_PARAMS)
@pytest.mark.parametrize("case", CASES)
def test_recorded(case, route):
    ROUTE_RUNNERS[case.folder, case.family](case, route)


@pytest.mark.parametrize("route", COMPILED_ROUTE_PARAMS)
@pytest.mark.parametrize(
    "case", case_params("ddpm", ["diffusers"], lambda case: "x_final_float32" in case.entry["arrays"])
)
def test_float32_state_stays_as_close_as_diffusers_own(case, route):
    diffusers_family.check_float32(case, route)
