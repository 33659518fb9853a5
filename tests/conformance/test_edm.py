"""EDM's samplers (edm, ablation), EDM-ES (es), closed-form denoisers (model) and noise schedules (schedules)."""

from __future__ import annotations

import pytest

from . import edm_family
from .cases import case_params
from .registry import ROUTE_RUNNERS, TABLE_RUNNERS, implemented
from .replay import COMPILED_ROUTE_PARAMS, ROUTE_PARAMS

TABLES = ["schedules"]
LOOPS = ["edm", "es", "ablation"]
MODELS = ["model"]
FAMILIES = [("edm", family) for family in [*TABLES, *LOOPS, *MODELS]]


@pytest.mark.parametrize("case", case_params("edm", TABLES, implemented))
def test_table(case):
    TABLE_RUNNERS[case.folder, case.family](case)


@pytest.mark.parametrize("route", ROUTE_PARAMS)
@pytest.mark.parametrize("case", case_params("edm", [*MODELS, *LOOPS], implemented))
def test_recorded(case, route):
    ROUTE_RUNNERS[case.folder, case.family](case, route)


@pytest.mark.parametrize("route", COMPILED_ROUTE_PARAMS)
@pytest.mark.parametrize("case", case_params("edm", LOOPS, implemented))
def test_float32_state_stays_close(case, route):
    edm_family.check_float32(case, route)
