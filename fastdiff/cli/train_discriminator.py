"""`fastdiff train-discriminator`: a configuration and `key=value` overrides in, a discriminator's file out."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("train-discriminator")
@click.option("--config", "file", metavar="FILE", help="YAML file; keys it lacks keep their defaults.")
@click.option("--outdir", metavar="DIR", default="runs/discriminator", show_default=True, help="Where to write.")
@click.option("--resume", is_flag=True, help="Continue from the newest checkpoint in --outdir, if there is one.")
@click.option("--progress/--no-progress", default=True, help="Show progress bars.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def command(file: str | None, outdir: str, resume: bool, progress: bool, overrides: tuple[str, ...]) -> None:
    """Train a discriminator of real and generated images, for discriminator guidance of a diffusion model.

    The generated images are drawn from the network by seed and not stored. Configuration keys are those of
    fastdiff.config.DiscriminatorConfig, for example
    `fastdiff train-discriminator network=runs/train/model.safetensors fakes=10000 sigma_max=20`.
    Ends early when the held-out loss stops falling, and fails without a model if that never is below ln 2.
    """
    from ..config import load_discriminator_config
    from ..models import read_metadata
    from ..training import DiscriminatorTrainer, NothingLearntError
    from .training import opening, running

    with opening(outdir):
        trainer = DiscriminatorTrainer(load_discriminator_config(file, overrides), Path(outdir), resume)
    size = sum(parameter.numel() for parameter in trainer.model.parameters())
    counts = f"{len(trainer.real):,} real and {trainer.config.fakes:,} generated images"
    click.echo(f"{size:,} parameters, {counts}, device {trainer.device}", err=True)
    with running(outdir, FloatingPointError, NothingLearntError):
        model = trainer.run(progress=progress)
    training = read_metadata(model)["training"]
    click.echo(str(trainer.report))
    click.echo(
        f"wrote {model}, held-out cross-entropy {training['heldout_loss']:.4f} +- {training['heldout_error']:.4f} "
        f"(ln 2 = 0.6931) at iteration {training['iteration']}"
    )
