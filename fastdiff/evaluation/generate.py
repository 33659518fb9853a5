"""Samples by seed: the same latents for every configuration, so that configurations are compared in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import check_count
from ..sampler import Sampler

__all__ = ["generate"]


def generate(
    sampler: Sampler,
    seeds: Sequence[int],
    *,
    labels: str | int | Sequence[int] | Tensor | None = "cycle",
    cond: dict[str, Any] | None = None,
    batch: int = 250,
    progress: bool = False,
) -> Tensor:
    """Draws one sample per seed, batch by batch.

    A seed's noise is the same in any batch and for every configuration of the sampler. The network may round
    differently in batches of different sizes.

    Args:
        sampler: knows the shape of a sample (`Sampler(shape=...)` or the model's `sample_shape`).
        seeds: one 64-bit integer per sample.
        labels: "cycle" gives seed s the class s mod the model's `label_dim`, as `fastdiff sample` does, or nothing to a
            model without classes; or one class per seed, or one for all; None gives the model none, its null class.
        cond: further arguments of the model, the same for all batches.
        batch: samples per call of the sampler.
        progress: show a progress bar.

    Returns:
        float32 [N, ...] on the CPU.

    Raises:
        ValueError: a bad argument, before any work.
        FloatingPointError: a sample is not finite (with the sampler's `check`).
    """
    check_count("batch", batch)
    if sampler.shape is None:
        raise ValueError("sampler must know the shape of a sample: give Sampler(shape=...)")
    seeds = list(seeds)
    classes = _classes(labels, seeds, getattr(sampler.model, "label_dim", 0))
    parts = [torch.empty(0, *sampler.shape)]
    with tqdm(total=len(seeds), unit="sample", desc="sample", disable=not progress) as bar:
        for start in range(0, len(seeds), batch):
            some = slice(start, start + batch)
            known = None if classes is None else classes[some]
            x = sampler(len(seeds[some]), seeds=seeds[some], labels=known, cond=cond)
            parts.append(x.to("cpu", torch.float32))
            bar.update(len(x))
    return torch.cat(parts)


def _classes(
    labels: str | int | Sequence[int] | Tensor | None, seeds: list[int], count: int | None
) -> Sequence[int] | Tensor | None:
    """One class per seed, or None for none."""
    if isinstance(labels, str):
        if labels != "cycle":
            raise ValueError(f"labels must be 'cycle', classes or None, got {labels!r}")
        return [seed % count for seed in seeds] if count else None
    if isinstance(labels, int):
        return [labels] * len(seeds)
    if labels is not None and len(labels) != len(seeds):
        raise ValueError(f"labels must hold one class per seed ({len(seeds)}), got {len(labels)}")
    return labels
