"""The probability flow solved to a tolerance: score_sde's samples and k-diffusion's likelihood."""

from __future__ import annotations

import pytest

from .cases import case_params
from .registry import ROUTE_RUNNERS, TABLE_RUNNERS, implemented
from .replay import ROUTE_PARAMS

FAMILIES = [("ddpm", "sde_ode"), ("edm", "kdiff_ll")]


@pytest.mark.parametrize("route", ROUTE_PARAMS)
@pytest.mark.parametrize("case", case_params("ddpm", ["sde_ode"], implemented))
def test_recorded_samples(case, route):
    pytest.importorskip("torchdiffeq")
    ROUTE_RUNNERS[case.folder, case.family](case, route)


@pytest.mark.parametrize("case", case_params("edm", ["kdiff_ll"], implemented))
def test_recorded_likelihoods(case):
    pytest.importorskip("torchdiffeq")
    TABLE_RUNNERS[case.folder, case.family](case)
