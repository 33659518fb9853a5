"""`fastdiff train`: a configuration file and `key=value` overrides in, a model file out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..training import Trainer


@click.command("train")
@click.option("--preset", metavar="NAME", help="A published run; its keys come before those of --config.")
@click.option("--list-presets", is_flag=True, help="Print the published runs and stop.")
@click.option("--config", "file", metavar="FILE", help="YAML file; keys it lacks keep their defaults.")
@click.option("--outdir", metavar="DIR", default="runs/train", show_default=True, help="Where to write.")
@click.option("--resume", is_flag=True, help="Continue from the newest checkpoint in --outdir, if there is one.")
@click.option("--dry-run", is_flag=True, help="Build everything, do one iteration, write nothing.")
@click.option("--progress/--no-progress", default=True, help="Show a progress bar.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def command(
    preset: str | None,
    list_presets: bool,
    file: str | None,
    outdir: str,
    resume: bool,
    dry_run: bool,
    progress: bool,
    overrides: tuple[str, ...],
) -> None:
    """Train a diffusion model on a data set: one that a Python package carries, a folder, a file.

    Configuration keys are those of fastdiff.config.TrainConfig, for example
    `fastdiff train --config digits.yaml iterations=2000 model.width=48 objective.name=ddpm objective.gamma=0.1`.
    Several GPUs: `torchrun --nproc-per-node 8 -m fastdiff.cli train ...`.
    """
    from ..config import load_train_config
    from ..data import DataError, WorkerError
    from ..models import read_metadata
    from ..training import Trainer
    from ..training.presets import get, table
    from .training import opening, running

    if list_presets:
        click.echo(table())
        return
    with opening(outdir):
        published = None if preset is None else get(preset)
        config = load_train_config(file, overrides, None if published is None else published.config)
        trainer = Trainer(config, Path(outdir), resume, dry=dry_run)
    try:
        say: Any = click.echo if trainer.group.first else _silent
        say(_described(trainer), err=True)
        if published is not None:
            fid = "not given" if published.fid is None else f"{published.fid:g}"
            say(f"preset {published.name}: published FID {fid} ({published.source}). {published.note}", err=True)
        if resume and not dry_run and not trainer.iteration:
            say(f"no checkpoint in {outdir}: from the beginning", err=True)
        for name, reason in list(trainer.data.bad.items())[:5]:
            say(f"unusable: {name}: {reason} ({len(trainer.data.bad)} in all)", err=True)
        with running(outdir, FloatingPointError, DataError, WorkerError):
            if dry_run:
                tried = trainer.try_step()
                say(f"one iteration: loss {tried['loss']:.4f}, gradient norm {tried['grad_norm']:.4f}")
                say(f"memory: {tried['bytes'] / 2**20:,.0f} MiB at most; nothing was written")
                return
            model = trainer.run(progress=progress)
        if trainer.group.first:
            loss = read_metadata(model)["training"]["heldout_loss"]
            say(f"wrote {model}" + ("" if loss is None else f", held-out loss {loss:.4f}"))
    finally:
        trainer.group.close()


def _described(trainer: Trainer) -> str:
    size = sum(parameter.numel() for parameter in trainer.model.parameters())
    processes = f" of {trainer.group.world} processes" if trainer.group.world > 1 else ""
    return f"{size:,} parameters, {len(trainer.data):,} samples, device {trainer.device}{processes}"


def _silent(message: str, err: bool = False) -> None:
    """What processes beside the first say."""
