"""`fastdiff sample`: seeds in; a grid, an array of images and their provenance out. EDM's flag names."""

from __future__ import annotations

from typing import Any

import click
from torch import Tensor

from ..exposure import Calibration, epsilon_scales
from ..exposure.calibration import describe
from .arguments import EPSILON_SCALE, SEEDS, flag
from .drawing import class_labels, image_range, write_images
from .sampling import open_sampler, sampler_flags


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
    labels = class_labels([model], seeds, label)
    scales = epsilon_scales(sampler.epsilon_scale, sampler.levels.steps)
    if isinstance(epsilon_scale, Calibration):
        for difference in epsilon_scale.differences(describe(sampler)):
            click.echo(f"fastdiff: warning: {difference}", err=True)

    def draw(some: list[int], classes: list[int] | None, bar: bool) -> Tensor:
        images: Tensor = sampler(len(some), seeds=some, labels=classes, progress=bar)
        return images

    scale = scales[0] if len(set(scales)) == 1 else scales
    described = {"device": str(device), **settings, "epsilon_scale": scale}
    limits = image_range(model)
    write_images(outdir, draw, seeds, labels, described, batch=batch, progress=progress, limits=limits)
