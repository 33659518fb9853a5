"""`fastdiff cascade`: a sampler of small images and upsamplers of them, in one command."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import fastdiff

from ..cascade import RESIZES, Cascade, Stage
from ..models import ModelFileError
from ..opening import default_settings, network_sampler, open_network
from . import CliError
from .arguments import SEEDS, STEPS
from .output import OutputFolder, grid, npz_bytes, png_bytes
from .sampling import named_device

_FILES = ("grid.png", "samples.npz")
_OFF = ("", "-")  # in a list of settings: what the network is sampled with by default


class _Each(click.ParamType):
    """Values for the networks, separated by commas; one value is for all."""

    name = "list"

    def __init__(self, read: Callable[[str], Any] = str):
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        if isinstance(value, list):
            return value
        found = []
        for part in str(value).split(","):
            try:
                found.append(None if part.strip() in _OFF else self._read(part.strip()))
            except ValueError:
                self.fail(f"expected values separated by commas, got {value!r}", param, ctx)
        return found


def _steps(text: str) -> Any:
    return STEPS.convert(text, None, None)


@click.command("cascade")
@click.argument("networks", nargs=-1, required=True, metavar="BASE UPSAMPLER [UPSAMPLER]...")
@click.option("--seeds", type=SEEDS, default="0-63", show_default=True, help="One image per seed: 0-63 or 1,5,7-9.")
@click.option("--solver", type=_Each(), metavar="NAME[,...]", help="Of every network, or one for all.")
@click.option("--steps", type=_Each(_steps), metavar="N[,...]", help="Of every network, or one for all.")
@click.option(
    "--noise", type=_Each(float), default="0", show_default=True, metavar="SIGMA[,...]",
    help="Level of the noise on the image that each upsampler sees, sigma / alpha, or one for all.",
)  # fmt: skip
@click.option(
    "--resize", type=_Each(), default="bilinear", show_default=True, metavar="NAME[,...]",
    help=f"How that image is enlarged: {', '.join(RESIZES)}.",
)  # fmt: skip
@click.option("--condition", default="low_res", show_default=True, help="The upsamplers' argument for that image.")
@click.option("--told", metavar="NAME", help="The upsamplers' argument for the level of the noise, if they have one.")
@click.option("--outdir", default="samples", show_default=True, metavar="DIR", help="Where to write.")
@click.option("--class", "label", type=int, help="Draw this class only; by default seed s draws class s mod classes.")
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Images per batch.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, or auto: CUDA when there is one.")
@click.option("--progress/--no-progress", default=True, help="Show a progress bar.")
def command(networks: tuple[str, ...], **flags: Any) -> None:
    """Draw one image per seed with BASE, enlarge it with every UPSAMPLER in turn, and write the last ones to
    DIR/grid.png (at most 400 images) and DIR/samples.npz.

    An upsampler is a network that takes the smaller image too, such as guided-diffusion's SuperResModel. Lists of
    settings have one entry for a network, or one for all; "-" leaves one to its default. The array file is that of
    `fastdiff sample`. The same seed gives the same noise in any batch and on any machine.
    """
    device = named_device(flags["device"])
    cascade, models, described = _open(networks, device, flags)
    seeds = flags["seeds"]
    labels = _labels(models, seeds, flags["label"])
    with OutputFolder(flags["outdir"], _FILES) as folder:
        started = time.perf_counter()
        images = _draw(cascade, seeds, labels, flags["batch"], flags["progress"])
        elapsed = time.perf_counter() - started
        provenance = {
            "fastdiff": fastdiff.__version__, "torch": torch.__version__, "device": str(device), "cascade": described,
        }  # fmt: skip
        arrays = {"images": images, "seeds": np.array(seeds), "labels": np.array(labels or [-1] * len(seeds))}
        folder.write({"grid.png": png_bytes(grid(images)), "samples.npz": npz_bytes(arrays, provenance)})
    written = " and ".join(str(folder.path / name) for name in _FILES)
    click.echo(f"{len(seeds)} images in {elapsed:.2f} s, {len(seeds) / elapsed:.1f} images per second; wrote {written}")


def _open(
    networks: Sequence[str], device: torch.device, flags: dict[str, Any]
) -> tuple[Cascade, list[Any], list[dict[str, Any]]]:
    """The cascade, its networks, and what each was sampled with, as JSON can hold it."""
    count = len(networks)
    if count < 2:
        raise CliError(f"networks must be a base and at least one upsampler, got {count}")
    solver, steps = (_one_each(name, flags[name], count, "network") for name in ("solver", "steps"))
    noise, resize = (_one_each(name, flags[name], count - 1, "upsampler") for name in ("noise", "resize"))
    models, samplers, described = [], [], []
    for number, name in enumerate(networks):
        try:
            model = open_network(name, device)
            settings = default_settings(model)
            settings |= {k: v for k, v in (("solver", solver[number]), ("steps", steps[number])) if v is not None}
            samplers.append(network_sampler(model, **settings))
        except ModelFileError as error:
            raise CliError(str(error)) from None
        except (TypeError, ValueError) as error:
            raise CliError(f"{name}: {error}") from None
        models.append(model)
        described.append({"network": name, "digest": model.metadata["digest"], **settings})
    base, *others = samplers
    stages = []
    for number, sampler in enumerate(others):
        more = {"noise": noise[number] or 0.0, "resize": resize[number] or "bilinear", "clip": True}
        try:
            stages.append(Stage(sampler, **more, condition=flags["condition"], told=flags["told"]))
        except (TypeError, ValueError) as error:
            raise CliError(f"{networks[number + 1]}: {error}") from None
        described[number + 1] |= {"noise": stages[-1].level.sigma_ve, "resize": more["resize"]}
    return Cascade(base, *stages), models, described


def _one_each(name: str, values: list[Any] | None, count: int, what: str) -> list[Any]:
    given = [None] if values is None else values
    if len(given) not in (1, count):
        raise CliError(f"--{name} must have one value, or one for each {what} ({count}), got {len(given)}")
    return given if len(given) == count else given * count


def _draw(
    cascade: Cascade, seeds: list[int], labels: list[int] | None, batch: int, progress: bool
) -> NDArray[np.uint8]:
    """All images of the last stage, batch by batch: uint8 [N, H, W, C]."""
    parts = []
    single = len(seeds) <= batch  # one batch shows its steps, many show the images
    with tqdm(total=len(seeds), unit="image", desc="cascade", disable=single or not progress) as bar:
        for start in range(0, len(seeds), batch):
            some = slice(start, start + batch)
            known = None if labels is None else labels[some]
            try:
                x = cascade(len(seeds[some]), seeds=seeds[some], labels=known, progress=single and progress)
            except FloatingPointError as error:
                raise click.ClickException(str(error)) from None
            parts.append(((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
            bar.update(len(x))
    return torch.cat(parts).numpy()


def _labels(models: Sequence[Any], seeds: list[int], label: int | None) -> list[int] | None:
    """One class per seed; None for networks without classes."""
    counts = {model.label_dim for model in models} - {0}
    if not counts:
        if label is not None:
            raise CliError("--class: these networks are unconditional")
        return None
    if len(counts) > 1:
        raise CliError(f"the networks must have the same classes, got {', '.join(map(str, sorted(counts)))}")
    (classes,) = counts
    if label is not None and not 0 <= label < classes:
        raise CliError(f"--class must be 0 to {classes - 1}, got {label}")
    return [seed % classes if label is None else label for seed in seeds]
