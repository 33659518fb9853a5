"""The sliced Wasserstein distance against closed forms and assignments."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from fastdiff.evaluation import sliced_wasserstein, wasserstein


def points(count: int, dim: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_in_one_dimension_it_is_the_optimal_assignment():
    a, b = points(50, 1), 2 * points(50, 1, seed=1) + 1
    cost = (a - b.T).square().numpy()
    rows, columns = linear_sum_assignment(cost)
    assert sliced_wasserstein(a, b) == pytest.approx(math.sqrt(cost[rows, columns].mean()), rel=1e-12)


def test_unequal_sizes_are_compared_by_quantiles():
    """Points that are repeated are the same distribution, so any pair of sizes has a pair of equal ones."""
    a, b = points(6), points(4, seed=1)
    equal = sliced_wasserstein(a.repeat_interleave(2, 0), b.repeat_interleave(3, 0))
    assert sliced_wasserstein(a, b) == pytest.approx(equal, rel=1e-9)
    assert sliced_wasserstein(a, b[:1]) > 0


def test_a_shift_and_a_scale_have_closed_forms():
    """A shift by m: |m| / sqrt(d) on average over directions; a scale s of one set: |s - 1| times its own size."""
    a = points(300, 3)
    shift = torch.tensor([3.0, 0.0, -4.0], dtype=torch.float64)
    assert sliced_wasserstein(a, a + shift, projections=4000) == pytest.approx(5 / math.sqrt(3), rel=0.03)
    origin = torch.zeros(1, 3, dtype=torch.float64)
    assert sliced_wasserstein(a, 1.5 * a) == pytest.approx(0.5 * sliced_wasserstein(a, origin), rel=1e-9)


def test_equal_sets_are_at_zero_and_the_floor_falls_with_the_count():
    a = points(400)
    assert sliced_wasserstein(a, a[torch.randperm(400)]) == pytest.approx(0, abs=1e-12)
    floors = [sliced_wasserstein(points(n, seed=2), points(n, seed=3)) for n in (100, 2500)]
    assert floors[0] > 2 * floors[1]
    assert sliced_wasserstein(a, 1.2 * a) > floors[1]


def test_it_is_seeded_symmetric_and_takes_images_and_gradients():
    a, b = points(40, 12), points(30, 12, seed=1) + 1
    value = sliced_wasserstein(a, b)
    torch.rand(3)
    assert value == sliced_wasserstein(a, b)
    assert value == pytest.approx(sliced_wasserstein(b, a), rel=1e-12)
    assert value != sliced_wasserstein(a, b, seed=1)
    images = a.reshape(40, 3, 2, 2).requires_grad_()
    assert sliced_wasserstein(images, b.reshape(30, 3, 4)) == value
    assert sliced_wasserstein(a.bfloat16(), b) == pytest.approx(value, rel=0.01)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(3), torch.zeros(3, 2), r"a must be real points \[N, ...\] .* got \[3\]"),
        (torch.zeros(3, 2), torch.zeros(0, 2), r"b must be real points .* got \[0, 2\]"),
        (torch.zeros(3, 2), torch.zeros(3, 3), "equally many elements a point, got 2 and 3"),
        (torch.tensor([[math.nan]]), torch.zeros(1, 1), "a must be finite"),
        (torch.zeros(3, 2, dtype=torch.complex64), torch.zeros(3, 2), "a must be real"),
    ],
)
def test_bad_input_is_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        sliced_wasserstein(a, b)
    with pytest.raises(ValueError, match="projections must be"):
        sliced_wasserstein(points(2), points(2), projections=0)


def test_the_missing_library_is_named(monkeypatch):
    def missing(name: str):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(wasserstein, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r"fastdiff\[eval\]"):
        sliced_wasserstein(points(2), points(2))
