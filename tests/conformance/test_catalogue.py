"""Nothing recorded is silently missing: every folder and family is known, every case is tested in exactly one file."""

from __future__ import annotations

import pytest

from . import (
    test_checkpoints,
    test_diffusers,
    test_discriminator_guidance,
    test_edm,
    test_epsilon_scaling,
    test_guided_diffusion,
    test_k_diffusion,
    test_likelihood,
    test_losses,
    test_probability_flow,
    test_score,
    test_sde_samplers,
    test_time_shift,
)
from .cases import KNOWN_FAMILIES, ROOT, all_cases, data_folders
from .registry import ROUTE_RUNNERS, TABLE_RUNNERS


def test_every_folder_is_known():
    if not data_folders():
        pytest.skip(f"no recorded cases in {ROOT} (set FASTDIFF_CONFORMANCE)")
    assert set(data_folders()) <= set(KNOWN_FAMILIES)


@pytest.mark.parametrize("folder", sorted(KNOWN_FAMILIES))
def test_every_family_is_known(folder):
    assert {case.family for case in all_cases(folder)} <= KNOWN_FAMILIES[folder]


@pytest.mark.parametrize("folder", sorted(KNOWN_FAMILIES))
def test_case_ids_are_unique(folder):
    ids = [case.id for case in all_cases(folder)]
    assert len(ids) == len(set(ids))


def test_every_implemented_family_is_tested_in_one_file():
    files = (
        test_checkpoints,
        test_diffusers,
        test_edm,
        test_discriminator_guidance,
        test_guided_diffusion,
        test_k_diffusion,
        test_epsilon_scaling,
        test_time_shift,
        test_losses,
        test_probability_flow,
        test_likelihood,
        test_score,
        test_sde_samplers,
    )
    tested = [family for file in files for family in file.FAMILIES]
    assert sorted(tested) == sorted([*TABLE_RUNNERS, *ROUTE_RUNNERS])


def test_runners_belong_to_known_families():
    for folder, family in [*TABLE_RUNNERS, *ROUTE_RUNNERS]:
        assert family in KNOWN_FAMILIES[folder]
