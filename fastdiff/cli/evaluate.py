"""`fastdiff evaluate`: scores of an array of images, as `fastdiff sample` writes it, against a data set."""

from __future__ import annotations

import json
import zipfile

import click
import numpy as np
import torch
from torch import Tensor

from ..files import atomic_path
from . import CliError
from .output import check_output_file
from .sampling import named_device

_NAMES = ("images", "arr_0")  # of `fastdiff sample`, and of an array saved without a name


@click.command("evaluate")
@click.option(
    "--samples", required=True, metavar="FILE", help="An .npz of `fastdiff sample`, or of uint8 [N, H, W, C]."
)
@click.option("--data", default="digits16", show_default=True, metavar="NAME", help="Real images: a data set or .npz.")
@click.option(
    "--split", type=click.Choice(["train", "test"]), default="train", show_default=True, help="Of the data set."
)
@click.option("--features", default="digits", show_default=True, metavar="NAME", help="digits, inception, or a file.")
@click.option("--neighbours", type=click.IntRange(1), default=3, show_default=True, help="k of precision and recall.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, or auto: CUDA when there is one.")
@click.option("--out", metavar="FILE", help="Also write the scores as JSON.")
def command(samples: str, data: str, split: str, features: str, neighbours: int, device: str, out: str | None) -> None:
    """Print the Frechet distance, precision and recall of samples.

    Features are those of the shipped digits classifier, of Inception (TorchScript; the file is named by
    FASTDIFF_INCEPTION and never downloaded), of a TorchScript file or of a classifier's .safetensors file.
    """
    from ..evaluation import Evaluator, features_digest

    place = named_device(device)
    if out is not None:
        check_output_file(out)
    fake = _read(samples, "--samples")
    real, name = real_images(data, split)
    try:
        evaluator = Evaluator(real, features, neighbours=neighbours, device=place)
        scores = evaluator(fake)
    except (ValueError, ModuleNotFoundError, FloatingPointError) as error:
        raise CliError(str(error)) from None
    what = f"{scores.samples} samples of {samples} against {len(real)} images of {name}, features {features}"
    click.echo(f"{scores} ({what})")
    if out is not None:
        provenance = {"samples_file": samples, "data": name, "real": len(real), "features": features}
        provenance |= {
            "features_digest": features_digest(evaluator.module),
            "neighbours": neighbours,
            "device": str(place),
        }
        try:
            with atomic_path(out) as temporary:
                temporary.write_text(json.dumps({**scores.as_dict(), **provenance}, indent=1) + "\n")
        except OSError as error:
            raise click.ClickException(f"cannot write to {out}: {error.strerror or error}") from None


def real_images(data: str, split: str) -> tuple[Tensor, str]:
    """Real images and what to call them."""
    from .. import data as datasets

    if data not in datasets.DATASETS:
        if not data.endswith(".npz"):
            raise CliError(f"--data must be {', '.join(datasets.DATASETS)} or an .npz file, got {data!r}")
        return _read(data, "--data"), data
    try:
        return datasets.load(data, split).images, f"{data} ({split})"
    except ModuleNotFoundError as error:
        raise CliError(f"--data: {error}") from None


def _read(path: str, option: str) -> Tensor:
    """uint8 images [N, H, W, C] of an .npz file as float32 [N, C, H, W] in [-1, 1]."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            name = next((name for name in _NAMES if name in arrays), None)
            if name is None:
                raise CliError(f"{option}: {path} has no array {' or '.join(_NAMES)}")
            images = arrays[name]
    except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise CliError(f"{option}: {path} is not a readable .npz file ({reason})") from None
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise CliError(f"{option}: {path}: images must be uint8 [N, H, W, C], got {images.dtype} {list(images.shape)}")
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1.0
