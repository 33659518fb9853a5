"""`fastdiff calibrate`: a sampler's settings in; the lambda that measures best, with its errors, out as a file."""

from __future__ import annotations

import warnings
from typing import Any

import click

import fastdiff

from ..errors import check_count
from . import CliError
from .arguments import flag
from .evaluate import real_images
from .output import check_output_file
from .sampling import open_sampler, sampler_flags


class _Grid(click.ParamType):
    name = "grid"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return [float(part) for part in value.split(",")] if isinstance(value, str) else value
        except ValueError:
            self.fail(f"expected lambdas such as .95,1,1.05, got {value!r}", param, ctx)


@click.command("calibrate")
@click.option("--out", required=True, metavar="FILE", help="The JSON file to write.")
@sampler_flags
@click.option(
    "--method", type=click.Choice(["search", "linear", "norm"]), default="search", show_default=True,
    help="One constant; after it b + k i; or (experimental) norms of epsilon matched step by step.",
)  # fmt: skip
@click.option("--samples", type=click.IntRange(2), default=1000, show_default=True, help="Per range of seeds.")
@click.option(
    "--ranges", type=click.IntRange(1), default=3, show_default=True, help="Of seeds; errors need two or more."
)
@flag("first_seed", type=click.IntRange(0), default=0, show_default=True, help="Of the first range.")
@click.option("--grid", type=_Grid(), metavar="LIST", help="Lambdas, 1 is added  [default: .93 to 1.10].")
@click.option("--refine/--no-refine", default=True, show_default=True, help="Golden section after the grid.")
@click.option("--tolerance", type=float, default=0.0025, show_default=True, help="Of lambda, when refined.")
@click.option("--data", default="digits16", show_default=True, metavar="NAME", help="Real images: a data set or .npz.")
@click.option("--split", type=click.Choice(["train", "test"]), default="train", show_default=True)
@click.option("--features", default="digits", show_default=True, metavar="NAME", help="digits, inception, or a file.")
@click.option("--strength", type=float, default=1.0, show_default=True, help="Norm: 0 leaves 1, -1 turns the sign.")
@click.option("--clip", type=float, default=0.1, show_default=True, help="Norm: largest distance of lambda from 1.")
@flag("norm_images", type=click.IntRange(2), default=1000, show_default=True, help="Norm: images to match.")
@click.option("--class", "label", type=int, help="Draw this class only; by default seed s draws class s mod classes.")
@click.option("--batch", type=click.IntRange(1), default=250, show_default=True, help="Images per batch.")
@click.option("--progress/--no-progress", default=True, help="Show what is being scored.")
def command(out: str, method: str, ranges: int, samples: int, first_seed: int, progress: bool, **flags: Any) -> None:
    """Choose epsilon scaling's lambda for these settings by Frechet distance, and write it with its errors.

    Every candidate draws the same seeds. Use the file as `fastdiff sample --epsilon-scale FILE` with the same settings:
    the best lambda of one solver or number of steps is not that of another. A lower distance is often precision bought
    with recall, which is printed beside it.
    """
    from ..evaluation import Evaluator
    from ..exposure.calibration import GRID, calibrate

    check_output_file(out)
    sampler, labels = _sampler(flags)
    real, _ = real_images(flags["data"], flags["split"])
    if list(real.shape[1:]) != list(sampler.shape or ()):
        raise CliError(f"--data: images are {list(real.shape[1:])}, the network's samples {list(sampler.shape or ())}")
    options: dict[str, Any] = {"grid": flags["grid"] or GRID}
    options |= {name: flags[name] for name in ("refine", "tolerance", "batch", "strength", "clip")}
    if method == "norm":
        count = flags["norm_images"]
        options |= {"data": real[:count], "data_labels": _classes(flags, sampler, count)}
    seeds = [range(first_seed + i * samples, first_seed + (i + 1) * samples) for i in range(ranges)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        try:
            score = Evaluator(real, flags["features"])
            check_count("--samples", samples, score.least)
            found = calibrate(
                sampler, score, seeds=seeds, calibrate=method, labels=labels, progress=progress, **options
            )
        except FloatingPointError as error:
            raise click.ClickException(str(error)) from None
        except (TypeError, ValueError, ModuleNotFoundError) as error:
            raise CliError(str(error)) from None
    ours = [str(warning.message) for warning in caught if issubclass(warning.category, RuntimeWarning)]
    for message in dict.fromkeys(ours):
        click.echo(f"fastdiff: warning: {message}", err=True)
    click.echo(str(found))  # first, so that it is not lost with a full disk
    try:
        found.save(out)
    except OSError as error:
        raise click.ClickException(f"cannot write to {out}: {error.strerror or error}") from None
    click.echo(f"wrote {out}")


def _sampler(flags: dict[str, Any]) -> tuple[fastdiff.Sampler, Any]:
    """The sampler to calibrate, and the labels of its samples."""
    opened, label = open_sampler(flags), flags["label"]
    classes = opened.model.label_dim
    if label is not None and not 0 <= label < classes:
        wanted = f"must be 0 to {classes - 1}" if classes else "needs a network with classes"
        raise CliError(f"--class {wanted}, got {label}")
    return opened.sampler, "cycle" if label is None else label


def _classes(flags: dict[str, Any], sampler: fastdiff.Sampler, count: int) -> Any:
    """Labels of the images that norms are matched to."""
    from .. import data as datasets

    if not getattr(sampler.model, "label_dim", None):
        return None
    if flags["label"] is not None:
        raise CliError("--class must be left out with --method norm: the images have classes of their own")
    if flags["data"] not in datasets.DATASETS:
        raise CliError("--data must be a data set with classes for --method norm and a network with classes")
    return datasets.load(flags["data"], flags["split"]).labels[:count]
