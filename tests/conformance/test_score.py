"""NCSN's losses (denoising and sliced score matching), score-SDE's losses and its functions of time."""

from __future__ import annotations

import pytest

from .cases import case_params
from .registry import TABLE_RUNNERS, implemented

NAMES = ["ncsn_losses", "sde_losses", "sde_tables"]
FAMILIES = [("ddpm", family) for family in NAMES]


@pytest.mark.parametrize("case", case_params("ddpm", NAMES, implemented))
def test_recorded(case):
    TABLE_RUNNERS[case.folder, case.family](case)
