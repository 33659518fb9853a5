"""`fastdiff train`: a configuration file and `key=value` overrides in, a model file out."""

from __future__ import annotations

from pathlib import Path

import click

from . import CliError


@click.command("train")
@click.option("--config", "file", metavar="FILE", help="YAML file; keys it lacks keep their defaults.")
@click.option("--outdir", metavar="DIR", default="runs/train", show_default=True, help="Where to write.")
@click.option("--resume", is_flag=True, help="Continue from the checkpoint in --outdir.")
@click.option("--progress/--no-progress", default=True, help="Show a progress bar.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def command(file: str | None, outdir: str, resume: bool, progress: bool, overrides: tuple[str, ...]) -> None:
    """Train a diffusion model on images that a Python package carries.

    Configuration keys are those of fastdiff.config.TrainConfig, for example
    `fastdiff train --config digits.yaml iterations=2000 model.width=48`.
    """
    from ..config import ConfigError, load_train_config
    from ..models import ModelFileError, read_metadata
    from ..training import Trainer

    try:
        trainer = Trainer(load_train_config(file, overrides), Path(outdir), resume)
    except (ConfigError, ModelFileError, ModuleNotFoundError, ValueError) as error:
        raise CliError(str(error)) from None
    except FileExistsError as error:
        raise CliError(f"{error} (--resume or --outdir)") from None
    except OSError as error:
        raise CliError(f"--outdir: cannot write to {outdir} ({error.strerror or error})") from None
    size = sum(parameter.numel() for parameter in trainer.model.parameters())
    click.echo(f"{size:,} parameters, {len(trainer.train_set):,} images, device {trainer.device}", err=True)
    try:
        model = trainer.run(progress=progress)
    except FloatingPointError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"cannot write to {outdir}: {error.strerror or error}") from None
    loss = read_metadata(model)["training"]["heldout_loss"]
    click.echo(f"wrote {model}, held-out loss {loss:.4f}")
