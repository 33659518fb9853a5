"""Small image files of every kind."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image


def random_images(count: int, height: int = 6, width: int = 6, channels: int = 3, seed: int = 0) -> np.ndarray:
    """uint8 [count, H, W, C]."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def png(array: np.ndarray) -> bytes:
    """A PNG of [H, W, C]."""
    packed = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(packed, "png")
    return packed.getvalue()


def write_folder(root, files: dict[str, bytes]):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_zip(path, files: dict[str, bytes]):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def edm_files(images: np.ndarray, labels) -> dict[str, bytes]:
    """The members of an EDM data set; labels None writes null."""
    names = [f"{i // 4:05d}/img{i:08d}.png" for i in range(len(images))]
    known = None if labels is None else [[name, label] for name, label in zip(names, labels)]
    files = {name: png(image) for name, image in zip(names, images)}
    return {**files, "dataset.json": json.dumps({"labels": known}).encode()}


@pytest.fixture(params=["folder", "zip"])
def write(request, tmp_path):
    """Writes the same files as a folder or as a zip and returns the path."""
    if request.param == "folder":
        return lambda files: write_folder(tmp_path / "set", files)
    return lambda files: write_zip(tmp_path / "set.zip", files)
