"""EDM's sampler (edm/edm), EDM-ES (edm/es), the closed-form denoisers (edm/model) and the noise schedules (edm/schedules)."""

from __future__ import annotations

import pytest
import torch
from tolerances import FLOAT32_STATE

from . import edm_family
from .cases import case_params, compare_results
from .registry import ROUTE_RUNNERS, TABLE_RUNNERS, implemented
from .replay import ROUTES

TABLES = ["schedules"]
LOOPS = ["edm", "es"]
MODELS = ["model"]
FAMILIES = [("edm", family) for family in [*TABLES, *LOOPS, *MODELS]]


@pytest.mark.parametrize("case", case_params("edm", TABLES, implemented))
def test_table(case):
    TABLE_RUNNERS[case.folder, case.family](case)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", case_params("edm", [*MODELS, *LOOPS], implemented))
def test_recorded(case, route):
    ROUTE_RUNNERS[case.folder, case.family](case, route)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", case_params("edm", LOOPS, implemented))
def test_float32_state_stays_close(case, route):
    exact = edm_family.replay(case, route)
    single = edm_family.replay(case, route, torch.float32)
    compare_results(case, single, {name: exact[name] for name in ("states", "final")}, FLOAT32_STATE, label=f"float32 {route}")
