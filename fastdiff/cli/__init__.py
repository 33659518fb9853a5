"""The `fastdiff` command. Subcommands are imported when they are run, so that `fastdiff --help` is quick."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

__all__ = ["CliError", "main"]

_COMMANDS = {  # name: (module, one line for --help)
    "calibrate": ("fastdiff.cli.calibrate", "Choose epsilon scaling's lambda by measurement."),
    "cascade": ("fastdiff.cli.cascade", "Draw small images, and larger ones of them, by several networks."),
    "convert": ("fastdiff.cli.convert", "Write a published checkpoint as a model file, nothing in it executed."),
    "ema": ("fastdiff.cli.ema", "Reconstruct an average of a run's weights from its snapshots."),
    "evaluate": ("fastdiff.cli.evaluate", "Frechet distance, precision and recall of samples."),
    "exposure": ("fastdiff.cli.exposure", "Measure the drift between training and sampling."),
    "models": ("fastdiff.cli.models", "List architectures and published checkpoints."),
    "nll": ("fastdiff.cli.nll", "Likelihood of data under a model, in bits per dimension."),
    "presets": ("fastdiff.cli.presets", "List published settings with their sources and FID."),
    "sample": ("fastdiff.cli.sample", "Draw samples and save them as a grid and an array."),
    "solvers": ("fastdiff.cli.solvers", "List the solvers with their orders and sources."),
    "sweep": ("fastdiff.cli.sweep", "Compare samplers over a grid of settings, resumably."),
    "train": ("fastdiff.cli.train", "Train a diffusion model from a configuration file."),
    "train-discriminator": ("fastdiff.cli.train_discriminator", "Train a discriminator for discriminator guidance."),
}


class CliError(click.ClickException):
    """A user's mistake found before any work: one line on stderr, exit code 2."""

    exit_code = 2


class _Group(click.Group):
    """Loads a subcommand's module on demand and prints every error as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = import_module(_COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in sorted(_COMMANDS.items())])

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> None:
        """Runs a command line and exits: 0, 1 failed at work, 2 refused before any work, 130 interrupted."""
        extra["standalone_mode"] = False
        try:
            code = super().main(args, prog_name, **extra)
        except click.ClickException as error:
            click.echo(f"fastdiff: error: {' '.join(error.format_message().split())}", err=True)
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            click.echo("fastdiff: interrupted", err=True)
            sys.exit(130)
        sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fastdiff")
def main() -> None:
    """Fast, exactly reproducible diffusion sampling."""
