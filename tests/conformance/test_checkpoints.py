"""Published networks and their files compute what was recorded, and hostile files are refused."""

from __future__ import annotations

import pytest

from .cases import Case, case_params
from .registry import TABLE_RUNNERS, implemented

FAMILIES: list[tuple[str, str]] = [key for key in TABLE_RUNNERS if key[0] == "checkpoints"]


@pytest.mark.parametrize("case", case_params("checkpoints", {family for _, family in FAMILIES}, implemented))
def test_checkpoint(case: Case):
    TABLE_RUNNERS[case.folder, case.family](case)
