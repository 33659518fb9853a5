"""Output folders and array files."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from click import ClickException

from fastdiff.cli import CliError
from fastdiff.cli.output import OutputFolder, npz_bytes


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
