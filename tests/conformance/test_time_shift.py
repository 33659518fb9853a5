"""The official codes of the time-shift sampler: TS-DPM's PNM solver and TS-DPM-ADM's DDIM."""

from __future__ import annotations

import pytest

from . import ts_family
from .cases import case_params
from .replay import COMPILED_ROUTE_PARAMS, ROUTE_PARAMS

LOOPS = ["ts_dpm", "ts_adm_ddim"]
FAMILIES = [("ddpm", family) for family in LOOPS]


@pytest.mark.parametrize("route", ROUTE_PARAMS)
@pytest.mark.parametrize("case", case_params("ddpm", LOOPS))
def test_recorded(case, route):
    ts_family.check(case, route)


@pytest.mark.parametrize("route", COMPILED_ROUTE_PARAMS)
@pytest.mark.parametrize("case", case_params("ddpm", LOOPS))
def test_float32_state_stays_close(case, route):
    ts_family.check_float32(case, route)
