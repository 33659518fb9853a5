"""Batches filled up to a few sizes, so that a few graphs serve every batch size."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import check_count
from ..request import Request

AUTO = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]
"""Above 16 at most a third of a batch is filling."""


def bucket_sizes(buckets: str | Sequence[int] | None) -> list[int]:
    """Sizes in ascending order; none for None.

    Raises:
        ValueError: neither "auto" nor positive integers.
    """
    if buckets is None or buckets == "auto":
        return AUTO if buckets else []
    if isinstance(buckets, str) or not hasattr(buckets, "__iter__"):
        raise ValueError(f"buckets must be 'auto' or batch sizes, got {buckets!r}")
    return sorted({check_count("buckets", size) for size in buckets})


def bucket_of(batch: int, sizes: Sequence[int]) -> int:
    """The smallest size that takes a batch; above the largest, the batch itself."""
    at = bisect_left(sizes, batch)
    return sizes[at] if at < len(sizes) else batch


def filled(request: Request, size: int) -> Request:
    """The request with `size` samples: the first one's values repeated, that upset no network."""
    batch = request.shape[0]
    if size == batch:
        return request

    def fill(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0 or len(leaf) != batch:
            return leaf
        return torch.cat([leaf, leaf[:1].expand(size - batch, *leaf.shape[1:])])

    names = "seeds", "x_init", "cond", "more"
    filled_up = {name: pytree.tree_map(fill, getattr(request, name)) for name in names}
    return replace(request, shape=torch.Size([size, *request.shape[1:]]), **filled_up)
