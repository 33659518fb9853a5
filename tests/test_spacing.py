"""Spaced times against hand-made ones and the published table; times of noise levels."""

from __future__ import annotations

import numpy as np
import pytest

import fastdiff
from fastdiff.interpolating import InterpolatingVP
from fastdiff.schedules import align_your_steps, betas, karras
from fastdiff.spacing import SPACINGS, spaced_timesteps, time_at_sigma


def test_the_published_table():
    """Lin et al. 2024, Table 2: 10 times of 1000, there counted from 1; with an offset of 1 Stable Diffusion's."""
    assert spaced_timesteps(1000, 10, "leading").tolist() == [900.0, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert spaced_timesteps(1000, 10, "leading", 1)[-1] == 1
    assert spaced_timesteps(1000, 10, "linspace").tolist() == [999.0, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert spaced_timesteps(1000, 10, "trailing").tolist() == [999.0, 899, 799, 699, 599, 499, 399, 299, 199, 99]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("n", [1, 7, 48, 49, 98, 999])
def test_n_decreasing_whole_times(spacing, n):
    for extra in (False, True):
        times = spaced_timesteps(1000, n, spacing, extra=extra and spacing != "trailing")
        assert len(times) == n and (np.diff(times) < 0).all() and times[-1] >= 0 and times[0] <= 999
        assert (times == times.round()).all()


def test_one_more_time_is_left_out_at_the_clean_end():
    assert spaced_timesteps(1000, 4, "linspace", extra=True).tolist() == [999.0, 749, 500, 250]
    assert spaced_timesteps(1000, 3, "leading", extra=True).tolist() == [750.0, 500, 250]
    assert spaced_timesteps(10, 3, "linspace", rounded=False)[1] == 4.5


def test_a_vp_sampler_takes_them():
    options = {"process": "vp", "prediction": "eps", "solver": "ddim", "shape": (2,)}
    sampler = fastdiff.Sampler(lambda x, t: x, timesteps=spaced_timesteps(1000, 5, "trailing"), **options)
    assert [level.time for level in sampler.levels[:-1]] == [999, 799, 599, 399, 199]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((10, 11), "n must be at most 10"),
        ((10, 0), "n"),
        ((10, 5, "even"), "spacing"),
        ((10, 5, "leading", 2), "offset"),
    ],
)
def test_refusals(arguments, name):
    with pytest.raises(ValueError, match=name):
        spaced_timesteps(*arguments)


def test_times_of_levels_invert_the_table():
    table = InterpolatingVP(betas("quad", 1000, 0.00085, 0.012)).sigmas
    assert np.allclose(time_at_sigma(table, table), np.arange(1000), atol=1e-9)
    between = np.sqrt(table[10] * table[11])
    assert time_at_sigma(between, table) == pytest.approx(10.5, abs=1e-9)
    assert time_at_sigma([1e-9, 1e9], table).tolist() == [0.0, 999.0]


def test_an_infinite_last_level_may_be_capped_below_the_one_before():
    """diffusers replaces alpha_bar = 0 by 2^-24, which can be more than what the step before it has."""
    assert time_at_sigma([2.0, 3.0], [1.0, 2.0, 9.0, 3.0]).tolist() == [1.0, 3.0]


def test_published_steps_at_their_published_times():
    """Sabour et al. 2024 give Stable Diffusion's levels as times, too."""
    sd = InterpolatingVP(betas("quad", 1000, 0.00085, 0.012))
    levels = sd.levels_at(align_your_steps(10))
    published = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
    assert np.abs(np.array([level.time for level in levels[:-1]]) - published).max() < 2.0


def test_interpolating_levels():
    process = InterpolatingVP.linear(1000)
    levels = process.levels(20, "karras")
    assert np.allclose(levels.sigmas, karras(20, process.sigmas[0], process.sigmas[-1]))
    assert all(level.alpha**2 + level.sigma**2 == pytest.approx(1) for level in levels)
    assert levels[0].time == pytest.approx(999) and levels[-2].time == pytest.approx(0, abs=1e-9)
    grid = process.levels(4)
    assert [level.time for level in grid] == pytest.approx([999, 666, 333, 0, 0], abs=1e-9)
    scaled = InterpolatingVP.linear(200, rescale_timesteps=True).levels(3, "exponential")
    assert scaled[0].time == pytest.approx(995)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: InterpolatingVP([0.1, 1.0]), "betas"),
        (lambda: InterpolatingVP.linear().levels(5, rho=3.0), "rho"),
        (lambda: InterpolatingVP.linear().levels_at([1.0, 1.0]), "sigmas"),
    ],
)
def test_interpolating_refusals(make, name):
    with pytest.raises(ValueError, match=name):
        make()
