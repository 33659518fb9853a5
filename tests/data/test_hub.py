"""Data sets of the `datasets` library and of PyTorch."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from fastdiff.data import DataError, Feed, NoSplitError, fetch, open_dataset

from .conftest import png, random_images

IMAGES = random_images(6)
EXPECTED = (torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy()).float() - 127.5) * (1 / 127.5)


@pytest.fixture(scope="module")
def datasets():
    return pytest.importorskip("datasets")


def rows(datasets, **columns):
    kinds = {"image": datasets.Image(), "second": datasets.Image(), "label": datasets.ClassLabel(3), "n": None}
    columns = {"image": [{"bytes": png(image), "path": None} for image in IMAGES]} | columns
    features = {name: kinds[name] or datasets.Value("int64") for name in columns}
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


@pytest.mark.parametrize("memory", [2**29, 0])
def test_a_data_set_of_the_library(datasets, memory):
    dataset = open_dataset(rows(datasets, label=[0, 1, 2, 0, 1, 2]), memory=memory)
    assert (dataset.sample_shape, dataset.classes, len(dataset)) == ((3, 6, 6), 3, 6)
    for workers in (0, 2):
        x, labels = fetch(dataset, [5, 0, 4], workers)
        assert torch.equal(x, EXPECTED[[5, 0, 4]]) and labels.tolist() == [2, 0, 1]
    x, labels = Feed(dataset, lambda iteration: [iteration, 5], workers=1)(3)
    assert torch.equal(x, EXPECTED[[3, 5]]) and labels.tolist() == [0, 2]


def test_saved_on_disk(datasets, tmp_path):
    both = datasets.DatasetDict(train=rows(datasets, n=list(range(6))), test=rows(datasets).select([3]))
    both.save_to_disk(tmp_path / "both")
    assert len(open_dataset(f"hf:{tmp_path / 'both'}")) == 6
    assert open_dataset(f"hf:{tmp_path / 'both'}").classes == 0
    for source, split in ((f"hf:{tmp_path / 'both'}", "test"), (f"hf:{tmp_path / 'both'}:test", "train")):
        assert torch.equal(fetch(open_dataset(source, split=split), [0])[0], EXPECTED[[3]])
    with pytest.raises(DataError, match="split must be one of train, test, got 'val'") as caught:
        open_dataset(f"hf:{tmp_path / 'both'}:val", split="test")
    assert not isinstance(caught.value, NoSplitError)
    rows(datasets).save_to_disk(tmp_path / "one")
    assert len(open_dataset(f"hf:{tmp_path / 'one'}")) == 6
    with pytest.raises(NoSplitError, match="has no test split"):
        open_dataset(f"hf:{tmp_path / 'one'}", split="test")
    train, test = (open_dataset(f"hf:{tmp_path / 'both'}:train", split=split, holdout=2) for split in ("train", "test"))
    assert (len(train), len(test)) == (4, 2)


def test_a_folder_the_library_reads(datasets, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for label in ("a", "b"):
        (tmp_path / "set" / label).mkdir(parents=True)
    for i, image in enumerate(IMAGES):
        (tmp_path / "set" / "ab"[i % 2] / f"{i}.png").write_bytes(png(image))
    dataset = open_dataset(f"hf:{tmp_path / 'set'}")
    x, labels = fetch(dataset, range(6))
    assert dataset.classes == 2 and labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(x, EXPECTED[[0, 2, 4, 1, 3, 5]])
    assert torch.equal(fetch(open_dataset(f"hf:{tmp_path / 'set'}:train[:50%]"), range(3))[0], x[:3])
    with pytest.raises(NoSplitError, match="split must be one of train, got 'test'"):
        open_dataset(f"hf:{tmp_path / 'set'}", split="test")


def test_an_unreadable_row(datasets):
    broken = [{"bytes": png(image)[: 70 if i == 2 else None], "path": None} for i, image in enumerate(IMAGES)]
    broken[4] = None
    with pytest.warns(RuntimeWarning) as caught:
        dataset = open_dataset(rows(datasets, image=broken), bad_share=0.5)
    assert "Dataset: row 2: cannot be read (" in str(caught[0].message)
    assert "Dataset: row 4: has no image" in str(caught[1].message)
    assert torch.equal(fetch(dataset, [2, 4])[0], EXPECTED[[3, 5]])


def test_wrong_columns(datasets, tmp_path):
    twice = rows(datasets, second=[{"bytes": png(image), "path": None} for image in IMAGES])
    for data, message in (
        (twice, r"one column of images, got 2 among image \(Image\), second \(Image\)"),
        (rows(datasets, n=list(range(6))).remove_columns("image"), "one column of images, got 0 among n"),
    ):
        with pytest.raises(DataError, match=message):
            open_dataset(data)
    with pytest.raises(DataError, match=r"hf:.*nowhere: cannot be loaded \("):
        open_dataset(f"hf:{tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match=r"row 0: class -1 is not in \[0, 3\)"):
        open_dataset(rows(datasets, label=[-1] * 6))


def test_the_library_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install datasets"):
        open_dataset("hf:cifar10")


class Items(Dataset):
    def __init__(self, items, classes=None):
        self.items = items
        if classes is not None:
            self.classes = classes

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


NCHW = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize(
    "items",
    [
        [(Image.fromarray(image), i % 3) for i, image in enumerate(IMAGES)],
        [(image, np.int64(i % 3)) for i, image in enumerate(IMAGES)],
        [{"image": image, "label": torch.tensor(i % 3)} for i, image in enumerate(NCHW)],
        [[image, i % 3, "more"] for i, image in enumerate(EXPECTED)],
    ],
    ids=["pillow", "numpy", "dict", "float"],
)
def test_items(items):
    for arguments in ({}, {"classes": 3, "memory": 0}):
        dataset = open_dataset(Items(items), **arguments)
        x, labels = fetch(dataset, [5, 1])
        assert torch.equal(x, EXPECTED[[5, 1]]) and labels.tolist() == [2, 1] and dataset.classes == 3
    assert open_dataset(Items(items, ["a", "b", "c", "d"]), memory=0).classes == 4
    with pytest.raises(DataError, match="classes must be given for a set that is not held in memory"):
        open_dataset(Items(items), memory=0)


def test_items_without_classes():
    assert open_dataset(Items(list(NCHW))).classes == 0
    assert open_dataset(TensorDataset(EXPECTED)).classes == 0
    assert open_dataset(TensorDataset(torch.randn(7, 2)), memory=0, classes=0).sample_shape == (2,)
    with pytest.raises(DataError, match=r"item 0: class -1 is not in \[0, 3\)"):
        open_dataset(TensorDataset(EXPECTED), classes=3)
    test = open_dataset(TensorDataset(EXPECTED), split="test", holdout=2)
    assert len(test) == 2


def test_wrong_items():
    items = list(NCHW)
    items[1] = KeyError("broken")
    with pytest.warns(RuntimeWarning, match=r"Items: item 1: cannot be read \(KeyError: 'broken'\)"):
        open_dataset(Items(items), bad_share=0.2)
    with pytest.raises(DataError, match=r"item 0: values from -2 to .* where \[-1, 1\] is wanted"):
        open_dataset(Items(list(EXPECTED - 1)))
    with pytest.raises(DataError, match=r"expected uint8 \[H, W\].*, got torch.int64 \[3, 6, 6\]"):
        open_dataset(Items(list(NCHW.long())))
    with pytest.raises(DataError, match="generator: must be a data set with a length and items by index"):
        open_dataset(i for i in range(3))
    with pytest.raises(DataError, match="Items: no samples"):
        open_dataset(Items([]))
