"""Two gloo processes are one run: losses and weights of one process with the same batch, and one of them writes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import torch

from fastdiff.config import ConfigError, load_train_config
from fastdiff.models import load
from fastdiff.training import Trainer
from fastdiff.training.log import read_log
from fastdiff.training.parallel import Group

from ..tolerances import TRAINED_WEIGHTS, TRAINING_SPLIT

pytest.importorskip("sklearn")
pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")

# 33 samples: shares of 16 and 17. No dropout, whose masks are each process's own.
OVERRIDES = [
    *("data=digits8", "model.width=8", "model.mults=[1]", "model.attention=[0]", "model.embedding=16", "batch=33"),
    *("iterations=6", "warmup=2", "accumulation=2", "flip=true", "augment=0.2", "grad_clip=0.5", "ema=[0.9,0.1]"),
    *("objective.name=ddpm", "objective.T=30", "objective.levels=log_snr", "objective.gamma=0.1", "posthoc_ema=0.1"),
    *("log_every=1", "evaluate_every=3", "checkpoint_every=2", "posthoc_every=3"),
]
JOB = """
import sys, torch
torch.set_num_threads(1)
from fastdiff.config import load_train_config
from fastdiff.training import Trainer
folder, until, *overrides = sys.argv[1:]
trainer = Trainer(load_train_config(None, overrides), folder, resume=True)
print("rank", trainer.group.rank, "begins at", trainer.iteration, flush=True)
trainer.run(until=int(until), progress=False)
trainer.group.close()
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def two_processes(command):
    """Starts it as torchrun would, twice; returns what they print."""
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        printed = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], printed
    return printed


def series(folder, name):
    return {row["iteration"]: row[name] for row in read_log(folder / "log.jsonl") if name in row}


def files(folder):
    """What a run wrote, TensorBoard's events (whose names hold times) apart."""
    paths = (path for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts)
    return {str(path.relative_to(folder)) for path in paths}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "alone"
    Trainer(load_train_config(None, OVERRIDES), folder).run(progress=False)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_processes_are_one_run(alone, tmp_path, mode):
    """Also across an interruption: both resume from the one checkpoint."""
    folder = tmp_path / mode
    two_processes(["-c", JOB, str(folder), "4", *OVERRIDES, f"parallel={mode}"])
    printed = two_processes(["-c", JOB, str(folder), "6", *OVERRIDES, f"parallel={mode}"])
    assert [out.split() for out, _ in printed] == [["rank", str(rank), "begins", "at", "4"] for rank in range(2)]
    for name in ("loss", "grad_norm"):
        ours, theirs = series(folder, name), series(alone, name)
        assert list(ours) == list(theirs) == [1, 2, 3, 4, 5, 6]
        assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=TRAINING_SPLIT), name
    for iteration, value in series(alone, "heldout_loss").items():
        assert series(folder, "heldout_loss")[iteration] == pytest.approx(value, rel=TRAINING_SPLIT)
    written = files(folder)
    assert written == files(alone)
    for name in sorted(name for name in written if name.endswith("safetensors") and "state" not in name):
        ours, theirs = load(folder / name), load(alone / name)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=TRAINED_WEIGHTS)
        assert type(ours) is type(theirs)
    # A checkpoint of shards is whole: one process can go on with it.
    resumed = Trainer(load_train_config(None, [*OVERRIDES, "parallel=ddp"]), folder, resume=True)
    assert resumed.iteration == 6


@pytest.mark.slow
def test_the_levels_learn_from_the_losses_of_all_processes_and_one_of_them_speaks(tmp_path):
    overrides = ["data=digits8", "model.width=8", "model.embedding=16", "batch=25", "iterations=3", "log_every=1"]
    overrides += ["objective.name=ddpm", "objective.T=21", "objective.levels=loss_second_moment"]
    command = ["-m", "fastdiff.cli", "train", f"--outdir={tmp_path / 'two'}", *overrides, "--no-progress"]
    (first, heard), (second, silence) = two_processes(command)
    assert "of 2 processes" in heard
    assert first.startswith(f"wrote {tmp_path / 'two'}")
    assert second == ""
    assert "parameters" not in silence
    one = Trainer(load_train_config(None, overrides), tmp_path / "one")
    one.run(progress=False)
    two = Trainer(load_train_config(None, overrides), tmp_path / "two", resume=True)
    ours, theirs = two.objective.levels.state(), one.objective.levels.state()
    assert torch.equal(ours["seen"], theirs["seen"])
    torch.testing.assert_close(ours["losses"], theirs["losses"], rtol=1e-5, atol=TRAINING_SPLIT)


def test_shares_of_a_batch_are_its_parts_in_order(monkeypatch):
    for world in (1, 2, 3, 7):
        seen = []
        for rank in range(world):
            group = Group.__new__(Group)
            group.rank, group.world = rank, world
            seen += range(17)[group.share(17)]
        assert seen == list(range(17))


def test_refusals(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="done by one process, got 2"):
        Group("cpu", "none")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match="amp must be bfloat16 or none with parallel=fsdp"):
        Trainer(load_train_config(None, [*OVERRIDES, "amp=float16", "parallel=fsdp"]), tmp_path / "out")
    with pytest.raises(ConfigError, match="parallel must be ddp for ssm: it differentiates twice"):
        Trainer(load_train_config(None, ["objective.name=ssm", "parallel=fsdp"]), tmp_path / "out")
    with pytest.raises(ConfigError, match="batch must be at least 40"):
        Trainer(load_train_config(None, [*OVERRIDES, "accumulation=20"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()
