"""k-diffusion's samplers (edm/kdiff)."""

from __future__ import annotations

import pytest

from . import kdiff_family
from .cases import case_params
from .registry import ROUTE_RUNNERS, implemented
from .replay import COMPILED_ROUTE_PARAMS, ROUTE_PARAMS

LOOPS = ["kdiff"]
FAMILIES = [("edm", family) for family in LOOPS]


@pytest.mark.parametrize("route", ROUTE_PARAMS)
@pytest.mark.parametrize("case", case_params("edm", LOOPS, implemented))
def test_recorded(case, route):
    ROUTE_RUNNERS[case.folder, case.family](case, route)


@pytest.mark.parametrize("route", COMPILED_ROUTE_PARAMS)
@pytest.mark.parametrize("case", case_params("edm", LOOPS, implemented))
def test_float32_state_stays_close(case, route):
    kdiff_family.check_float32(case, route)
