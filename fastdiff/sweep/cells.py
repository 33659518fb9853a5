"""Cells: one configuration of the grid on one range of seeds each, and how they are split over processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from ..errors import check_count, check_finite

__all__ = ["Cell", "grid", "share"]


@dataclass(frozen=True)
class Cell:
    """One configuration on one range of seeds.

    Attributes:
        solver: by name.
        steps: of the solver.
        S_churn: noise added back (Euler and Heun).
        w_1st, w_2nd: discriminator guidance's weights of a step's first and of its further evaluations; 0 and 0: none.
        epsilon_scale: lambda.
        range: number of the seed range, from 0.
    """

    solver: str
    steps: int
    S_churn: float = 0.0
    w_1st: float = 0.0
    w_2nd: float = 0.0
    epsilon_scale: float = 1.0
    range: int = 0

    @property
    def guided(self) -> bool:
        """Whether a discriminator takes part."""
        return self.w_1st != 0 or self.w_2nd != 0

    @property
    def setting(self) -> Cell:
        """What all ranges of a configuration have in common: the same with range 0."""
        return replace(self, range=0)

    @property
    def baseline(self) -> Cell:
        """The same sampler on the same seeds without a correction."""
        return replace(self, epsilon_scale=1.0, w_1st=0.0, w_2nd=0.0)


def grid(
    *,
    solver: Sequence[str],
    steps: Sequence[int],
    epsilon_scale: Sequence[float] = (1.0,),
    w_1st: Sequence[float] = (0.0,),
    w_2nd: Sequence[float] = (0.0,),
    S_churn: Sequence[float] = (0.0,),
    ranges: int = 1,
) -> list[Cell]:
    """All combinations; lambda varies fastest but for the ranges, so that cells of one graph follow each other.

    Raises:
        ValueError: an empty axis, a value given twice, or a number that cannot be one.
    """
    axes: dict[str, Sequence[Any]] = {
        "solver": solver,
        "steps": steps,
        "S_churn": S_churn,
        "w_1st": w_1st,
        "w_2nd": w_2nd,
    }
    axes["epsilon_scale"] = epsilon_scale
    for name, values in axes.items():
        if isinstance(values, str) or not values or len(set(values)) != len(values):
            raise ValueError(f"{name} must be a list of one or more different values, got {values!r}")
        for value in values if name != "solver" else ():
            check_count(name, value) if name == "steps" else check_finite(name, value)
    axes["range"] = range(check_count("ranges", ranges))
    found = []
    for name, count, churn, first, second, scale, r in product(*axes.values()):
        found.append(Cell(name, int(count), float(churn), float(first), float(second), float(scale), r))
    return found


def share(cells: Sequence[Cell], cost: Callable[[Cell], float], rank: int, world: int) -> list[Cell]:
    """The cells of one of `world` processes, in their order: the dearest first to whom has least to do.

    It depends on nothing but the cells, so that processes agree without speaking, at whatever time they start.

    Args:
        cost: of a cell, in any unit.
        rank: from 0 to `world` - 1.

    Raises:
        ValueError: a rank outside of these.
    """
    if not 0 <= rank < check_count("world", world):
        raise ValueError(f"rank must be from 0 to {world - 1}, got {rank}")
    loads = [0.0] * world
    mine = set()
    for index in sorted(range(len(cells)), key=lambda i: (-cost(cells[i]), i)):
        least = min(range(world), key=lambda r: loads[r])
        loads[least] += cost(cells[index])
        if least == rank:
            mine.add(index)
    return [cells[index] for index in sorted(mine)]
