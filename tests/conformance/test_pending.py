"""Every recorded case that fastdiff cannot replay yet, so that nothing is silently missing.

Each is a strict xfail whose body really tries: the day it can be replayed the test fails until the case is moved, by
giving its family a runner in `registry.py`.
"""

from __future__ import annotations

import pytest

from .cases import KNOWN_FAMILIES, Case, case_params
from .registry import implemented, run_case


def not_yet(case: Case):
    reason = f"{case.folder}/{case.family} is not implemented yet"
    return pytest.mark.xfail(strict=True, raises=NotImplementedError, reason=reason)


PENDING = [
    parameter
    for folder, families in KNOWN_FAMILIES.items()
    for parameter in case_params(folder, families, lambda case: not implemented(case), not_yet)
]


@pytest.mark.parametrize("case", PENDING)
def test_not_implemented_yet(case):
    run_case(case)
