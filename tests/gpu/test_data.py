"""Batches, flips and augmentation on a GPU are those of the CPU."""

from __future__ import annotations

import torch
from torch.utils.data import TensorDataset

from fastdiff.data import Augment, Feed, InMemory, fetch, flip, open_dataset

from ..tolerances import FLOAT32_STATE

PIXELS = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def order(iteration: int) -> torch.Tensor:
    return torch.arange(iteration, iteration + 9) % 40


def test_batches():
    held = InMemory("pixels", PIXELS, torch.arange(40) % 7)
    on_gpu = held.to("cuda")
    lazy = open_dataset(TensorDataset(PIXELS, torch.arange(40) % 7), classes=7, memory=0)
    feeds = [Feed(lazy, order, workers=workers, device="cuda") for workers in (0, 2)]
    for iteration in range(5):
        wanted = fetch(held, order(iteration))
        batches = [fetch(on_gpu, order(iteration)), fetch(on_gpu, order(iteration).cuda())]
        for batch in (*batches, *(feed(iteration) for feed in feeds)):
            assert all(value.is_cuda for value in batch)
            assert torch.equal(batch[0].cpu(), wanted[0]) and torch.equal(batch[1].cpu(), wanted[1])


def test_augmentation():
    images, _ = fetch(InMemory("pixels", PIXELS), range(40))
    seeds = torch.arange(40)
    assert torch.equal(flip(images.cuda(), seeds.cuda()).cpu(), flip(images, seeds))
    for found, wanted in zip(Augment(0.5)(images.cuda(), seeds.cuda()), Augment(0.5)(images, seeds)):
        torch.testing.assert_close(found.cpu(), wanted, rtol=0, atol=FLOAT32_STATE)
