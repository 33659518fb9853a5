"""`.npz` files: layouts, names, splits, and one clear message for each thing that is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdiff.data import DataError, fetch, open_dataset

from .conftest import random_images

IMAGES = random_images(5, 4, 6)


def expected(images: np.ndarray) -> torch.Tensor:
    values = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float()
    return (values - 127.5) * (1 / 127.5)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2)], ids=["nhwc", "nchw"])
@pytest.mark.parametrize(("name", "label"), [("images", "labels"), ("arr_0", "arr_1"), ("x", "y")])
def test_layouts_and_names(tmp_path, order, name, label):
    np.savez(tmp_path / "set.npz", **{name: IMAGES.transpose(order), label: np.array([0, 2, 1, 2, 0], np.int32)})
    dataset = open_dataset(str(tmp_path / "set.npz"))
    x, labels = fetch(dataset, [4, 1, 1])
    assert (dataset.sample_shape, dataset.classes, len(dataset)) == ((3, 4, 6), 3, 5)
    assert torch.equal(x, expected(IMAGES)[[4, 1, 1]]) and labels.tolist() == [0, 2, 2]
    assert open_dataset(str(tmp_path / "set.npz"), classes=7).classes == 7
    assert fetch(open_dataset(str(tmp_path / "set.npz"), classes=0), [1])[1].tolist() == [-1]


def test_grey_and_conversion(tmp_path):
    np.savez(tmp_path / "set.npz", images=IMAGES[..., 0])
    dataset = open_dataset(tmp_path / "set.npz")
    assert dataset.sample_shape == (1, 4, 6) and dataset.classes == 0
    assert torch.equal(fetch(dataset, range(5))[0], expected(IMAGES[..., :1]))
    rgb = open_dataset(tmp_path / "set.npz", size=4, channels=3)
    assert torch.equal(fetch(rgb, range(5))[0], expected(IMAGES[:, :, 1:5, :1]).expand(-1, 3, -1, -1))


def test_floats(tmp_path):
    latents = np.random.default_rng(0).uniform(-1, 1, (3, 4, 5, 5))
    np.savez(tmp_path / "latents.npz", images=latents)
    assert torch.equal(fetch(open_dataset(tmp_path / "latents.npz"), range(3))[0], torch.from_numpy(latents).float())
    np.savez(tmp_path / "points.npz", x=9 * latents[:, 0, 0])
    assert open_dataset(tmp_path / "points.npz").sample_shape == (5,)


def test_splits(tmp_path):
    np.savez(
        tmp_path / "mnist.npz", x_train=IMAGES[:3, ..., 0], y_train=[1, 0, 1], x_test=IMAGES[3:, ..., 0], y_test=[0, 1]
    )
    for split, part, labels in (("train", slice(0, 3), [1, 0, 1]), ("test", slice(3, 5), [0, 1])):
        dataset = open_dataset(tmp_path / "mnist.npz", split=split)
        x, found = fetch(dataset, range(len(dataset)))
        assert torch.equal(x, expected(IMAGES[part, ..., :1])) and found.tolist() == labels
    np.savez(tmp_path / "plain.npz", images=IMAGES, labels=[0, 1, 2, 3, 4])
    train, test = (open_dataset(tmp_path / "plain.npz", split=split, holdout=2) for split in ("train", "test"))
    assert sorted([*train.labels.tolist(), *test.labels.tolist()]) == [0, 1, 2, 3, 4]
    assert train.classes == test.classes == 5


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": IMAGES}, "none of images, arr_0, x, x_train among pictures"),
        ({"images": IMAGES[:0]}, "images: no samples"),
        ({"images": IMAGES.astype(np.int64)}, r"images: must be uint8 \[N, H, W, C\].*, got int64"),
        ({"images": 2.0 * IMAGES}, r"floating images must be in \[-1, 1\], got"),
        ({"images": np.full((2, 1, 2, 2), np.nan)}, r"floating images must be in \[-1, 1\], got nan"),
        ({"images": IMAGES, "labels": np.zeros(4, int)}, r"labels must be 5 integers, one per sample, got int64 \[4\]"),
        ({"images": IMAGES, "labels": np.eye(5)}, "labels must be 5 integers, one per sample, got float64"),
        ({"images": IMAGES, "labels": np.array([0, 1, -1, 0, 0])}, r"labels must be in \[0, 2\), got -1 to 1"),
        ({"images": np.array([{}, {}])}, "not a readable .npz file .Object arrays cannot be loaded"),
    ],
)
def test_wrong_files(tmp_path, arrays, message):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path / "set.npz")


def test_unreadable_files(tmp_path):
    (tmp_path / "set.npz").write_bytes(b"PK")
    for name in ("set.npz", "missing.npz"):
        with pytest.raises(DataError, match=rf"{name}: not a readable \.npz file"):
            open_dataset(tmp_path / name)
    np.savez(tmp_path / "set.npz", images=IMAGES)
    for arguments, message in (({"classes": 3}, "has no labels, got classes=3"), ({"split": "test"}, "no test split")):
        with pytest.raises(DataError, match=message):
            open_dataset(tmp_path / "set.npz", **arguments)
