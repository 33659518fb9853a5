"""What the commands that train have in common: their errors as one line each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from ..config import ConfigError
from ..models import ModelFileError
from . import CliError

__all__ = ["opening", "running"]


@contextmanager
def opening(outdir: str) -> Iterator[None]:
    """Around a trainer's configuration and construction: what cannot be used is refused before any work."""
    try:
        yield
    except (ConfigError, ModelFileError, ModuleNotFoundError, ValueError) as error:
        raise CliError(str(error)) from None
    except FileExistsError as error:
        raise CliError(f"{error} (--resume or --outdir)") from None
    except OSError as error:
        raise CliError(f"--outdir: cannot write to {outdir} ({error.strerror or error})") from None


@contextmanager
def running(outdir: str, *failures: type[Exception]) -> Iterator[None]:
    """Around a training run: `failures` of the training, and a folder that can no longer be written."""
    try:
        yield
    except failures as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"cannot write to {outdir}: {error.strerror or error}") from None
