"""The one-dimensional search, and errors from a few ranges."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastdiff.exposure.resampling import (
    bootstrap_minimum,
    held_out_differences,
    is_below_zero,
    mean_and_error,
    student,
)
from fastdiff.exposure.search import minimise

GRID = [0.9, 0.95, 1.0, 1.05, 1.1]


@pytest.mark.parametrize("at", [0.93, 0.997, 1.0, 1.0312, 1.07])
@pytest.mark.parametrize("tolerance", [0.01, 0.001])
def test_golden_section_finds_the_minimum_to_its_tolerance(at, tolerance):
    calls = []

    def function(x):
        calls.append(x)
        return (x - at) ** 2 + abs(x - at) ** 3

    found = minimise(function, GRID, tolerance, 1.0)
    assert abs(found.at - at) <= 2 * tolerance
    assert not found.edge
    assert len(calls) == len(set(calls)) <= len(GRID) + 3 + math.log(0.1 / tolerance) / math.log(1.618)


def test_without_a_tolerance_it_stays_on_the_grid():
    assert minimise(lambda x: (x - 1.03) ** 2, GRID, None, 1.0) == (1.05, False)


@pytest.mark.parametrize(("at", "end"), [(0.5, 0.9), (1.3, 1.1)])
def test_the_end_of_the_grid_is_an_edge(at, end):
    assert minimise(lambda x: abs(x - at), GRID, 0.001, 1.0) == (end, True)


def test_a_flat_function_is_lowest_nearest_to_the_centre():
    assert minimise(lambda x: 2.0, GRID, None, 1.0) == (1.0, False)


def test_what_failed_is_avoided():
    assert minimise(lambda x: math.inf if x < 1 else x, GRID, None, 1.0) == (1.0, False)


def test_student_is_that_of_the_tables():
    for freedom, wanted in {1: 12.706, 2: 4.303, 10: 2.228, 11: 2.201, 15: 2.131, 30: 2.042, 120: 1.980}.items():
        assert student(freedom) == pytest.approx(wanted, abs=3e-3)


def test_mean_and_error():
    assert mean_and_error([1.0, 3.0]) == (2.0, 1.0)
    assert mean_and_error([1.0]) == (1.0, None)
    assert mean_and_error([1.0, math.inf]) == (math.inf, None)


def test_below_zero_needs_more_where_there_are_fewer_ranges():
    assert is_below_zero(-3.0, 1.0, 3) is False
    assert is_below_zero(-3.0, 1.0, 5) is True
    assert is_below_zero(3.0, 1.0, 5) is False
    assert is_below_zero(0.0, 0.0, 5) is False
    assert is_below_zero(-3.0, None, 1) is None


def test_held_out_differences_undo_the_winners_luck():
    rng = np.random.default_rng(0)
    biased, fair = [], []
    for _ in range(300):  # 12 candidates that are all the same
        distances = rng.normal(size=(12, 4))
        biased.append(distances.mean(1).min() - distances[0].mean())
        fair.append(held_out_differences(distances, 0).mean())
    assert np.mean(biased) < -0.5
    assert abs(np.mean(fair)) < 0.1


def test_held_out_differences_of_a_clear_winner_are_its_own():
    distances = np.array([[5.0, 6.0, 7.0], [1.0, 2.0, 2.5], [math.inf, 0.0, 0.0]])
    assert held_out_differences(distances, 0).tolist() == [-4.0, -4.0, -4.5]


def test_the_bootstrap_of_a_parabola_is_the_error_of_the_mean():
    x, minima = np.linspace(-1, 1, 9), np.array([0.02, -0.1, 0.13, 0.05, -0.04])
    distances = (x[:, None] - minima) ** 2
    wanted = minima.std(ddof=1) / math.sqrt(len(minima))
    shuffled = np.random.default_rng(1).permutation(len(x))
    assert bootstrap_minimum(x[shuffled], distances[shuffled], 4000) == pytest.approx(wanted, rel=0.05)
    assert bootstrap_minimum(x, distances, 200) == bootstrap_minimum(x, distances, 200)


def test_the_bootstrap_leaves_out_what_failed_and_needs_two_ranges():
    x = [0.0, 1.0, 2.0, 3.0]
    distances = np.array([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [math.inf, 0.0]])
    assert bootstrap_minimum(x, distances) == 0
    assert bootstrap_minimum(x, distances[:, :1]) is None
