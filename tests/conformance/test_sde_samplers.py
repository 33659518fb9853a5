"""Predictor-corrector sampling of score SDEs, and annealed Langevin dynamics."""

from __future__ import annotations

import pytest

from . import sde_family
from .cases import Case, case_params
from .registry import ROUTE_RUNNERS, implemented
from .replay import COMPILED_ROUTE_PARAMS, ROUTE_PARAMS

FAMILIES = [("ddpm", family) for family in ("sde_pc", "ncsnv1_ald", "ncsnv2_ald")]


@pytest.mark.parametrize("route", ROUTE_PARAMS)
@pytest.mark.parametrize("case", case_params("ddpm", [family for _, family in FAMILIES], implemented))
def test_recorded(case, route):
    ROUTE_RUNNERS[case.folder, case.family](case, route)


def in_float64(case: Case) -> bool:
    return implemented(case) and not case.float32


@pytest.mark.parametrize("route", COMPILED_ROUTE_PARAMS)
@pytest.mark.parametrize("case", case_params("ddpm", ["sde_pc"], in_float64))
def test_float32_state_stays_close(case, route):
    sde_family.check_pc_float32(case, route)
