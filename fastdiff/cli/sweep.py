"""`fastdiff sweep`: samplers compared over a grid of settings; stopped sweeps go on, torchrun splits them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from . import CliError
from .arguments import flag

_LISTS = {"solver": str, "steps": int, "epsilon_scale": float, "w_1st": float, "w_2nd": float, "S_churn": float}


@click.command("sweep")
@click.option("--config", "file", metavar="FILE", help="YAML file; keys it lacks keep their defaults.")
@click.option("--out", metavar="DIR", default="runs/sweep", show_default=True, help="Where cells and results go.")
@click.option("--network", metavar="FILE", help="A model file, or digits.")
@click.option("--discriminator", metavar="FILE", help="For weights other than 0: a discriminator's file.")
@click.option("--features", metavar="NAME", help="Feature space: digits, inception or a file.")
@click.option("--data", metavar="NAME", help="Real images to compare with: digits16 or digits8.")
@flag("solver", metavar="LIST", help="heun,euler,...")
@flag("steps", metavar="LIST", help="5,9,13")
@flag("epsilon_scale", metavar="LIST", help="lambda: .97,1,1.03")
@flag("w_1st", metavar="LIST", help="Discriminator guidance's weight in a step's first evaluation: 0,1,2")
@flag("w_2nd", metavar="LIST", help="... and in its second.")
@flag("S_churn", metavar="LIST", help="Noise added back: 0,40")
@click.option("--samples", type=int, help="Samples per range of seeds.")
@click.option("--ranges", type=int, help="Ranges of seeds; errors need two or more.")
@flag("first_seed", type=int, help="Of the first range.")
@click.option("--batch", type=int, help="Samples per batch.")
@click.option("--device", help="cpu, cuda, or auto: CUDA when there is one.")
@click.option(
    "--conditional/--unconditional", default=None, help="Give the network classes (seed mod classes), or none."
)
def command(file: str | None, out: str, **flags: Any) -> None:
    """Compare samplers over a grid of solver, steps, lambda, weights, churn and seed ranges.

    Flags take the place of the configuration's keys, which are those of fastdiff.sweep.SweepConfig. Every finished cell
    is a file in DIR/cells; run the same command again to go on. Writes DIR/sweep.csv, DIR/best.md and plots. Under
    torchrun (`torchrun --nproc-per-node=2 --no-python fastdiff sweep ...`) the cells are split over the processes, one
    GPU each; the last to finish writes the results.
    """
    from ..config import ConfigError
    from ..evaluation import FeatureError
    from ..models import ModelFileError
    from ..sweep import load_sweep_config, open_sweep, write_report
    from ..sweep.runner import Result

    rank, world, local = (_number(name, n) for name, n in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    try:
        changes = {name: _value(name, value) for name, value in flags.items() if value is not None}
        sweep = open_sweep(load_sweep_config(file, changes), out, local)
    except (ConfigError, FeatureError, ModelFileError, ModuleNotFoundError, TypeError, ValueError) as error:
        raise CliError(str(error)) from None
    folder = _folder(out)
    ready = len(sweep.results())
    click.echo(f"{len(sweep.cells)} cells of {sweep.samples} samples, {ready} finished before", err=True)

    def report(number: int, count: int, result: Result) -> None:
        cell = result.cell
        scores = (
            "not finite" if result.frechet is None else f"distance {result.frechet:.4g}, recall {result.recall:.3f}"
        )
        weights = f", w {cell.w_1st:g} {cell.w_2nd:g}" if cell.guided else ""
        churn = f", S_churn {cell.S_churn:g}" if cell.S_churn else ""
        name = f"{cell.solver} {cell.steps}, lambda {cell.epsilon_scale:g}{weights}{churn}, range {cell.range}"
        click.echo(f"[{rank}] {number}/{count} {name}: {scores}", err=True)

    try:
        sweep.run(rank, world, report)
        if sweep.finished:
            written = write_report(sweep.results(), folder)
            click.echo(f"wrote {', '.join(map(str, written))}")
    except OSError as error:
        raise click.ClickException(f"cannot write to {out}: {error.strerror or error}") from None


def _value(name: str, value: Any) -> Any:
    """A flag's value for the configuration: lists are comma-separated."""
    if name not in _LISTS:
        return value
    try:
        return [_LISTS[name](part.strip()) for part in value.split(",")]
    except ValueError:
        raise CliError(f"--{name}: expected values such as 1,2,3, got {value!r}") from None


def _number(name: str, default: int) -> int:
    """What torchrun says in an environment variable."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise CliError(f"{name} must be a number in the environment, got {text!r}")
    return int(text)


def _folder(out: str) -> Path:
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CliError(f"--out: cannot write to {out} ({error.strerror or error})") from None
    return Path(out)
