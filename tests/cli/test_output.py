"""Output folders and pictures."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from click import ClickException
from PIL import Image

from fastdiff.cli import CliError
from fastdiff.cli.output import OutputFolder, grid, npz_bytes, png_bytes


def test_grid_is_square_in_order_and_enlarged():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 16, 16, 1), np.uint8)
    picture = grid(images)
    assert picture.shape == (2 * 64, 3 * 64, 1)
    assert [int(picture[y, x, 0]) for y in (0, 127) for x in (0, 64, 191)] == [0, 1, 2, 3, 4, 0]


@pytest.mark.parametrize(
    ("count", "size", "shape"), [(1, 8, (64, 64, 3)), (64, 32, (512, 512, 3)), (3, 100, (200, 200, 3))]
)
def test_grid_sizes(count, size, shape):
    assert grid(np.zeros((count, size, size, 3), np.uint8)).shape == shape


def test_grid_shows_only_so_many():
    assert grid(np.zeros((10, 64, 64, 1), np.uint8), most=4).shape == (128, 128, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(channels):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    read = np.asarray(Image.open(io.BytesIO(png_bytes(picture))))
    assert np.array_equal(read.reshape(picture.shape), picture)


def test_npz_needs_no_pickle():
    arrays = np.load(io.BytesIO(npz_bytes({"seeds": np.arange(3)}, {"steps": 5})), allow_pickle=False)
    assert arrays["seeds"].tolist() == [0, 1, 2]
    assert arrays["config"].item() == '{"steps": 5}'


def test_files_appear_together_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "new/deep"
    with OutputFolder(target, ("a", "b")) as folder:
        assert os.listdir(target) == []
        folder.write({"a": b"1", "b": b"2"})
    assert sorted(os.listdir(target)) == ["a", "b"]

    with pytest.raises(TypeError), OutputFolder(target, ("a", "b")) as folder:
        folder.write({"a": b"3", "b": None})
    assert (target / "a").read_bytes() == b"1"
    assert sorted(os.listdir(target)) == ["a", "b"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ClickException, match=r"cannot write to .*: No space left on device"):
        with OutputFolder(tmp_path / "new", ("a",)) as folder:
            folder.write({"a": b"1"})
    assert os.listdir(tmp_path) == []


def test_a_failed_body_removes_the_folders_it_made(tmp_path):
    (tmp_path / "old").mkdir()
    with pytest.raises(RuntimeError), OutputFolder(tmp_path / "old/new/deep", ()):
        raise RuntimeError
    assert os.listdir(tmp_path / "old") == []


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "grid.png").mkdir()
    for path, files in ((tmp_path / "file", ()), (tmp_path / "file/below", ()), (tmp_path, ("grid.png",))):
        with pytest.raises(CliError, match=f"--outdir: cannot write to {path}"):
            OutputFolder(path, files).__enter__()
    assert sorted(os.listdir(tmp_path)) == ["file", "grid.png"]
