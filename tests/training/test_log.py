"""The log: whole rows, what a resumed run keeps, TensorBoard beside it."""

from __future__ import annotations

import json
import os
import sys
from types import ModuleType

import numpy as np
import pytest

from fastdiff.training.log import Log, read_log


@pytest.fixture(autouse=True)
def no_tensorboard(monkeypatch):
    """As on a machine without it, unless a test says otherwise."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


class Writer:
    """TensorBoard's, as far as it is used."""

    made: list[Writer]

    def __init__(self, folder, purge_step=None):
        self.folder, self.purge_step, self.rows, self.pictures, self.closed = folder, purge_step, [], [], False
        self.flushed = 0
        type(self).made.append(self)

    def add_scalar(self, name, value, step):
        self.rows.append((name, value, step))

    def add_image(self, name, pixels, step, dataformats):
        self.pictures.append((name, pixels.shape, step, dataformats))

    def flush(self):
        self.flushed += 1

    def close(self):
        self.closed = True


@pytest.fixture
def tensorboard(monkeypatch):
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    Writer.made = []
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)


def test_rows_are_lines_of_json(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    log.add(10, loss=1 / 3, heldout=None, skipped=2, note="ä")
    log.add(20, loss=float("nan"), norm=float("inf"))
    log.close()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"iteration": 10, "loss": 1 / 3, "skipped": 2, "note": "ä"}
    assert json.loads(lines[1]) == {"iteration": 20, "loss": None, "norm": None}
    assert read_log(tmp_path / "log.jsonl") == list(map(json.loads, lines))
    assert os.listdir(tmp_path) == ["log.jsonl"]


def test_a_resumed_run_drops_later_and_torn_rows(tmp_path):
    path = tmp_path / "log.jsonl"
    log = Log(path)
    for iteration in (10, 20, 30):
        log.add(iteration, loss=float(iteration))
    with open(path, "a") as file:
        file.write('{"iteration": 40, "lo')
    assert [row["iteration"] for row in read_log(path)] == [10, 20, 30]
    resumed = Log(path, keep=20)
    resumed.add(25, loss=25.0)
    assert [row["iteration"] for row in read_log(path)] == [10, 20, 25]
    assert path.read_bytes().endswith(b"25.0}\n")
    Log(path)
    assert read_log(path) == []


def test_a_row_torn_anywhere_is_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    log = Log(path)
    log.add(1, loss=0.5)
    log.add(2, loss=0.25)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        path.write_bytes(whole[:end])
        assert [row["iteration"] for row in read_log(path)] == [1]
        again = Log(path, keep=2)
        again.add(2, loss=0.25)
        assert path.read_bytes() == whole


def test_lines_that_are_no_rows_are_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'[1]\n{"loss": 1}\n\xff\xfe\n\n{"iteration": 3}\n{"iteration": "4"}\n')
    assert read_log(path) == [{"iteration": 3}]
    with pytest.raises(FileNotFoundError):
        read_log(tmp_path / "absent")


def test_a_resumed_run_without_a_log_begins_one(tmp_path):
    Log(tmp_path / "log.jsonl", keep=5).add(6)
    assert read_log(tmp_path / "log.jsonl") == [{"iteration": 6}]


def test_tensorboard_gets_numbers_and_pictures(tmp_path, tensorboard):
    log = Log(tmp_path / "log.jsonl")
    log.add(10, loss=0.5, skipped=2, note="text", done=True)
    log.picture(10, "samples", np.zeros((4, 6, 1), np.uint8))
    log.close()
    (writer,) = Writer.made
    assert writer.folder == str(tmp_path / "tensorboard")
    assert writer.purge_step == 0
    assert writer.rows == [("loss", 0.5, 10), ("skipped", 2, 10)]
    assert writer.pictures == [("samples", (4, 6, 1), 10, "HWC")]
    assert writer.flushed == 1
    assert writer.closed
    Log(tmp_path / "log.jsonl", keep=10)
    assert Writer.made[-1].purge_step == 11
    Log(tmp_path / "log.jsonl", tensorboard=False)
    assert len(Writer.made) == 2


def test_tensorboard_itself_reads_what_was_written(tmp_path, monkeypatch):
    monkeypatch.undo()
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = Log(tmp_path / "log.jsonl")
    for iteration in (10, 20):
        log.add(iteration, loss=iteration / 8)
    log.picture(20, "samples", np.zeros((4, 6, 3), np.uint8))
    log.close()
    resumed = Log(tmp_path / "log.jsonl", keep=10)
    resumed.add(20, loss=0.125)
    resumed.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(10, 1.25), (20, 0.125)]


def test_pictures_need_no_tensorboard(tmp_path):
    Log(tmp_path / "log.jsonl").picture(1, "samples", np.zeros((4, 6, 1), np.uint8))
    assert os.listdir(tmp_path) == ["log.jsonl"]
