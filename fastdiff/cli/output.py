"""What commands leave behind: a folder checked before the work, files that appear whole, pictures."""

from __future__ import annotations

import io
import json
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from ..files import atomic_path
from ..pictures import grid, png_bytes
from . import CliError

__all__ = ["OutputFolder", "check_output_file", "grid", "npz_bytes", "png_bytes"]


class OutputFolder:
    """A folder for results, as a context manager.

    Entering creates the folder and tries whether files can be written to it. If the body fails, folders that
    were created are removed again; files are only ever written whole, by `write`.

    Args:
        path: the folder.
        files: names that `write` will be given; a folder in the place of one is refused on entering.

    Raises:
        CliError: on entering, when the folder cannot be made or written to; the message names it.
    """

    def __init__(self, path: str | Path, files: tuple[str, ...]) -> None:
        self.path = Path(path)
        self.files = files
        self._made: list[Path] = []

    def __enter__(self) -> OutputFolder:
        try:
            missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            for folder in reversed(missing):
                folder.mkdir()
                self._made.append(folder)
            with tempfile.TemporaryFile(dir=self.path) as probe:
                probe.write(b"x")
            for name in self.files:
                if (self.path / name).is_dir():
                    raise IsADirectoryError(None, f"{name} is a folder")
        except OSError as error:
            self._remove_made()
            raise CliError(f"--outdir: cannot write to {self.path}: {error.strerror or error}") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._remove_made()

    def write(self, contents: dict[str, bytes]) -> None:
        """Writes the files: all to temporary names first, then moved into place.

        Raises:
            click.ClickException: the disk is full, or the folder has gone; nothing half-written is left.
        """
        try:
            with ExitStack() as moves:
                for name, content in contents.items():
                    moves.enter_context(atomic_path(self.path / name)).write_bytes(content)
        except OSError as error:
            raise click.ClickException(f"cannot write to {self.path}: {error.strerror or error}") from None

    def _remove_made(self) -> None:
        """Removes the folders that this object created, unless someone else has put something there."""
        for folder in reversed(self._made):
            try:
                os.rmdir(folder)
            except OSError:
                return


def check_output_file(path: str) -> None:
    """Refuses, before the work, an `--out` that no file can be written to.

    Raises:
        CliError: its folder is missing or cannot be written to, or a folder has its name.
    """
    file = Path(path)
    if not file.absolute().parent.is_dir() or file.is_dir():
        raise CliError(f"--out must be a file in a folder that exists, got {path}")
    try:
        with tempfile.TemporaryFile(dir=file.absolute().parent) as probe:
            probe.write(b"x")
    except OSError as error:
        raise CliError(f"--out: cannot write to {path}: {error.strerror or error}") from None


def npz_bytes(arrays: dict[str, NDArray[Any]], provenance: dict[str, Any]) -> bytes:
    """Arrays and, as the string `config`, the JSON of `provenance`, as an .npz file that needs no pickle."""
    buffer = io.BytesIO()
    np.savez(buffer, config=np.array(json.dumps(provenance)), **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
