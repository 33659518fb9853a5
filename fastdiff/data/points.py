"""Two-dimensional sets for examples: swiss roll, moons, checkerboard, Gaussian mixtures.

Every coordinate has mean 0 and variance 1 (of the distribution, not of the draw: every size and split has the same
map). A point is decided by (seed, split, index), so a larger set begins with the smaller one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import ops
from ..errors import check_choice, check_count
from .samples import InMemory

__all__ = ["POINT_SETS", "draw_points", "point_set"]

_Draw = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
_MAX_SEED = 2**21


def _swiss_roll(uniform: Tensor, normal: Tensor) -> tuple[Tensor, None]:
    """t (cos t, sin t) with t uniform on [3 pi / 2, 9 pi / 2], plus noise of 0.25."""
    t, noise = 1.5 * math.pi * (1 + 2 * uniform[:, 0]), 0.25
    x = torch.stack([t * t.cos(), t * t.sin()], 1) + noise * normal
    mean = torch.tensor([2.0, 2 / (3 * math.pi)], dtype=x.dtype)
    square = 4.875 * math.pi**2 + torch.tensor([-0.25, 0.25], dtype=x.dtype)
    return (x - mean) / (square - mean**2 + noise**2).sqrt(), None


def _moons(uniform: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    """Two interleaved half circles, plus noise of 0.05; two classes."""
    angle, lower, noise = math.pi * uniform[:, 0], uniform[:, 1] < 0.5, 0.05
    outer = torch.stack([angle.cos(), angle.sin()], 1)
    inner = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    x = torch.where(lower[:, None], inner, outer) + noise * normal
    mean = torch.tensor([0.5, 0.25], dtype=x.dtype)
    variance = torch.tensor([0.75, 0.5625 - 1 / math.pi], dtype=x.dtype)
    return (x - mean) / (variance + noise**2).sqrt(), lower.long()


def _checkerboard(uniform: Tensor, normal: Tensor) -> tuple[Tensor, None]:
    """Uniform on the eight black squares of a 4x4 board."""
    column, row = (4 * uniform[:, 0]).floor(), (2 * uniform[:, 1]).floor()
    y = 2 * row + column % 2 + (2 * uniform[:, 1] - row)
    return (torch.stack([4 * uniform[:, 0], y], 1) - 2) / math.sqrt(4 / 3), None


def _gaussians8(uniform: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    """Eight Gaussians of deviation 0.1 on the unit circle, as many classes."""
    label = (8 * uniform[:, 0]).long().clamp_(max=7)
    angle = label * (math.pi / 4)
    x = torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * normal
    return x / math.sqrt(0.5 + 0.01), label


def _gaussians25(uniform: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    """25 Gaussians of deviation 0.05 on the integer points of [-2, 2]^2, as many classes."""
    label = (25 * uniform[:, 0]).long().clamp_(max=24)
    x = torch.stack([label % 5 - 2, label // 5 - 2], 1) + 0.05 * normal
    return x / math.sqrt(2 + 0.0025), label


POINT_SETS: dict[str, _Draw] = {
    "swiss_roll": _swiss_roll,
    "moons": _moons,
    "checkerboard": _checkerboard,
    "gaussians8": _gaussians8,
    "gaussians25": _gaussians25,
}


def draw_points(name: str, count: int, *, seed: int = 0, split: str = "train") -> tuple[Tensor, Tensor | None]:
    """Points of a two-dimensional set.

    Args:
        name: a key of `POINT_SETS`.
        count: any number of points.
        seed: 0 to 2^21 - 1.
        split: "train" or "test": points of other draws.

    Returns:
        (float32 [count, 2], labels int64 [count] or None).

    Raises:
        ValueError: an argument out of range.
    """
    check_choice("name", name, POINT_SETS)
    check_choice("split", split, ("train", "test"))
    check_count("count", count)
    if check_count("seed", seed, 0) >= _MAX_SEED:
        raise ValueError(f"seed must be below {_MAX_SEED}, got {seed}")
    seeds = torch.arange(count) + ((2 * seed + (split == "test")) << 40)
    normals = ops.normal(seeds, (count, 4)).double()
    x, labels = POINT_SETS[name](torch.special.ndtr(normals[:, 2:]), normals[:, :2])
    return x.float(), labels


def point_set(name: str, count: int = 100_000, *, seed: int = 0, split: str = "train") -> InMemory:
    """As `draw_points`, as a data set (12 bytes a point, 16 with classes)."""
    x, labels = draw_points(name, count, seed=seed, split=split)
    return InMemory(name, x, labels, {"moons": 2, "gaussians8": 8, "gaussians25": 25}.get(name))
