"""EDM-G++ (edm/dg) and SEDM-G++ (edm/sedm), the negative controls (edm/sedm_b), guidance vectors (edm/model)."""

from __future__ import annotations

import pytest

from . import dg_family
from .cases import case_params
from .registry import ROUTE_RUNNERS, implemented
from .replay import COMPILED_ROUTE_PARAMS, ROUTE_PARAMS

LOOPS = ["dg", "sedm"]
CONTROLS = ["sedm_b"]
FAMILIES = [("edm", family) for family in [*LOOPS, *CONTROLS]]


@pytest.mark.parametrize("route", COMPILED_ROUTE_PARAMS)
@pytest.mark.parametrize("case", case_params("edm", [*LOOPS, *CONTROLS], implemented))
def test_recorded(case, route):
    ROUTE_RUNNERS[case.folder, case.family](case, route)


@pytest.mark.parametrize("case", case_params("edm", [*LOOPS, *CONTROLS], lambda case: not dg_family.one_by_one(case)))
def test_recorded_on_tensors(case):
    ROUTE_RUNNERS[case.folder, case.family](case, "readable")


@pytest.mark.parametrize("route", COMPILED_ROUTE_PARAMS)
@pytest.mark.parametrize("case", case_params("edm", LOOPS, lambda case: not dg_family.as_is(case)))
def test_float32_state_stays_close(case, route):
    dg_family.check_float32(case, route)


@pytest.mark.parametrize("case", case_params("edm", [*LOOPS, *CONTROLS]))
def test_the_plain_loop(case):
    dg_family.check_loop(case)


@pytest.mark.parametrize("route", ROUTE_PARAMS)
@pytest.mark.parametrize("case", case_params("edm", ["model"]))
def test_guidance_vectors(case, route):
    dg_family.check_model(case, route)
