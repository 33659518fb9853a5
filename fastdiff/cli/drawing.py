"""What commands that draw images share: a class for every seed, images in batches, and the files that hold them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

import fastdiff

from . import CliError
from .output import OutputFolder, grid, npz_bytes, png_bytes

__all__ = ["Draw", "class_labels", "image_range", "write_images"]

FILES = ("grid.png", "samples.npz")
Draw = Callable[[list[int], "list[int] | None", bool], Tensor]
"""(seeds, labels, progress) -> images [B, C, H, W]."""


def class_labels(models: Sequence[Any], seeds: list[int], label: int | None) -> list[int] | None:
    """One class per seed: `label`, or seed s's is s modulo the classes; None for networks without classes.

    Raises:
        CliError: there is no such class, or the networks count different ones.
    """
    counts = {model.label_dim for model in models} - {0}
    if not counts:
        if label is not None:
            raise CliError("--class: this network is unconditional")
        return None
    if len(counts) > 1:
        raise CliError(f"the networks must have the same classes, got {', '.join(map(str, sorted(counts)))}")
    (classes,) = counts
    if label is not None and not 0 <= label < classes:
        raise CliError(f"--class must be 0 to {classes - 1}, got {label}")
    return [seed % classes if label is None else label for seed in seeds]


def image_range(model: Any) -> tuple[float, float]:
    """The values of black and white that a network knows: its file's "range", else -1 and 1.

    Raises:
        CliError: the file's is no range.
    """
    found = model.metadata.get("range", (-1.0, 1.0))
    try:
        low, high = map(float, found)
        if -math.inf < low < high < math.inf:
            return low, high
    except (TypeError, ValueError):
        pass
    raise CliError(f"--network: its range must be the values of black and white, got {found!r}")


def write_images(
    outdir: str,
    draw: Draw,
    seeds: list[int],
    labels: list[int] | None,
    described: dict[str, Any],
    *,
    batch: int,
    progress: bool,
    limits: tuple[float, float],
) -> None:
    """Draws an image per seed and writes grid.png and samples.npz, and a line to say so.

    Args:
        outdir: the folder; draw: draws a batch; described: how, as JSON can hold it.
        labels: one per seed; None, in the file -1, for networks without classes.
        limits: `image_range`.

    Raises:
        CliError: the folder cannot be written to.
        click.ClickException: a result is not finite.
    """
    with OutputFolder(outdir, FILES) as folder:
        started = time.perf_counter()
        images = _drawn(draw, seeds, labels, batch, progress, limits)
        elapsed = time.perf_counter() - started
        provenance = {"fastdiff": fastdiff.__version__, "torch": torch.__version__, **described}
        known = np.full(len(seeds), -1) if labels is None else np.array(labels)
        arrays = {"images": images, "seeds": np.array(seeds), "labels": known}
        folder.write({"grid.png": png_bytes(grid(images)), "samples.npz": npz_bytes(arrays, provenance)})
    written = " and ".join(str(folder.path / name) for name in FILES)
    speed = len(seeds) / elapsed
    click.echo(f"{len(seeds)} images in {elapsed:.2f} s, {speed:.1f} images per second; wrote {written}")


def _drawn(
    draw: Draw, seeds: list[int], labels: list[int] | None, batch: int, progress: bool, limits: tuple[float, float]
) -> NDArray[np.uint8]:
    """All images, batch by batch: uint8 [N, H, W, C]."""
    parts, (low, high) = [], limits
    single = len(seeds) <= batch  # one batch shows its steps, many show the images
    with tqdm(total=len(seeds), unit="image", disable=single or not progress) as bar:
        for start in range(0, len(seeds), batch):
            some = slice(start, start + batch)
            try:
                x = draw(seeds[some], None if labels is None else labels[some], single and progress)
            except FloatingPointError as error:
                raise click.ClickException(str(error)) from None
            levels = (x.clamp(low, high) - low) * (255 / (high - low))
            parts.append(levels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
            bar.update(len(x))
    return torch.cat(parts).numpy()
