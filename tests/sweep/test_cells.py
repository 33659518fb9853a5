"""The grid, and its split over processes."""

from __future__ import annotations

from itertools import pairwise

import pytest

from fastdiff.sweep import Cell, grid, share


def test_grid_is_the_product_and_keeps_cells_of_a_graph_together():
    cells = grid(solver=["euler"], steps=[5, 9], epsilon_scale=[0.97, 1.0], w_1st=[0, 1], ranges=2)
    assert len(cells) == len(set(cells)) == 16
    assert cells[:4] == [Cell("euler", 5, epsilon_scale=scale, range=r) for scale in (0.97, 1.0) for r in (0, 1)]
    runs = [(cell.steps, cell.guided) for cell in cells]
    assert sum(a != b for a, b in pairwise(runs)) == 3


def test_a_cell_knows_its_baseline():
    cell = Cell("heun", 5, S_churn=4.0, w_1st=1.0, w_2nd=0.5, epsilon_scale=1.06, range=2)
    assert cell.baseline == Cell("heun", 5, S_churn=4.0, range=2)
    assert cell.setting.range == 0
    assert cell.guided
    assert not cell.baseline.guided


@pytest.mark.parametrize(
    ("axes", "wanted"),
    [
        ({"steps": []}, "steps must be a list of one or more different values"),
        ({"steps": [5, 5]}, "steps must be a list"),
        ({"steps": [0]}, "steps must be an integer of at least 1"),
        ({"epsilon_scale": [1.0, float("nan")]}, "epsilon_scale must be finite"),
        ({"solver": "euler"}, "solver must be a list"),
        ({"ranges": 0}, "ranges must be"),
    ],
)
def test_grid_refuses(axes, wanted):
    with pytest.raises(ValueError, match=wanted):
        grid(**{"solver": ["euler"], "steps": [5], **axes})


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_shares_are_a_partition_of_about_equal_cost(world):
    cells = grid(solver=["euler", "heun"], steps=[5, 9, 13, 18], epsilon_scale=[0.97, 1.0, 1.03], ranges=3)
    cost = lambda cell: cell.steps * (2 if cell.solver == "heun" else 1)  # noqa: E731
    shares = [share(cells, cost, rank, world) for rank in range(world)]
    assert sorted((cell for part in shares for cell in part), key=cells.index) == cells
    loads = [sum(map(cost, part)) for part in shares]
    assert max(loads) - min(loads) <= max(map(cost, cells))
    with pytest.raises(ValueError, match="rank must be"):
        share(cells, cost, world, world)
