"""Profiles of averages: widths, exponents, what an update keeps."""

from __future__ import annotations

import numpy as np
import pytest

from fastdiff.training.profiles import SIGMA_REL_MAX, Exponential, Power, gamma_of, sigma_rel_of


@pytest.mark.parametrize("gamma", [0.0, 0.5, 6.94, 16.97, 300.0, 1e5])
def test_width_and_exponent_are_inverse(gamma):
    assert gamma_of(sigma_rel_of(gamma)) == pytest.approx(gamma, rel=1e-9, abs=1e-9)
    assert sigma_rel_of(0.0) == pytest.approx(SIGMA_REL_MAX)


@pytest.mark.parametrize("gamma", [0.5, 6.94])
def test_width_is_the_profiles_standard_deviation(gamma):
    tau = (np.arange(200_000) + 0.5) / 200_000
    weights = (gamma + 1) * tau**gamma
    weights /= weights.sum()
    deviation = np.sqrt(weights @ tau**2 - (weights @ tau) ** 2)
    assert sigma_rel_of(gamma) == pytest.approx(deviation, rel=1e-6)


@pytest.mark.parametrize("bad", [0.0, -0.1, 0.289, float("nan"), "wide"])
def test_a_width_out_of_range_is_refused(bad):
    with pytest.raises(ValueError, match="sigma_rel must be"):
        gamma_of(bad)


def test_the_first_weights_are_taken_whole_by_a_power_profile():
    assert Power(0.1).keep(0) == 0
    assert Power(SIGMA_REL_MAX).keep(9) == pytest.approx(1 - 1 / 10)  # the plain mean


def test_an_exponential_profile_warms_up():
    assert Exponential(0.999).keep(0) == 1 / 10
    assert Exponential(0.999).keep(10**6) == 0.999
    assert Exponential(0.999, warmup=False).keep(0) == 0.999
