"""`fastdiff sample`: seeds in; a grid, an array of images and their provenance out. EDM's flag names."""

from __future__ import annotations

import time
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import fastdiff

from ..exposure import Calibration, epsilon_scales
from ..exposure.calibration import describe
from ..models import UNet
from . import CliError
from .arguments import EPSILON_SCALE, SEEDS, flag
from .output import OutputFolder, grid, npz_bytes, png_bytes
from .sampling import open_sampler, sampler_flags

_FILES = ("grid.png", "samples.npz")


@click.command("sample")
@click.option("--seeds", type=SEEDS, default="0-63", show_default=True, help="One image per seed: 0-63 or 1,5,7-9.")
@sampler_flags
@flag(
    "epsilon-scale", type=EPSILON_SCALE, default=1.0, show_default=True, metavar="NUMBER|FILE",
    help="Epsilon scaling's lambda, or what `fastdiff calibrate` chose.",
)  # fmt: skip
@click.option("--outdir", default="samples", show_default=True, metavar="DIR", help="Where to write.")
@click.option("--class", "label", type=int, help="Draw this class only; by default seed s draws class s mod classes.")
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Images per batch.")
@click.option("--progress/--no-progress", default=True, help="Show a progress bar.")
def command(
    seeds: list[int],
    epsilon_scale: float | Calibration,
    outdir: str,
    label: int | None,
    batch: int,
    progress: bool,
    **flags: Any,
) -> None:
    """Draw one image per seed and write DIR/grid.png (at most 400 images) and DIR/samples.npz.

    The array file holds images (uint8 [N, H, W, C]), seeds, labels (-1: no class) and config, a JSON string
    that says how they were made. The same seed gives the same noise in any batch and on any machine.
    """
    sampler, model, device, settings = open_sampler(flags, epsilon_scale)
    labels = _labels(model, seeds, label)
    scales = epsilon_scales(sampler.epsilon_scale, sampler.levels.steps)
    if isinstance(epsilon_scale, Calibration):
        for difference in epsilon_scale.differences(describe(sampler)):
            click.echo(f"fastdiff: warning: {difference}", err=True)
    with OutputFolder(outdir, _FILES) as folder:
        started = time.perf_counter()
        images = _draw(sampler, model, seeds, labels, batch, progress)
        elapsed = time.perf_counter() - started
        provenance = {
            "fastdiff": fastdiff.__version__, "torch": torch.__version__, "device": str(device), **settings,
            "epsilon_scale": scales[0] if len(set(scales)) == 1 else scales,
        }  # fmt: skip
        arrays = {"images": images, "seeds": np.array(seeds), "labels": np.array(labels)}
        folder.write({"grid.png": png_bytes(grid(images)), "samples.npz": npz_bytes(arrays, provenance)})
    written = " and ".join(str(folder.path / name) for name in _FILES)
    speed = len(seeds) / elapsed
    click.echo(f"{len(seeds)} images in {elapsed:.2f} s, {speed:.1f} images per second; wrote {written}")


def _draw(
    sampler: fastdiff.Sampler, model: UNet, seeds: list[int], labels: list[int], batch: int, progress: bool
) -> NDArray[np.uint8]:
    """All images, batch by batch: uint8 [N, H, W, C]."""
    parts = []
    single = len(seeds) <= batch  # one batch shows its steps, many show the images
    with tqdm(total=len(seeds), unit="image", desc="sample", disable=single or not progress) as bar:
        for start in range(0, len(seeds), batch):
            some = slice(start, start + batch)
            known = labels[some] if model.label_dim else None
            try:
                x = sampler(len(seeds[some]), seeds=seeds[some], labels=known, progress=single and progress)
            except FloatingPointError as error:
                raise click.ClickException(str(error)) from None
            parts.append(((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
            bar.update(len(x))
    return torch.cat(parts).numpy()


def _labels(model: UNet, seeds: list[int], label: int | None) -> list[int]:
    """One class per seed; -1 for a network without classes."""
    classes = model.label_dim
    if label is None:
        return [seed % classes if classes else -1 for seed in seeds]
    if not classes:
        raise CliError("--class: this network is unconditional")
    if not 0 <= label < classes:
        raise CliError(f"--class must be 0 to {classes - 1}, got {label}")
    return [label] * len(seeds)
