"""`fastdiff nll`: bits per dimension of a data set under a model, with standard errors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor
from tqdm import tqdm

from ..files import atomic_path
from ..likelihood import ADAPTIVE, FIXED, PROBES, dequantise, nll_bound, nll_network
from ..models import ModelFileError
from ..opening import network_sampler, open_network
from . import CliError
from .arguments import flag
from .output import check_output_file
from .sampling import named_device

_INTEGRATION = "probe", "probes", "rtol", "atol", "sigma_min", "sigma_max"


class _Part(NamedTuple):
    """What a batch gave: bits per dimension [b], their standard errors over probes [b], evaluations of the network."""

    bpd: Tensor
    probe_error: Tensor
    nfe: int


@click.command("nll")
@click.option("--network", default="digits", show_default=True, metavar="FILE", help="A model file, or digits.")
@click.option(
    "--data", default="digits16", show_default=True, metavar="NAME", help="digits8, a folder, .zip, .npz, hf:NAME, ..."
)
@click.option("--split", type=click.Choice(["train", "test"]), default="test", show_default=True, help="Of the data.")
@click.option("--samples", type=click.IntRange(2), default=100, show_default=True, help="The first of the split.")
@click.option(
    "--method", "methods", type=click.Choice(["ode", "bound"]), multiple=True, default=["ode"], show_default=True,
    help="Probability-flow ODE, or variational bound; give it twice for both.",
)  # fmt: skip
@click.option("--levels", type=click.IntRange(0), help="Values a pixel can have; 0: continuous  [default: the data's]")
@click.option("--probe", type=click.Choice(PROBES), default="rademacher", show_default=True, help="ODE: Hutchinson's.")
@click.option("--probes", type=click.IntRange(1), default=1, show_default=True, help="ODE: probes for each image.")
@click.option(
    "--solver",
    type=click.Choice([*ADAPTIVE, *FIXED]),
    default="dopri5",
    show_default=True,
    help="ODE: torchdiffeq's, or scipy's RK45.",
)
@click.option("--steps", type=click.IntRange(1), help="ODE: steps of a solver without error control.")
@click.option("--rtol", type=float, default=1e-5, show_default=True, help="ODE: relative tolerance.")
@click.option("--atol", type=float, default=1e-5, show_default=True, help="ODE: absolute tolerance.")
@click.option("--chain", type=click.IntRange(2), help="Bound: steps of the chain  [default: 1000, or the network's]")
@click.option(
    "--cdf", type=click.Choice(["tanh", "exact"]), default="tanh", show_default=True, help="Bound: of its last term."
)
@flag("sigma_min", type=float, help="Lowest noise level, over alpha  [default: the process's]")
@flag("sigma_max", type=float, help="Highest noise level, over alpha  [default: the process's]")
@click.option("--class", "label", type=click.IntRange(0), help="Condition on this class, not on the data's own.")
@click.option("--unconditional", is_flag=True, help="Give a network with classes none.")
@click.option("--seed", type=int, default=0, show_default=True, help="Image i has the noise and probes of seed + i.")
@click.option("--batch", type=click.IntRange(1), default=50, show_default=True, help="Images per batch.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, or auto: CUDA when there is one.")
@click.option("--out", metavar="FILE", help="Also write the table and every image's figure as JSON.")
@click.option("--progress/--no-progress", default=True, help="Show a progress bar.")
def command(network: str, methods: tuple[str, ...], device: str, out: str | None, **flags: Any) -> None:
    """Print the bits per dimension of images under a model: mean, standard error, network evaluations.

    By the ODE, images are dequantised first: uniform noise as wide as a level, one draw for each image. The mean is
    then an upper bound on the bits of the discrete images, up to the error of the probes, which is part of the standard
    error. The bound needs no such noise. A network with classes is asked for the images' likelihood given their
    classes. Continuous data (--levels 0) have bits of a density, which may be negative.
    """
    place = named_device(device)
    if out is not None:
        check_output_file(out)
    try:
        model = open_network(network, place)
    except (ModelFileError, ModuleNotFoundError) as error:
        raise CliError(f"--network: {error}") from None
    images, labels, bins = _data(flags, model, place)
    methods = tuple(dict.fromkeys(methods))
    levels = bins if flags["levels"] is None else flags["levels"]
    if not levels and "bound" in methods:
        raise CliError("--method bound is for images with --levels, got 0: continuous data")
    if (flags["steps"] is None) != (flags["solver"] in ADAPTIVE):
        raise CliError(f"--steps must be given for {', '.join(FIXED)} and left out otherwise, got {flags['steps']}")
    rows = []
    for method in methods:
        measure = _by_ode if method == "ode" else _by_bound
        try:
            parts = list(_batches(measure(model, flags, levels), method, images, labels, flags))
        except FloatingPointError as error:
            raise click.ClickException(str(error)) from None
        except (TypeError, ValueError, ModuleNotFoundError) as error:
            raise CliError(str(error)) from None
        rows.append(_row(method, parts, flags))
    what = f"{levels} levels" if levels else "a density: continuous data"
    if levels and "ode" in methods:
        what += ", dequantised uniformly for the ODE"
    given = "given their classes" if labels is not None else "no classes given"
    click.echo(f"{len(images)} samples of {flags['data']} ({flags['split']}), {given}; {what}")
    click.echo(_table(rows))
    if out is not None:
        settings = {name: value for name, value in flags.items() if name not in ("progress", "batch")}
        found = {"network": network, "digest": model.metadata["digest"], **settings, "levels": levels, "results": rows}
        try:
            with atomic_path(out) as temporary:
                temporary.write_text(json.dumps(found, indent=1) + "\n")
        except OSError as error:
            raise click.ClickException(f"cannot write to {out}: {error.strerror or error}") from None


def _data(flags: dict[str, Any], model: Any, device: torch.device) -> tuple[Tensor, Tensor | None, int]:
    """The samples, what the network is told of their classes, and how many values a pixel can have (0: any)."""
    from ..data import DataError, fetch, open_dataset

    try:
        dataset = open_dataset(flags["data"], split=flags["split"])
        images, labels = fetch(dataset, range(min(flags["samples"], len(dataset))), device=device)
    except (DataError, ModuleNotFoundError) as error:
        raise CliError(f"--data: {error}") from None
    if tuple(images.shape[1:]) != tuple(model.sample_shape):
        raise CliError(f"--data: samples are {list(images.shape[1:])}, the network's {list(model.sample_shape)}")
    if len(images) < 2:
        raise CliError(f"--data must have at least 2 samples for a standard error, got {len(images)}")
    classes, label = getattr(model, "label_dim", 0), flags["label"]
    if (label is not None and (flags["unconditional"] or label >= classes)) or (flags["unconditional"] and not classes):
        raise CliError(f"--class and --unconditional: one of them, for a network with classes (this has {classes})")
    bins = dataset.bins if images.ndim == 4 else 0
    if not classes or flags["unconditional"]:
        return images, None, bins
    if label is not None:
        return images, torch.full((len(images),), label, device=device), bins
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise CliError(f"--data has not the network's {classes} classes: give --class or --unconditional")
    return images, labels, bins


def _by_ode(model: Any, flags: dict[str, Any], levels: int) -> Any:
    """(images, labels, seed of the first) -> their `_Part`."""
    sampler = network_sampler(model)
    options = {name: flags[name] for name in _INTEGRATION}
    options |= {"process": sampler.process, "prediction": sampler.prediction}
    options |= {"method": flags["solver"], "steps": flags["steps"]}

    def measure(images: Tensor, labels: Tensor | None, seed: int) -> _Part:
        x, offset = dequantise(images, levels, seeds=seed) if levels else (images, 0.0)
        found = nll_network(model, x, labels=labels, seeds=seed, offset=offset, **options)
        return _Part(found.bpd, found.probe_error, found.nfe)

    return measure


def _by_bound(model: Any, flags: dict[str, Any], levels: int) -> Any:
    sampler = network_sampler(model, sigma_min=flags["sigma_min"], sigma_max=flags["sigma_max"])
    options: dict[str, Any] = {"process": sampler.process, "prediction": sampler.prediction, "steps": flags["chain"]}
    options |= {"variance": model.metadata.get("variance", "fixed_small"), "cdf": flags["cdf"], "levels": levels}

    def measure(images: Tensor, labels: Tensor | None, seed: int) -> _Part:
        found = nll_bound(model, images, labels=labels, seeds=seed, **options)
        return _Part(found.total, torch.full_like(found.total, math.nan), found.vb.shape[1])

    return measure


def _batches(
    measure: Any, method: str, images: Tensor, labels: Tensor | None, flags: dict[str, Any]
) -> Iterator[_Part]:
    with tqdm(total=len(images), unit="sample", desc=method, disable=not flags["progress"]) as bar:
        for start in range(0, len(images), flags["batch"]):
            some = slice(start, start + flags["batch"])
            part = measure(images[some], None if labels is None else labels[some], flags["seed"] + start)
            yield _Part(part.bpd.cpu(), part.probe_error.cpu(), part.nfe)
            bar.update(len(part.bpd))


def _row(method: str, parts: list[_Part], flags: dict[str, Any]) -> dict[str, Any]:
    """What is printed of a method, and every sample's figure."""
    bpd = torch.cat([part.bpd for part in parts])
    probe = torch.cat([part.probe_error for part in parts])
    evaluations = sum(part.nfe * len(part.bpd) for part in parts) / len(bpd)
    return {
        "method": method,
        "bits_per_dim": float(bpd.mean()),
        "standard_error": float(bpd.std() / math.sqrt(len(bpd))),
        "probe_error": None if probe.isnan().any() else float(probe.square().sum().sqrt() / len(probe)),
        "probes": flags["probes"] if method == "ode" and flags["probe"] != "exact" else None,
        "nfe": evaluations,
        "samples": bpd.tolist(),
    }


def _table(rows: list[dict[str, Any]]) -> str:
    """One line a method. "of it probes": the standard error that more probes would take away."""
    lines = [f"{'method':<8}{'bits/dim':>10} {'std error':>10} {'of it probes':>13} {'probes':>7} {'nfe':>7}"]
    for row in rows:
        probe = "-" if row["probe_error"] is None else f"{row['probe_error']:.4f}"
        lines.append(
            f"{row['method']:<8}{row['bits_per_dim']:>10.4f} {row['standard_error']:>10.4f} {probe:>13} "
            f"{row['probes'] or '-':>7} {row['nfe']:>7.0f}"
        )
    return "\n".join(lines)
