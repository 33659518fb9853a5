"""A run that is killed, at any moment and however often, ends with the bits of the run that was not."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time

import pytest
import torch

from fastdiff.config import ConfigError, load_train_config
from fastdiff.data import InMemory, open_dataset
from fastdiff.models import ModelFileError
from fastdiff.models.io import load_tensors
from fastdiff.training import Trainer
from fastdiff.training.checkpoint import Checkpoints
from fastdiff.training.log import read_log

pytest.importorskip("sklearn")

KILLS = 20
ITERATIONS, BATCH = 64, 24
# Everything that has a memory: dropout, several averages, the loss scale, the history of the losses of every step.
OVERRIDES = [
    *("data=digits8", "model.width=8", "model.mults=[1]", "model.attention=[]", "model.patch=2", "model.embedding=16"),
    *("model.dropout=0.1", f"batch={BATCH}", f"iterations={ITERATIONS}", "warmup=5", "flip=true", "accumulation=2"),
    *("objective.name=ddpm", "objective.T=21", "objective.levels=loss_second_moment", "objective.gamma=0.1"),
    *("amp=float16", "ema=[0.9,0.99]", "posthoc_ema=0.1", "posthoc_every=9"),
    *("log_every=1", "evaluate_every=16", "checkpoint_every=2", "keep=2"),
]


def job(folder):
    """What the killed process does: the same command again and again."""
    torch.set_num_threads(1)
    Trainer(load_train_config(None, OVERRIDES), folder, resume=True).run(progress=False)


def rows(folder):
    """The log without what depends on the clock."""
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in read_log(folder / "log.jsonl")]


def files(folder):
    """Every file but the log, by name."""
    paths = (path for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.name != "log.jsonl"}


def assert_same(folder, whole):
    assert rows(folder) == rows(whole)
    ours, theirs = files(folder), files(whole)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


def iteration(folder):
    try:
        known = read_log(folder / "log.jsonl")
    except FileNotFoundError:
        return 0
    return known[-1]["iteration"] if known else 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    job(folder)
    return folder


@pytest.mark.slow
def test_kill_9_at_twenty_random_moments_changes_nothing(whole, tmp_path):
    context = multiprocessing.get_context("forkserver")  # imports torch once, and its children only then train
    context.set_forkserver_preload(["fastdiff.training", "torch._dynamo", "sklearn.datasets", "pytest"])
    folder, generator, moments = tmp_path / "killed", random.Random(5), set()
    pace = sum(BATCH / row["images_per_second"] for row in read_log(whole / "log.jsonl")) / ITERATIONS
    for number in range(KILLS):
        process = context.Process(target=job, args=(folder,))
        process.start()
        if number % 4 == 3:  # anywhere: in the imports, the construction, the first iterations
            target, deadline = iteration(folder) + 2, time.monotonic() + generator.uniform(0, 0.5)
        else:  # somewhere in the work: with a checkpoint every second iteration, often while one is written
            target, deadline = 2 + number * (ITERATIONS - 16) // KILLS, time.monotonic() + 60
        while iteration(folder) < target and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        if number % 4 != 3:
            time.sleep(generator.uniform(0, 3 * pace))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        moments.add(iteration(folder))
        checkpoints = Checkpoints(folder / "checkpoints")
        for stored in checkpoints.folders():
            checkpoints.read(stored)  # whole, every one of them
    assert len(moments) > KILLS // 2
    assert max(moments) < ITERATIONS
    process = context.Process(target=job, args=(folder,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert_same(folder, whole)


def test_an_interruption_anywhere_leaves_no_torn_row(whole, tmp_path):
    trainer = Trainer(load_train_config(None, OVERRIDES), tmp_path / "run")
    trainer.run(until=12, progress=False)
    with open(tmp_path / "run/log.jsonl", "a") as log:
        log.write('{"iteration": 13, "loss": 1}\n{"iteration": 14, "lo')
    torch.rand(5)
    resumed = Trainer(load_train_config(None, OVERRIDES), tmp_path / "run", resume=True)
    assert resumed.iteration == 12
    assert [row["iteration"] for row in rows(tmp_path / "run")] == list(range(1, 13))
    resumed.run(until=14, progress=False)
    # A row that ends a run has an evaluation; all else is that of the run that was not interrupted.
    for ours, theirs in zip(rows(tmp_path / "run"), rows(whole)):
        assert {**ours, "heldout_loss": 0} == {**theirs, "heldout_loss": 0}
    resumed.run(progress=False)
    names = ("model.safetensors", "model-0.99.safetensors", f"checkpoints/{ITERATIONS:07d}/state.safetensors")
    for name in names:
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes(), name


def test_the_last_checkpoints_are_kept_and_what_is_left_half_written_is_removed(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    assert sorted(os.listdir(folder / "checkpoints")) == [f"{ITERATIONS - 2:07d}", f"{ITERATIONS:07d}"]
    for name in (".0000070.new.tmp", ".0000002.old.tmp"):
        shutil.copytree(folder / "checkpoints" / f"{ITERATIONS:07d}", folder / "checkpoints" / name)
    assert Trainer(load_train_config(None, OVERRIDES), folder, resume=True).iteration == ITERATIONS
    assert sorted(os.listdir(folder / "checkpoints")) == [f"{ITERATIONS - 2:07d}", f"{ITERATIONS:07d}"]


@pytest.mark.parametrize("damage", ["truncated", "altered", "no state", "torn state"])
def test_a_damaged_checkpoint_is_passed_over_and_written_anew(whole, tmp_path, damage):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    newest = folder / f"checkpoints/{ITERATIONS:07d}"
    tensors, state = newest / "state.safetensors", newest / "state.json"
    if damage == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-10])
    elif damage == "altered":
        content = bytearray(tensors.read_bytes())
        content[-10] ^= 1
        tensors.write_bytes(content)
    elif damage == "no state":
        state.unlink()
    else:
        state.write_text(state.read_text()[:-10])
    resumed = Trainer(load_train_config(None, OVERRIDES), folder, resume=True)
    assert resumed.iteration == ITERATIONS - 2
    resumed.run(progress=False)
    assert_same(folder, whole)
    for path in (folder / "checkpoints").glob("*/state.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(ModelFileError, match=r"state\.safetensors"):
        Trainer(load_train_config(None, OVERRIDES), folder, resume=True)


def test_only_checkpoints_that_a_run_would_not_go_on_from_are_deleted(tmp_path):
    """The run fell back to an older one as the newest was damaged, and its checkpoints are of other iterations now."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (1, 9):
        Checkpoints(tmp_path, keep=2).save(step, {"x": torch.ones(1)}, {"config": {}})
    (tmp_path / "0000009/state.json").write_text("{")
    assert checkpoints.newest().state["iteration"] == 1
    checkpoints.save(5, {"x": torch.ones(1)}, {"config": {}})
    assert sorted(os.listdir(tmp_path)) == ["0000005"]
    assert checkpoints.newest().state["iteration"] == 5


SHORT = ["data=digits8", "model.width=8", "model.embedding=16", "batch=8", "iterations=4"]


def test_another_memory_format_changes_no_bits_of_what_is_resumed(tmp_path):
    """Weights in channels_last, moments stored contiguously: the fused update reads both in the order of the memory."""
    config = load_train_config(None, [*SHORT, "channels_last=true"])
    Trainer(config, tmp_path / "whole").run(progress=False)
    Trainer(config, tmp_path / "cut").run(until=2, progress=False)
    resumed = Trainer(config, tmp_path / "cut", resume=True)
    resumed.run(progress=False)
    assert resumed.model.stem.weight.is_contiguous(memory_format=torch.channels_last)
    for name in ("model.safetensors", "checkpoints/0000004/state.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_what_a_killed_run_left_is_removed_and_other_data_are_refused(tmp_path):
    config = load_train_config(None, [*SHORT, "posthoc_ema=0.1", "posthoc_every=1"])
    data = open_dataset("digits8")
    Trainer(config, tmp_path, data=data).run(until=2, progress=False)
    left = [".model.safetensors.123.tmp", "snapshots/.0000003-0.100.safetensors.123.tmp"]
    for name in [*left, "snapshots/0000003-0.100.safetensors", ".notes.tmp"]:
        (tmp_path / name).write_text("")
    fewer = InMemory("fewer", data.values[:90], data.labels[:90])
    with pytest.raises(ConfigError, match="data has 90 samples, but the checkpoint was made with 1500"):
        Trainer(config, tmp_path, resume=True, data=fewer)
    Trainer(config, tmp_path, resume=True, data=data)
    assert sorted(os.listdir(tmp_path / "snapshots")) == ["0000001-0.100.safetensors", "0000002-0.100.safetensors"]
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == [".notes.tmp"]


def overflowing(trainer):
    """Has every gradient be infinite."""
    backward = trainer.backward

    def overflow():
        loss = backward()
        next(trainer.model.parameters()).grad.fill_(torch.inf)
        return loss

    trainer.backward = overflow
    return trainer


def test_a_run_that_was_given_up_goes_on_with_more_patience(tmp_path):
    config = load_train_config(None, [*SHORT, "checkpoint_every=1", "nonfinite_limit=3"])
    with pytest.raises(FloatingPointError, match="the last of 3 in a row"):
        overflowing(Trainer(config, tmp_path)).run(progress=False)
    config.nonfinite_limit = 4
    resumed = Trainer(config, tmp_path, resume=True)
    assert (resumed.iteration, resumed.skipped) == (2, 2)
    config.nonfinite_limit = 1  # fewer than there were
    with pytest.raises(FloatingPointError, match="the last of 3 in a row"):
        overflowing(resumed).run(progress=False)


def test_a_checkpoint_that_cannot_be_written_leaves_the_others(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (1, 2):
        checkpoints.save(step, {"x": torch.full((3,), float(step))}, {"config": {}})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastdiff.training.checkpoint.save_tensors", full)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(3, {"x": torch.zeros(3)}, {"config": {}})
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["0000001", "0000002"]
    assert load_tensors(tmp_path / "checkpoints/0000002/state.safetensors")[0]["x"].tolist() == [2, 2, 2]
    assert Checkpoints(tmp_path / "none").newest() is None
