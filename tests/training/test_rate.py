"""Learning rates: the warm-up, the shapes, the configuration that names no shape."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from fastdiff.training.rate import learning_rate


def config(**changes):
    return SimpleNamespace(**{"learning_rate": 2e-3, "warmup": 4, "iterations": 100, **changes})


def test_cosine_after_a_linear_warm_up():
    rates = [learning_rate(config(), i) for i in range(100)]
    assert rates[0] == pytest.approx(2e-3 / 5)
    assert rates[3] == pytest.approx(2e-3 * 4 / 5 * 0.5 * (1 + math.cos(math.pi * 0.03)))
    assert rates[50] == pytest.approx(1e-3)
    assert 0 < rates[99] < 1e-6
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_constant_after_a_linear_warm_up():
    rates = [learning_rate(config(schedule="constant"), i) for i in range(100)]
    assert rates[:5] == pytest.approx([2e-3 * (i + 1) / 5 for i in range(5)])
    assert set(rates[4:]) == {2e-3}


def test_no_warm_up_starts_at_the_peak():
    assert learning_rate(config(warmup=0), 0) == 2e-3


def test_refuses_an_unknown_shape():
    with pytest.raises(ValueError, match="schedule must be one of cosine, constant, got 'linear'"):
        learning_rate(config(schedule="linear"), 0)
