"""`fastdiff cascade`: a sampler of small images and upsamplers of them, in one command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click
import torch
from torch import Tensor

from ..cascade import RESIZES, Cascade, Stage
from ..models import ModelFileError
from ..opening import default_settings, network_sampler, open_network
from . import CliError
from .arguments import SEEDS, STEPS
from .drawing import class_labels, image_range, write_images
from .sampling import named_device

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
    labels = class_labels(models, seeds, flags["label"])

    def draw(some: list[int], classes: list[int] | None, bar: bool) -> Tensor:
        images: Tensor = cascade(len(some), seeds=some, labels=classes, progress=bar)
        return images

    told = {"device": str(device), "cascade": described}
    shown = {"batch": flags["batch"], "progress": flags["progress"], "limits": image_range(models[-1])}
    write_images(flags["outdir"], draw, seeds, labels, told, **shown)


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
        if image_range(models[number]) != image_range(models[number + 1]):
            raise CliError(f"{networks[number + 1]}: must know values in the range of the network before it")
        given = {"condition": flags["condition"], "told": flags["told"], "clip": image_range(models[number])}
        given |= {"noise": noise[number] or 0.0, "resize": resize[number] or "bilinear"}
        try:
            stages.append(Stage(sampler, **given))
        except (TypeError, ValueError) as error:
            raise CliError(f"{networks[number + 1]}: {error}") from None
        described[number + 1] |= {"noise": stages[-1].level.sigma_ve, "resize": stages[-1].resize}
    return Cascade(base, *stages), models, described


def _one_each(name: str, values: list[Any] | None, count: int, what: str) -> list[Any]:
    given = [None] if values is None else values
    if len(given) not in (1, count):
        raise CliError(f"--{name} must have one value, or one for each {what} ({count}), got {len(given)}")
    return given if len(given) == count else given * count
