"""Folders and zip archives: the same files give the same set; what is wrong with one is said, named and counted."""

from __future__ import annotations

import io
import json
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.data import DataError, InMemory, NoSplitError, archive, fetch, open_dataset
from fastdiff.data.lazy import Lazy

from ..tolerances import ROUNDING
from .conftest import edm_files, png, random_images, write_folder, write_zip

LABELS = [3, 0, 1, 1, 2, 0, 3]


@pytest.fixture(params=[2**29, 0], ids=["held", "lazy"])
def memory(request):
    return request.param


def tensor(images: np.ndarray) -> torch.Tensor:
    """[N, H, W, C] as float64 [N, C, H, W] in [-1, 1]."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float64)) / 127.5 - 1


def close(x: torch.Tensor, wanted: torch.Tensor) -> bool:
    return torch.allclose(x.double(), wanted, rtol=0, atol=ROUNDING[torch.float32])


def test_edm_files(write, memory):
    images = random_images(7)
    dataset = open_dataset(write(edm_files(images, LABELS)), memory=memory)
    assert isinstance(dataset, Lazy if memory == 0 else InMemory)
    assert (len(dataset), dataset.sample_shape, dataset.classes) == (7, (3, 6, 6), 4)
    order = [6, 0, 3, 3, 1]
    for workers in (0, 3):
        x, labels = fetch(dataset, order, workers)
        assert x.dtype == torch.float32 and labels.dtype == torch.int64
        assert close(x, tensor(images)[order])
        assert labels.tolist() == [LABELS[i] for i in order]
    one, label = dataset[6]
    assert torch.equal(one, x[0]) and label == 3
    assert fetch(dataset, [])[0].shape == (0, 3, 6, 6)
    assert dataset.to("cpu").bad == {}
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(fetch(again, order)[0], x)
    for index in (7, -1):
        with pytest.raises(IndexError, match=r"indices must be in \[0, 7\)"):
            fetch(dataset, [index])


def test_null_labels_are_none(write):
    dataset = open_dataset(write(edm_files(random_images(7), None)))
    assert dataset.classes == 0
    assert fetch(dataset, range(7))[1].tolist() == [-1] * 7


def test_sub_folders_are_classes(write, memory):
    images = random_images(4)
    names = ["cat/b/0.png", "cat/1.png", "ant/2.png", "dog/3.png"]
    path = write({name: png(image) for name, image in zip(names, images)} | {"cat/notes.txt": b"", "._0.png": b""})
    dataset = open_dataset(path, memory=memory)
    x, labels = fetch(dataset, range(4))
    assert dataset.classes == 3 and labels.tolist() == [0, 1, 1, 2]
    assert close(x, tensor(images)[[2, 1, 0, 3]])
    assert fetch(open_dataset(path, memory=memory, classes=0), range(4))[1].tolist() == [-1] * 4
    assert open_dataset(path, memory=memory, classes=5).classes == 5
    with pytest.raises(DataError, match=r"labels must be in \[0, 2\), got up to 2"):
        open_dataset(path, memory=memory, classes=2)


def test_images_beside_sub_folders_have_no_classes(write):
    dataset = open_dataset(write({name: png(random_images(1)[0]) for name in ("a/0.png", "b/0.png", "0.png")}))
    assert dataset.classes == 0
    with pytest.raises(DataError, match="has no labels, got classes=2"):
        open_dataset(dataset.name, classes=2)


def test_npy_members(write):
    images = random_images(3)
    files = {}
    for i, image in enumerate((images[0].transpose(2, 0, 1), images[1], images[2])):
        packed = io.BytesIO()
        np.save(packed, image)
        files[f"{i}.npy"] = packed.getvalue()
    assert close(fetch(open_dataset(write(files)), range(3))[0], tensor(images))


def test_floating_latents(write):
    latents = np.random.default_rng(0).uniform(-1, 1, (3, 4, 5, 5))
    files = {}
    for i, latent in enumerate(latents):
        packed = io.BytesIO()
        np.save(packed, latent)
        files[f"{i}.npy"] = packed.getvalue()
    assert torch.equal(fetch(open_dataset(write(files)), range(3))[0], torch.from_numpy(latents).float())
    np.save(packed := io.BytesIO(), 3 * latents[0])
    with pytest.raises(DataError, match=r"9.npy: values from .* where \[-1, 1\] is wanted"):
        open_dataset(write(files | {"9.npy": packed.getvalue()}))


def test_bad_files_are_replaced_named_and_counted(write, memory):
    images = random_images(9)
    files = edm_files(images, [0, 1, 2, 3, 4, 5, 6, 7, 8])
    names = sorted(name for name in files if name.endswith("png"))
    files[names[2]] = files[names[2]][:60]  # truncated
    files[names[3]] = b"not an image"
    files[names[8]] = b""
    path = write(files)
    with pytest.warns(RuntimeWarning) as caught:
        dataset = open_dataset(path, memory=memory, bad_share=0.4)
    assert len(caught) == 3 and "another sample takes its place" in str(caught[0].message)
    assert names[2] in str(caught[0].message) and "truncated" in str(caught[0].message)
    assert len(dataset.bad) == 3 and set(dataset.bad) == {names[i] for i in (2, 3, 8)}
    x, labels = fetch(dataset, range(9))
    assert labels.tolist() == [0, 1, 4, 4, 4, 5, 6, 7, 0]
    assert close(x, tensor(images)[labels.tolist()])
    with pytest.raises(DataError, match=r"1 of 9 samples cannot be used, more than 10%; the first: .*00002.png"):
        open_dataset(path, memory=memory, bad_share=0.1)


def test_all_bad(write):
    with pytest.raises(DataError, match=r"1 of 5 samples cannot be used, more than 1%; the first: 0.png: not an image"):
        open_dataset(write({f"{i}.png": b"no" for i in range(5)}))


def test_a_bad_file_met_later(tmp_path):
    """One that changed after opening: an unreadable image, then one of another size, then a missing file."""
    images = random_images(6)
    root = write_folder(tmp_path, {f"{i}.png": png(image) for i, image in enumerate(images)})
    dataset = open_dataset(root, memory=0, bad_share=0.5)
    (root / "1.png").write_bytes(b"")
    (root / "2.png").write_bytes(png(random_images(1, 5, 7)[0]))
    (root / "3.png").unlink()
    with pytest.warns(RuntimeWarning) as caught:
        x, _ = fetch(dataset, [2, 1])
    assert [str(one.message).split(": ", 1)[1].split(";")[0] for one in caught] == [
        "2.png: 7x5 pixels of 3 channels where 0.png is 6x6 pixels of 3 channels",
        "3.png: cannot be opened (No such file or directory)",
        "1.png: not an image",
    ]
    assert torch.equal(x, fetch(dataset, [4, 4])[0]) and len(dataset.bad) == 3
    (root / "4.png").write_bytes(b"")
    for _ in range(2):  # and from then on
        with pytest.raises(DataError, match="4 of 6 samples cannot be used, more than 50%"):
            fetch(dataset, [4])


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (png(random_images(1, 8, 6)[0]), "1.png: 6x8 pixels of 3 channels where .*0.png is 6x6 .*size=N crops"),
        (png(random_images(1, 6, 6, 1)[0]), "1.png: 6x6 pixels of 1 channel where .*channels=1 or 3 converts"),
    ],
)
def test_other_sizes_and_channels_are_refused(write, memory, odd, message):
    path = write({"0.png": png(random_images(1)[0]), "1.png": odd})
    with pytest.raises(DataError, match=message):
        open_dataset(path, memory=memory)
    assert open_dataset(path, memory=memory, size=4, channels=1).sample_shape == (1, 4, 4)


def test_modes(write):
    grey = random_images(1, channels=1)[0][..., 0]
    files = {}
    for i, mode in enumerate(("L", "1", "P", "RGB", "RGBA", "LA", "CMYK")):
        packed = io.BytesIO()
        Image.fromarray(grey).convert(mode).save(packed, "tiff")
        files[f"{i}.tiff"] = packed.getvalue()
    dataset = open_dataset(write(files), channels=3)
    x = fetch(dataset, range(7))[0]
    assert dataset.sample_shape == (3, 6, 6)
    assert all(torch.equal(x[i], x[0]) for i in (2, 3, 4, 5))
    packed = io.BytesIO()
    Image.fromarray(grey).convert("RGBA").save(packed, "png")
    with pytest.raises(DataError, match=r"mode RGBA where 8-bit grey or RGB is wanted .channels=3 or"):
        open_dataset(write({"0.png": packed.getvalue()}))
    packed = io.BytesIO()
    Image.fromarray(grey.astype(np.uint16)).save(packed, "png")
    with pytest.raises(DataError, match=r"mode I;16 .*convert it to 8 bits"):
        open_dataset(write({"0.png": packed.getvalue()}), channels=1)


def test_images_are_turned_as_their_exif_says(write):
    image = random_images(1, 4, 6)[0]
    exif, packed = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # to be seen as it is, the picture is turned by 90 degrees clockwise
    Image.fromarray(image).save(packed, "png", exif=exif)
    assert close(fetch(open_dataset(write({"0.png": packed.getvalue()})), [0])[0], tensor(np.rot90(image, -1)[None]))


def test_a_member_that_would_fill_the_memory(tmp_path, monkeypatch):
    files = {"0.png": png(random_images(1)[0]), "1.png": png(random_images(1)[0]) + bytes(3000)}
    monkeypatch.setattr(archive, "_MOST_BYTES", 2000)
    with pytest.warns(RuntimeWarning, match="1.png: has 3.* bytes, more than 2000"):
        dataset = open_dataset(write_zip(tmp_path / "set.zip", files), bad_share=0.5)
    assert list(dataset.bad) == ["1.png"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    write_folder(tmp_path, {f"{name}/0.png": png(random_images(1)[0]) for name in "ab"})
    scan = os.scandir

    def forbidden(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(DataError, match=r"b: cannot be listed .Permission denied"):
        open_dataset(tmp_path)


def test_centre_crop(write):
    wide = np.zeros((6, 10, 3), np.uint8)
    wide[:, 2:8] = 200
    x, _ = fetch(open_dataset(write({"0.png": png(wide)}), size=3), [0])
    assert x.shape == (1, 3, 3, 3) and close(x, torch.full_like(x, 200 / 127.5 - 1).double())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"labels": [["0.png", 1]]}, "no label for 1.png .1 images lack one"),
        ({"labels": [["0.png", 1], ["1.png", -1]]}, r"label of 1.png must be an integer from 0 to \d+, got -1"),
        ({"labels": [["0.png", 1], ["1.png", 10**20]]}, "label of 1.png must be an integer from 0 to 2147483647"),
        ({"labels": [["0.png", 1], ["1.png", 0.5]]}, "label of 1.png must be an integer .*, got 0.5"),
        ({"labels": [["0.png", 1], ["1.png", [0, 1]]]}, "label of 1.png must be an integer"),
        ({"labels": 3}, "dataset.json: expected"),
        ([1], "dataset.json: expected"),
    ],
)
def test_labels(write, labels, message):
    image = png(random_images(1)[0])
    with pytest.raises(DataError, match=message):
        open_dataset(write({"0.png": image, "1.png": image, "dataset.json": json.dumps(labels).encode()}))


def test_unreadable_label_file(write):
    with pytest.raises(DataError, match=r"dataset.json: expected"):
        open_dataset(write({"0.png": png(random_images(1)[0]), "dataset.json": b'{"labels": [['}))


def test_labels_elsewhere_in_a_zip(tmp_path):
    files = {f"set/{name}": data for name, data in edm_files(random_images(7), LABELS).items()}
    with pytest.raises(DataError, match=r"dataset\.json must be at the top of the archive, got set/dataset\.json"):
        open_dataset(write_zip(tmp_path / "set.zip", files))


def test_nothing_to_read(write, tmp_path):
    with pytest.raises(DataError, match=r"no images .*\.png.* among its 1 file"):
        open_dataset(write({"notes.txt": b"hello"}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no images .* among its 0 files"):
        open_dataset(tmp_path / "empty")
    (tmp_path / "no.zip").write_bytes(b"PK nothing")
    for name in ("no.zip", "missing.zip"):
        with pytest.raises(DataError, match=rf"{name}: not a readable zip file"):
            open_dataset(tmp_path / name)
    with pytest.raises(DataError, match=r"nowhere: not digits8, .* a folder, a .zip or .npz file, or hf:NAME"):
        open_dataset(tmp_path / "nowhere")


def test_a_damaged_member_of_a_zip(tmp_path):
    path = write_zip(tmp_path / "set.zip", {f"{i}.png": png(image) for i, image in enumerate(random_images(3))})
    data = bytearray(path.read_bytes())
    data[80] ^= 255  # inside 0.png, which is stored uncompressed
    path.write_bytes(data)
    with pytest.warns(RuntimeWarning, match="0.png: cannot be read .Bad CRC-32"):
        dataset = open_dataset(path, bad_share=0.5)
    assert torch.equal(dataset[0][0], dataset[1][0])


def test_links_back_end(tmp_path):
    write_folder(tmp_path, {"a/0.png": png(random_images(1)[0])})
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert len(open_dataset(tmp_path)) == 1


def test_splits(tmp_path):
    images = random_images(5)
    root = write_folder(tmp_path, {f"{i}.png": png(image) for i, image in enumerate(images)})
    with pytest.raises(NoSplitError, match="has no test split; holdout=N makes one"):
        open_dataset(root, split="test")
    parts = [fetch(d, range(len(d)))[0] for d in (open_dataset(root, split=s, holdout=2) for s in ("train", "test"))]
    assert [len(part) for part in parts] == [3, 2]
    whole = fetch(open_dataset(root), range(5))[0]
    assert torch.equal(torch.cat(parts).flatten(1).sum(1).sort().values, whole.flatten(1).sum(1).sort().values)
    with pytest.raises(DataError, match=r"holdout must be below the number of samples .5., got 5"):
        open_dataset(root, holdout=5)
    write_folder(tmp_path, {"train/0.png": png(images[0]), "val/0.png": png(images[1])})
    for split, image in (("train", 0), ("test", 1)):
        dataset = open_dataset(root, split=split)
        assert close(fetch(dataset, [0])[0], tensor(images)[[image]])
    (root / "val").rename(root / "other")
    with pytest.raises(NoSplitError, match="has a train folder, but none called test or val"):
        open_dataset(root, split="test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "val"}, "split must be one of train, test, got 'val'"),
        ({"size": 0}, "size must be an integer of at least 1, got 0"),
        ({"channels": 2}, "channels must be one of None, 1, 3, got 2"),
        ({"bad_share": 1}, r"bad_share must be in \[0, 1\), got 1"),
        ({"holdout": -1}, "holdout must be an integer of at least 0, got -1"),
    ],
)
def test_bad_arguments(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(tmp_path, **change)
