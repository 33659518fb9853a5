"""The process of noise-conditional score networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdiff import Sampler
from fastdiff.ncsn import NCSN


def test_levels_and_labels():
    process = NCSN.geometric()
    assert process.sigmas[[0, -1]] == pytest.approx([1.0, 0.01])
    assert np.allclose(process.sigmas[1:] / process.sigmas[:-1], 0.01 ** (1 / 9))
    levels = process.levels()
    assert [level.time for level in levels[:-1]] == list(range(10))
    assert levels[-1].sigma == 0
    assert [level.time for level in process.levels(4)[:-1]] == [0, 3, 6, 9]
    assert [level.sigma for level in process.levels_at([1, 5])] == [process.sigmas[1], process.sigmas[5], 0.0]
    assert process.level_at_sigma(process.sigmas[3] * 1.1).time == 3


def test_the_network_is_told_integers():
    seen = []

    def network(x, label):
        seen.append(label)
        return -x

    sampler = Sampler(network, process=NCSN([3.0, 1.0]), prediction="score", solver="euler", dtype=torch.float64)
    start = sampler((4, 2), seeds=0, return_trajectory=True)[1][0]
    assert [label.tolist() for label in seen] == [[0] * 4, [1] * 4]
    assert seen[0].dtype == torch.int64
    assert start.std().item() == pytest.approx(3.0, rel=0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NCSN([1.0]), r"sigmas must be two or more positive, strictly decreasing numbers, got \[1.0\]"),
        (lambda: NCSN([1.0, 2.0]), "strictly decreasing"),
        (lambda: NCSN([1.0, 0.0]), "positive"),
        (lambda: NCSN.geometric(1), "levels must be an integer of at least 2, got 1"),
        (lambda: NCSN([2.0, 1.0]).levels(3), "steps must be at most the 2 levels of process NCSN, got 3"),
        (lambda: NCSN([2.0, 1.0]).levels(schedule="karras"), "schedule must be left out for process NCSN"),
        (lambda: NCSN([2.0, 1.0]).levels_at([1, 0]), "timesteps must be strictly increasing labels below 2"),
        (lambda: NCSN([2.0, 1.0]).levels_at([2]), "timesteps must be strictly increasing labels below 2"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
