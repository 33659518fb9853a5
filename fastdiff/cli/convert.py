"""`fastdiff convert`: a published checkpoint in, a model file of our own out."""

from __future__ import annotations

from typing import Any

import click

from . import CliError
from .arguments import OPTION

_DTYPES = ("float32", "bfloat16", "float16", "stored")


@click.command("convert")
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@click.option("--config", metavar="FILE.json", help="What a file of tensors does not say: its constructor arguments.")
@click.option("--like", metavar="NAME", help="The published checkpoint whose configuration it has (`fastdiff models`).")
@click.option(
    "--set", "values", type=OPTION, multiple=True, metavar="NAME=VALUE",
    help="One value over all others: num_heads=4, architecture=UNetModel, prediction=eps, process.betas=cosine.",
)  # fmt: skip
@click.option("--weights", type=click.Choice(["ema", "model"]), default="ema", show_default=True, help="Which to take.")
@click.option("--dtype", type=click.Choice(_DTYPES), default="float32", show_default=True, help="Of the parameters.")
@click.option("--discriminator-head", "head", metavar="FILE", help="DG: the discriminator of the features of IN.")
def command(
    source: str,
    target: str,
    config: str | None,
    like: str | None,
    values: tuple[tuple[str, Any], ...],
    weights: str,
    dtype: str,
    head: str | None,
) -> None:
    """Write the network of a checkpoint as safetensors that hold its configuration, and that as OUT's .json too.

    IN is a pickle of EDM's, a state dict of guided-diffusion or DG (.pt), a checkpoint of score_sde (.pth), a diffusers
    folder, a Hugging Face id, or safetensors. Nothing in it is executed. Nothing is written if it is refused.
    """
    import torch

    from ..importing import convert
    from ..models import ModelFileError

    try:
        converted = convert(
            source, target, config=config, like=like, weights=weights, head=head,
            dtype=None if dtype == "stored" else getattr(torch, dtype), **_named(values),
        )  # fmt: skip
    except (ModelFileError, ValueError, ModuleNotFoundError) as error:
        raise CliError(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{target}: cannot be written: {error.strerror or error}") from None
    click.echo("\n".join(_report(converted)))


def _named(values: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """The values of --set by name; names of `convert`'s own arguments have options of their own."""
    for name, _ in values:
        if name in ("source", "target", "config", "like", "weights", "head", "dtype"):
            raise CliError(f"--set {name}: no argument of a network has this name")
    return dict(values)


def _report(converted: Any) -> list[str]:
    """What was read, what each argument is and where it is from, what was written."""
    from ..models.network import FACTS

    network, settled, checkpoint = converted.network, converted.settled, converted.checkpoint
    lines = [f"{settled.architecture} ({FACTS[settled.architecture].source}), read as {checkpoint.format}"]
    rows = dict(_flat(network.config))
    width = max(map(len, rows), default=0)
    for name, value in rows.items():
        first = name.split(".")[0]
        origin = settled.origins.get(name) or settled.origins.get(first, "default")
        why = settled.reasons.get(name) or settled.reasons.get(first)
        lines.append(f"  {name:{width}}  {value!s:20}  {origin}" + (f" ({why})" if why else ""))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    lines += [f"  {parameters:,} parameters", f"  {_reading(network)}"]
    lines += [f"  note: {note}" for note in checkpoint.notes]
    size = converted.target.stat().st_size / 1e6
    lines.append(
        f"wrote {converted.target} ({size:.1f} MB, digest {converted.digest[:16]}) and {converted.description}"
    )
    return lines


def _flat(config: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in config.items():
        nested = isinstance(value, dict) and value
        rows += _flat(value, f"{prefix}{name}.") if nested else [(f"{prefix}{name}", value)]
    return rows


def _reading(network: Any) -> str:
    """How the output is read, if that is known."""
    from ..models.network import FACTS
    from ..process import VE
    from ..reading import reading_of

    kind = FACTS[type(network).__name__].kind
    if kind != "denoiser":
        return f"a network of kind {kind!r}"
    try:
        reading = reading_of(network)
    except (TypeError, ValueError) as error:
        return f"how its output is read is not known ({error}); to sample with it, --set prediction and process"
    solver = getattr(reading.solver, "__name__", reading.solver)
    settings = "".join(f", {name} {value:g}" for name, value in reading.settings.items())
    process, prediction = type(reading.process).__name__, type(reading.prediction).__name__
    if isinstance(reading.process, VE):
        process += f" (levels {reading.process.sigma_min:g} to {reading.process.sigma_max:g})"
    return f"process {process}, prediction {prediction}; by default solver {solver}{settings}"
