"""Class labels as rows and as indices; the widths of group norms; how weights start."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fastdiff.models.blocks import class_index, class_rows, edm_groups, variance_scaling_, zero_

X = torch.zeros(3, 1, 2, 2, dtype=torch.float64)


def test_rows():
    rows = class_rows(torch.tensor([2, -1, 0]), 4, X)
    assert rows.dtype == X.dtype and rows.tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert class_rows(None, 4, X).tolist() == [[0, 0, 0, 0]]
    mixed = torch.tensor([[0.25, 0.75, 0.0, 0.0]])
    assert torch.equal(class_rows(mixed, 4, X), mixed.double())


def test_indices():
    indices = torch.tensor([2, 1, 0])
    assert torch.equal(class_index(indices, 3, 4), indices)
    assert torch.equal(class_index(class_rows(indices, 4, X), 3, 4), indices)


@pytest.mark.parametrize(
    "labels",
    [torch.zeros(2, dtype=torch.int64), torch.zeros(3), torch.zeros(3, 5), torch.zeros(2, 4), torch.zeros(3, 1, 4)],
    ids=lambda labels: f"{labels.dtype} {list(labels.shape)}",
)
def test_other_shapes_are_refused(labels: torch.Tensor):
    with pytest.raises(ValueError, match=r"labels must be int64 \[3\] or floating \[3 or 1, 4\], got torch"):
        class_rows(labels, 4, X)
    with pytest.raises(ValueError, match=r"labels must be int64 \[3\] or rows \[3, 4\], got torch"):
        class_index(labels, 3, 4)


def test_groups():
    assert [edm_groups(channels) for channels in (4, 12, 20, 64, 128, 192)] == [1, 3, 5, 16, 32, 32]
    for channels in (3, 9, 130):
        with pytest.raises(ValueError, match=f"channels of a group norm must be at least 4, .* got {channels}"):
            edm_groups(channels)


@pytest.mark.parametrize(("mode", "fan"), [("fan_in", 16 * 9), ("fan_avg", (16 + 64) / 2 * 9)])
@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_variance_of_weights(mode: str, fan: float, distribution: str):
    torch.manual_seed(1)
    weight = variance_scaling_(torch.empty(64, 16, 3, 3), 2.0, mode, distribution)
    deviation = math.sqrt(2.0 / fan)
    assert abs(weight.mean()) < 0.05 * deviation and abs(weight.std() / deviation - 1) < 0.05
    assert (weight.abs().max() <= math.sqrt(3) * deviation * 1.001) == (distribution == "uniform")


def test_zeros():
    assert not variance_scaling_(torch.ones(4, 4), 0.0).any()
    assert not any(parameter.any() for parameter in zero_(nn.Linear(3, 3)).parameters())
    for options in ({"mode": "fan_out"}, {"distribution": "cauchy"}, {"scale": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
            variance_scaling_(torch.empty(4, 4), **options)  # type: ignore[arg-type]
