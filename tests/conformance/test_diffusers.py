"""diffusers' schedulers and the DDIM repository's samplers."""

from __future__ import annotations

import pytest

from .cases import case_params
from .registry import ROUTE_RUNNERS, implemented
from .replay import ROUTE_PARAMS

FAMILIES = [("ddpm", "ddim_repo"), ("ddpm", "diffusers"), ("edm", "diffusers")]
CASES = [param for folder, family in FAMILIES for param in case_params(folder, [family], implemented)]


@pytest.mark.parametrize("route", ROUTE_PARAMS)
@pytest.mark.parametrize("case", CASES)
def test_recorded(case, route):
    ROUTE_RUNNERS[case.folder, case.family](case, route)
