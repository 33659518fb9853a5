"""Seeds: one per sample, and the same noise for a seed in any batch, order, shard or backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def seed_tensor(seeds: int | Sequence[int] | Tensor | None, batch: int, device: torch.device | str) -> Tensor:
    """Per-sample seeds as int64 [batch] on `device`.

    Args:
        seeds: one integer per sample (duplicates give equal samples; unsigned 64-bit values are fine); an int s for
            s, s+1, ..., s+batch-1; None for fresh ones from PyTorch's default generator.

    Raises:
        ValueError: another number of seeds than samples, or a seed that is not a 64-bit integer.
    """
    if seeds is None:
        return torch.randint(-(2**63), 2**63 - 1, (batch,), dtype=torch.int64).to(device, non_blocking=True)
    values: Any = seeds
    if getattr(values, "ndim", None) == 0:  # one NumPy or PyTorch number
        values = values.item()
    if type(values) is int and -(2**63) <= values < 2**63 - batch:
        return torch.arange(values, values + batch, dtype=torch.int64, device=device)
    if isinstance(values, Tensor) and values.dtype == torch.int64 and values.shape == (batch,):
        return values.to(device)
    if isinstance(values, int) and not isinstance(values, bool):
        values = range(values, values + batch)
    values = values.tolist() if hasattr(values, "tolist") else list(values) if hasattr(values, "__iter__") else values
    if not isinstance(values, list):
        raise ValueError(f"seeds must be an integer or one integer per sample, got {seeds!r}")
    if len(values) != batch:
        raise ValueError(f"seeds must hold one integer per sample ({batch}), got {len(values)}")
    for seed in values:
        if isinstance(seed, bool) or not hasattr(seed, "__index__") or not -(2**63) <= int(seed) < 2**64:
            raise ValueError(f"seeds must be 64-bit integers, got {seed!r}")
    wrapped = [int(s) - 2**64 if int(s) >= 2**63 else int(s) for s in values]
    # From pageable memory a copy that does not block is as safe as one that does, and waits for nothing.
    return torch.tensor(wrapped, dtype=torch.int64).to(device, non_blocking=True)
