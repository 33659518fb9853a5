"""`fastdiff train`: a configuration file and `key=value` overrides in, a model file out."""

from __future__ import annotations

from pathlib import Path

import click


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
    from ..config import load_train_config
    from ..models import read_metadata
    from ..training import Trainer
    from .training import opening, running

    with opening(outdir):
        trainer = Trainer(load_train_config(file, overrides), Path(outdir), resume)
    size = sum(parameter.numel() for parameter in trainer.model.parameters())
    click.echo(f"{size:,} parameters, {len(trainer.train_set):,} images, device {trainer.device}", err=True)
    with running(outdir, FloatingPointError):
        model = trainer.run(progress=progress)
    loss = read_metadata(model)["training"]["heldout_loss"]
    click.echo(f"wrote {model}, held-out loss {loss:.4f}")
