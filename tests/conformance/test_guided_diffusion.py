"""guided-diffusion's tables, respacing, ancestral sampling, DDIM and its inversion; the DDPM and DDIM codes' betas."""

from __future__ import annotations

import pytest

from . import ddpm_family
from .cases import Case, case_params
from .registry import ROUTE_RUNNERS, TABLE_RUNNERS, implemented
from .replay import COMPILED_ROUTE_PARAMS, ROUTE_PARAMS

TABLES = ["beta_schedules", "gd_tables", "gd_respace"]
LOOPS = ["gd_p_sample", "gd_ddim", "gd_ddim_reverse"]
STEPS = ["gd_p_mean_variance"]
FAMILIES = [("ddpm", family) for family in [*TABLES, *LOOPS, *STEPS]]


def in_float64(case: Case) -> bool:
    return implemented(case) and not case.float32


@pytest.mark.parametrize("case", case_params("ddpm", TABLES, implemented))
def test_table(case):
    TABLE_RUNNERS[case.folder, case.family](case)


@pytest.mark.parametrize("route", ROUTE_PARAMS)
@pytest.mark.parametrize("case", case_params("ddpm", [*LOOPS, *STEPS], implemented))
def test_recorded(case, route):
    ROUTE_RUNNERS[case.folder, case.family](case, route)


@pytest.mark.parametrize("route", COMPILED_ROUTE_PARAMS)
@pytest.mark.parametrize("case", case_params("ddpm", LOOPS, in_float64))
def test_float32_state_stays_close(case, route):
    ddpm_family.check_float32(case, route)
