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
from ..guidance import Boosting, DiscriminatorGuidance
from ..models import Discriminator, ModelFileError, UNet, load
from . import CliError
from .arguments import EPSILON_SCALE, SEEDS, flag
from .output import OutputFolder, grid, npz_bytes, png_bytes

_FILES = ("grid.png", "samples.npz")


@click.command("sample")
@click.option("--seeds", type=SEEDS, default="0-63", show_default=True, help="One image per seed: 0-63 or 1,5,7-9.")
@click.option("--steps", type=int, default=18, show_default=True, help="Sampling steps.")
@click.option("--solver", default="heun", show_default=True, metavar="NAME", help="heun, euler, ddim or ddpm.")
@flag(
    "epsilon-scale", type=EPSILON_SCALE, default=1.0, show_default=True, metavar="NUMBER|FILE",
    help="Epsilon scaling's lambda, or what `fastdiff calibrate` chose.",
)  # fmt: skip
@click.option("--discriminator", metavar="FILE", help="Discriminator guidance (EDM-G++) with this model file.")
@flag("w_1st", type=float, help="Its weight in a step's first evaluation  [default: 2].")
@flag("w_2nd", type=float, help="Its weight in Heun's second evaluation  [default: 0].")
@click.option("--boosting", is_flag=True, help="EDM-G++'s boosting of samples that look generated.")
@click.option("--outdir", default="samples", show_default=True, metavar="DIR", help="Where to write.")
@click.option("--network", default="digits", show_default=True, metavar="FILE", help="A model file, or digits.")
@click.option("--class", "label", type=int, help="Draw this class only; by default seed s draws class s mod classes.")
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Images per batch.")
@flag("S_churn", type=float, help="Heun, Euler: amount of noise added back.")
@flag("S_min", type=float, help="Lowest level that is churned.")
@flag("S_max", type=float, help="Highest level that is churned.")
@flag("S_noise", type=float, help="Standard deviation of the added noise.")
@flag("rho", type=float, default=7.0, show_default=True, help="Exponent of the Karras schedule.")
@flag("sigma_min", type=float, default=0.002, show_default=True, help="Lowest noise level.")
@flag("sigma_max", type=float, default=80.0, show_default=True, help="Highest noise level.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, or auto: CUDA when there is one.")
@click.option("--progress/--no-progress", default=True, help="Show a progress bar.")
def command(
    seeds: list[int],
    steps: int,
    solver: str,
    epsilon_scale: float | Calibration,
    discriminator: str | None,
    w_1st: float | None,
    w_2nd: float | None,
    boosting: bool,
    outdir: str,
    network: str,
    label: int | None,
    batch: int,
    rho: float,
    sigma_min: float,
    sigma_max: float,
    device: str,
    progress: bool,
    **solver_options: float | None,
) -> None:
    """Draw one image per seed and write DIR/grid.png (at most 400 images) and DIR/samples.npz.

    The array file holds images (uint8 [N, H, W, C]), seeds, labels (-1: no class) and config, a JSON string
    that says how they were made. The same seed gives the same noise in any batch and on any machine.
    """
    place = _device(device)
    model = _load(network, place)
    labels = _labels(model, seeds, label)
    options: dict[str, Any] = {name: value for name, value in solver_options.items() if value is not None}
    settings = {
        "steps": steps, "solver": solver, "rho": rho, "sigma_min": sigma_min, "sigma_max": sigma_max, **options,
    }  # fmt: skip
    weights: dict[str, Any] = {name: value for name, value in (("w_1st", w_1st), ("w_2nd", w_2nd)) if value is not None}
    if discriminator is None and (weights or boosting):
        raise CliError(f"--{next(iter(weights), 'boosting')} needs --discriminator")
    judge = None if discriminator is None else _discriminator(discriminator, model, place)
    try:
        sampler = fastdiff.Sampler(
            model,
            process=fastdiff.EDM(sigma_min, sigma_max),
            prediction=fastdiff.EDMPrediction(model.metadata["sigma_data"]),
            solver=solver,
            steps=steps,
            rho=rho,
            epsilon_scale=epsilon_scale,
            guidance=None if judge is None else _guidance(judge, weights, boosting),
            **options,
        )
    except (TypeError, ValueError) as error:
        raise CliError(str(error)) from None

    scales = epsilon_scales(sampler.epsilon_scale, steps)
    if isinstance(epsilon_scale, Calibration):
        for difference in epsilon_scale.differences(describe(sampler)):
            click.echo(f"fastdiff: warning: {difference}", err=True)
    with OutputFolder(outdir, _FILES) as folder:
        started = time.perf_counter()
        images = _draw(sampler, model, seeds, labels, batch, progress)
        elapsed = time.perf_counter() - started
        provenance = {
            "fastdiff": fastdiff.__version__, "torch": torch.__version__, "device": str(place),
            "network": network, "digest": model.metadata["digest"], **settings,
            "epsilon_scale": scales[0] if len(set(scales)) == 1 else scales,
        }  # fmt: skip
        if judge is not None:
            provenance |= {"discriminator": judge.metadata["digest"], "boosting": boosting, **weights}
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


def _load(network: str, device: torch.device) -> UNet:
    """The network, if its file says how its output is to be read."""
    try:
        model = load(network, device)
    except ModelFileError as error:
        raise CliError(f"--network: {error}") from None
    if model.metadata.get("prediction") != "edm" or not isinstance(model.metadata.get("sigma_data"), float):
        raise CliError(f"--network: {network}: the file does not name prediction edm and its sigma_data")
    return model


def _discriminator(path: str, model: UNet, device: torch.device) -> Discriminator:
    """A discriminator of states like the network's."""
    try:
        judge = load(path, device)
    except ModelFileError as error:
        raise CliError(f"--discriminator: {error}") from None
    if not isinstance(judge, Discriminator) or judge.sample_shape != model.sample_shape:
        wanted = f"a discriminator of samples of shape {list(model.sample_shape)}, as the network's are"
        raise CliError(f"--discriminator must be {wanted}, got {path}")
    return judge


def _guidance(judge: Discriminator, weights: dict[str, Any], boosting: bool) -> DiscriminatorGuidance:
    return DiscriminatorGuidance(judge, **weights, boosting=Boosting() if boosting else None)


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


def _device(name: str) -> torch.device:
    """The device of that name, if it can be used here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CliError(f"--device: {name!r} cannot be used here ({str(error).splitlines()[0]})") from None
    return device
