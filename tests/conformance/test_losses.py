"""guided-diffusion's and DDPM-IP's losses, with their gradients, and the bound on the likelihood."""

from __future__ import annotations

import pytest

from .cases import case_params
from .registry import TABLE_RUNNERS, implemented

GUIDED_DIFFUSION = ["gd_unit", "gd_losses", "gd_vb_terms", "gd_calc_bpd", "ip_losses"]
FAMILIES = [("ddpm", family) for family in GUIDED_DIFFUSION]


@pytest.mark.parametrize("case", case_params("ddpm", GUIDED_DIFFUSION, implemented))
def test_recorded(case):
    TABLE_RUNNERS[case.folder, case.family](case)
