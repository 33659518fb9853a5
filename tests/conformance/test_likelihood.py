"""Likelihoods by the probability-flow ODE, as score_sde recorded them."""

from __future__ import annotations

import pytest

from .cases import case_params
from .registry import TABLE_RUNNERS, implemented

FAMILIES = [("ddpm", "sde_likelihood")]


@pytest.mark.parametrize("case", case_params("ddpm", ["sde_likelihood"], implemented))
def test_recorded(case):
    pytest.importorskip("torchdiffeq")
    TABLE_RUNNERS[case.folder, case.family](case)
