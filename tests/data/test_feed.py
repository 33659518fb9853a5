"""Batches of explicit indices: in order, from any iteration on, with workers or without."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from torch.utils.data import Dataset

from fastdiff.data import DataError, Feed, WorkerError, fetch, open_dataset

from .conftest import edm_files, random_images, write_zip

COUNT = 23


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    labels = [i % 5 for i in range(COUNT)]
    return write_zip(tmp_path_factory.mktemp("feed") / "set.zip", edm_files(random_images(COUNT), labels))


def order(iteration: int) -> torch.Tensor:
    return torch.randperm(COUNT, generator=torch.Generator().manual_seed(iteration))[:7]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_feed_is_fetch(path, workers):
    held, dataset = open_dataset(path), open_dataset(path, memory=0)
    feed = Feed(dataset, order, workers=workers)
    before = torch.random.get_rng_state()
    for iteration in (0, 1, 2, 7, 8, 3, 4):  # a jump ahead, and one back
        for found, wanted in zip(feed(iteration), fetch(held, order(iteration))):
            assert torch.equal(found, wanted)
    assert torch.equal(torch.random.get_rng_state(), before)
    feed.close()


def test_a_set_in_memory_needs_no_workers(path):
    feed = Feed(open_dataset(path), order, workers=3)
    assert feed.workers == 0 and torch.equal(feed(4)[0], fetch(open_dataset(path), order(4))[0])


class Odd(Dataset):
    """What a worker may meet."""

    def __init__(self):
        self.mode = ""

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        if self.mode == "all bad" or (index == 5 and self.mode == "bad"):
            raise OSError("cannot read the disk")
        if index == 5 and self.mode == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.full((1, 2, 2), index, dtype=torch.uint8)


def opened(mode: str):
    items = Odd()
    dataset = open_dataset(items, memory=0, classes=0, bad_share=0.1)
    items.mode = mode
    return dataset


def indices(iteration: int) -> list[int]:
    return [iteration % COUNT, (iteration + 1) % COUNT]


def test_bad_samples_of_workers_are_named_here():
    dataset = opened("bad")
    feed = Feed(dataset, indices, workers=2)
    with pytest.warns(RuntimeWarning, match="item 5: cannot be read .OSError: cannot read the disk") as caught:
        found = [feed(iteration)[0][:, 0, 0, 0] for iteration in range(7)]
    assert len(caught) == 1 and list(dataset.bad) == ["item 5"]
    wanted = [[i if i != 5 else 6 for i in indices(iteration)] for iteration in range(7)]
    assert torch.equal((torch.stack(found) * 127.5 + 127.5).round(), torch.tensor(wanted).float())


def test_too_many_bad_samples():
    feed = Feed(opened("all bad"), indices, workers=2)
    with pytest.raises(DataError, match=r"3 of 23 samples cannot be used, more than 10%; the first: item 0"):
        feed(0)


def test_a_killed_worker_is_said():
    feed = Feed(opened("killed"), lambda iteration: [iteration + 2], workers=1, ahead=1)
    with pytest.raises(WorkerError, match=r"Odd: a worker that reads the samples of iteration \d was killed"):
        for iteration in range(5):
            feed(iteration)


def test_bad_arguments(path):
    dataset = open_dataset(path, memory=0)
    with pytest.raises(ValueError, match="workers must be an integer of at least 0, got -1"):
        Feed(dataset, order, workers=-1)
    with pytest.raises(ValueError, match="ahead must be an integer of at least 1, got 0"):
        Feed(dataset, order, ahead=0)
    for workers in (0, 1):
        with pytest.raises(IndexError, match=r"indices must be in \[0, 23\), got 3 to 23"):
            Feed(dataset, lambda _: [3, 23], workers=workers)(0)
