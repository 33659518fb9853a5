"""The 2-D sets: moments of the distribution, splits, seeds, prefixes, classes."""

from __future__ import annotations

import pytest
import torch

from fastdiff import data
from fastdiff.data import POINT_SETS, draw_points

CLASSES = {"swiss_roll": 0, "moons": 2, "checkerboard": 0, "gaussians8": 8, "gaussians25": 25}


@pytest.mark.parametrize("name", POINT_SETS)
def test_mean_0_variance_1(name):
    x, _ = draw_points(name, 200_000)
    assert x.dtype == torch.float32
    # Four standard errors of the mean, and of the variance for a kurtosis of at most 3.
    assert x.mean(0).abs().max() < 4 / 200_000**0.5
    assert (x.var(0) - 1).abs().max() < 4 * (2 / 200_000) ** 0.5


@pytest.mark.parametrize("name", POINT_SETS)
def test_a_point_is_decided_by_seed_split_and_index(name):
    x, labels = draw_points(name, 1000)
    fewer, fewer_labels = draw_points(name, 77)
    assert torch.equal(x[:77], fewer)
    assert (labels is None) == (CLASSES[name] == 0)
    assert labels is None or torch.equal(labels[:77], fewer_labels)
    for other in (draw_points(name, 1000, seed=1), draw_points(name, 1000, split="test")):
        assert torch.cdist(x.double(), other[0].double()).diagonal().median() > 0.1
        assert not (x[:, None] == other[0]).all(-1).any()


@pytest.mark.parametrize("name", POINT_SETS)
def test_as_a_data_set(name):
    points = data.open_dataset(f"{name}:500", split="test")
    assert (len(points), points.sample_shape, points.classes) == (500, (2,), CLASSES[name])
    x, _ = draw_points(name, 500, split="test")
    assert torch.equal(points.values, x)
    assert points.labels.unique().tolist() == (list(range(CLASSES[name])) or [-1])
    assert len(data.open_dataset(name)) == 100_000


def test_shapes():
    """Points lie where they should: cells of the board, distances to the centres, the circle arcs, the spiral."""
    board, _ = draw_points("checkerboard", 4000)
    cells = (board * (4 / 3) ** 0.5 + 2).clamp(0, 3.999).floor()
    assert (cells.sum(1) % 2 == 0).float().mean() > 0.999  # float32 at the edges
    assert len(cells.unique(dim=0)) == 8
    ring, label = draw_points("gaussians8", 4000)
    centres = torch.stack([ring[label == k].mean(0) for k in range(8)])
    assert torch.allclose(centres.norm(dim=1), torch.tensor(0.51**-0.5), atol=0.03)
    grid, label = draw_points("gaussians25", 4000)
    centres = torch.stack([grid[label == k].mean(0) for k in range(25)]) * 2.0025**0.5
    assert (centres - centres.round()).abs().max() < 0.03
    assert len(centres.round().unique(dim=0)) == 25
    roll, _ = draw_points("swiss_roll", 4000)
    assert len(roll) == 4000 and roll.norm(dim=1).max() < 2.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("spiral", 3), "name must be one of swiss_roll, .*, got 'spiral'"),
        (("moons", 0), "count must be an integer of at least 1, got 0"),
        (("moons", 3, 2**21), "seed must be below 2097152"),
        (("moons", 3, 0, "val"), "split must be one of train, test, got 'val'"),
    ],
)
def test_bad_arguments(arguments, message):
    name, count, *rest = arguments
    with pytest.raises(ValueError, match=message):
        draw_points(name, count, **dict(zip(("seed", "split"), rest)))


def test_bad_count_in_a_name():
    with pytest.raises(data.DataError, match="moons:many: expected moons or moons:COUNT"):
        data.open_dataset("moons:many")
