"""Which samples an iteration has, and seeds for what it draws."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

__all__ = ["Batches", "mix"]


class Batches:
    """The indices of each iteration's samples: windows of an endless row of shuffled epochs.

    Args:
        count: number of samples.
        batch: samples per iteration.
        seed, purpose: of the shuffles.
    """

    def __init__(self, count: int, batch: int, seed: int, purpose: str = "epoch") -> None:
        self.count, self.batch, self.seed, self.purpose = count, batch, seed, purpose
        self._orders: dict[int, Tensor] = {}

    def __call__(self, iteration: int) -> Tensor:
        """int64 [batch]."""
        start = iteration * self.batch
        epochs = range(start // self.count, (start + self.batch - 1) // self.count + 1)
        known = self._orders
        self._orders = {epoch: known[epoch] if epoch in known else self._order(epoch) for epoch in epochs}
        first, missing = start - epochs[0] * self.count, self.batch
        parts: list[Tensor] = []
        for order in self._orders.values():  # slices first: an epoch may be long
            parts.append(order[first : first + missing])
            first, missing = 0, missing - len(parts[-1])
        return torch.cat(parts)

    def _order(self, epoch: int) -> Tensor:
        """The shuffled indices of an epoch."""
        generator = torch.Generator().manual_seed(mix(self.seed, self.purpose, epoch))
        return torch.randperm(self.count, generator=generator)


def mix(seed: int, purpose: str, count: int) -> int:
    """A 63-bit seed that depends on all three (a CPU generator keeps only the low 32 bits of a seed)."""
    digest = hashlib.blake2b(f"{seed} {purpose} {count}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
