"""Predictor-corrector sampling of score SDEs, and annealed Langevin dynamics."""

from __future__ import annotations

import pytest

from .cases import case_params
from .registry import ROUTE_RUNNERS, implemented
from .replay import ROUTE_PARAMS

FAMILIES = [("ddpm", family) for family in ("sde_pc", "ncsnv1_ald", "ncsnv2_ald")]


@pytest.mark.parametrize("route", ROUTE_PARAMS)
@pytest.mark.parametrize("case", case_params("ddpm", [family for _, family in FAMILIES], implemented))
def test_recorded(case, route):
    ROUTE_RUNNERS[case.folder, case.family](case, route)
