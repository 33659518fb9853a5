"""The probability flow solved to a tolerance: score_sde's samples and k-diffusion's likelihood."""

from __future__ import annotations

import pytest

from .cases import case_params
from .registry import TABLE_RUNNERS, implemented

FAMILIES = [("ddpm", "sde_ode"), ("edm", "kdiff_ll")]


@pytest.mark.parametrize(
    "case", [*case_params("ddpm", ["sde_ode"], implemented), *case_params("edm", ["kdiff_ll"], implemented)]
)
def test_recorded(case):
    pytest.importorskip("torchdiffeq")
    TABLE_RUNNERS[case.folder, case.family](case)
