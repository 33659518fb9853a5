"""`fastdiff exposure`: the drift of a sampler against noised data, as a table and as curves."""

from __future__ import annotations

import json
from typing import Any

import click

import fastdiff

from . import CliError
from .arguments import flag, parse_seeds
from .output import OutputFolder
from .sampling import named_device

_FILES = ("drift.csv", "drift.png", "config.json")


@click.command("exposure")
@click.option("--config", "file", metavar="FILE", help="YAML file; keys it lacks keep their defaults.")
@click.option("--out", "--outdir", "out", metavar="DIR", default="drift", show_default=True, help="Where to write.")
@click.option("--network", metavar="FILE", help="A model file, or digits.")
@click.option("--data", metavar="NAME", help="digits16 or digits8.")
@click.option("--split", help="Of the data set: train, or test for held-out images.")
@click.option("--seeds", metavar="LIST", help="One pair of a sample and a noised image each: 0-999 or 1,5,7-9.")
@click.option("--solver", metavar="NAME", help="heun, euler, ddim, ...")
@click.option("--steps", type=int, help="Sampling steps.")
@flag("epsilon-scale", metavar="NUMBER|FILE", help="Epsilon scaling's lambda, or a file of fastdiff calibrate.")
@click.option("--discriminator", metavar="FILE", help="Guide with this file of fastdiff train-discriminator.")
@flag("w_1st", type=float, help="Its weight in a step's first evaluation.")
@flag("w_2nd", type=float, help="... and in its second.")
@flag("S_churn", type=float, help="Heun, Euler: amount of noise added back.")
@flag("S_min", type=float, help="Lowest level that is churned.")
@flag("S_max", type=float, help="Highest level that is churned.")
@flag("S_noise", type=float, help="Standard deviation of the added noise.")
@flag("rho", type=float, help="Exponent of the Karras schedule.")
@flag("sigma_min", type=float, help="Lowest noise level.")
@flag("sigma_max", type=float, help="Highest noise level.")
@click.option("--batch", type=int, help="Pairs per batch.")
@click.option("--probe", type=int, help="Dimensions of the Shapiro-Wilk check; 0 for none.")
@click.option("--conditional/--unconditional", default=None, help="Give the network the data's classes, or none.")
@click.option("--device", help="cpu, cuda, or auto: CUDA when there is one.")
@click.option("--progress/--no-progress", default=True, help="Show a progress bar.")
def command(file: str | None, out: str, progress: bool, **flags: Any) -> None:
    """Measure what a network sees and says while sampling, against truly noised images of the same classes.

    Flags take the place of the configuration's keys, which are those of fastdiff.exposure.config.ExposureConfig. Writes
    DIR/drift.csv (norms of the predicted noise, variances, delta_t and the Shapiro-Wilk check, level by level),
    DIR/drift.png (the curves, sampling from right to left) and DIR/config.json (how it was measured).
    """
    from ..config import ConfigError
    from ..exposure.config import load_exposure_config, open_exposure
    from ..exposure.curves import draw
    from ..exposure.drift import measure_drift
    from ..exposure.normality import require_scipy
    from ..models import ModelFileError
    from ..plots import new_figure

    try:
        changes = {name: _value(name, value) for name, value in flags.items() if value is not None}
        config = load_exposure_config(file, changes)
        unused = [name for name in ("w_1st", "w_2nd") if name in changes and config.discriminator is None]
        if unused:
            raise ConfigError(f"--{unused[0]} needs --discriminator")
        seeds = _seeds(config.seeds)
        for name, least in (("batch", 1), ("probe", 0)):
            if getattr(config, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(config, name)}")
        new_figure()
        if config.probe:
            require_scipy()
        place = named_device(config.device)
        what = open_exposure(config, place)
    except (ConfigError, ModelFileError, ModuleNotFoundError, TypeError, ValueError, OSError) as error:
        raise CliError(str(error)) from None

    with OutputFolder(out, _FILES) as folder:
        try:
            drift = measure_drift(
                what.sampler,
                what.data,
                seeds=seeds,
                labels=what.labels,
                batch=config.batch,
                probe=config.probe,
                progress=progress,
            )
        except FloatingPointError as error:
            raise click.ClickException(str(error)) from None
        except (TypeError, ValueError) as error:
            raise CliError(str(error)) from None
        provenance = config.as_dict() | {
            "fastdiff": fastdiff.__version__,
            "device": str(place),
            "epsilon_scale": what.scales,
            "digests": what.digests,
        }
        title = (
            f"{config.network}, {config.solver}, {config.steps} steps, {drift.samples} pairs ({config.split} images)"
        )
        contents = {
            "drift.csv": drift.csv().encode(),
            "drift.png": draw({"": drift}, title=title),
            "config.json": (json.dumps(provenance, indent=1) + "\n").encode(),
        }
        folder.write(contents)
    click.echo(str(drift))
    click.echo(f"wrote {', '.join(str(folder.path / name) for name in _FILES)}")


def _value(name: str, value: Any) -> Any:
    """A flag's value as the configuration wants it: epsilon_scale is a number, or else a path."""
    if name == "epsilon_scale":
        try:
            return float(value)
        except ValueError:
            pass
    return value


def _seeds(text: str) -> list[int]:
    from ..config import ConfigError

    try:
        seeds = parse_seeds(text)
    except ValueError as error:
        raise ConfigError(f"seeds: {error}") from None
    if len(seeds) < 2:
        raise ConfigError(f"seeds must be two or more, got {text!r}")
    return seeds
