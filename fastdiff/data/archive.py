"""Zip archives of images, as EDM's dataset tool writes them: PNG or `.npy` files and a `dataset.json`."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from .folder import LABEL_FILE, is_image, labels_of
from .images import SUFFIXES, BadSample, decode
from .samples import DataError

__all__ = ["Archive", "open_archive"]

_MOST_BYTES = 2**30  # of a member: more is no image, but would fill the memory before its decoder can say so


class Archive:
    """The images of a zip file, ordered by name. Every process opens the file for itself."""

    def __init__(
        self, path: Path, names: Sequence[str], labels: Sequence[int] | None, fit: tuple[int | None, int | None]
    ):
        self.path, self.names, self.labels, self.fit = path, names, labels, fit
        self._opened: tuple[int, zipfile.ZipFile] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def read(self, index: int) -> tuple[Tensor, int]:
        name = self.names[index]
        try:
            size = self._file().getinfo(name).file_size
            if size > _MOST_BYTES:
                raise BadSample(f"has {size} bytes, more than {_MOST_BYTES}")
            data = self._file().read(name)
        except BadSample:
            raise
        except Exception as error:  # zipfile raises BadZipFile, OSError, zlib.error, RuntimeError, NotImplementedError
            raise BadSample(f"cannot be read ({error})") from None
        pixels = decode(io.BytesIO(data), PurePosixPath(name).suffix.lower(), *self.fit)
        return pixels, -1 if self.labels is None else self.labels[index]

    def _file(self) -> zipfile.ZipFile:
        if self._opened is None or self._opened[0] != os.getpid():  # a forked worker shares the parent's position
            self._opened = os.getpid(), zipfile.ZipFile(self.path)
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


def open_archive(path: Path, fit: tuple[int | None, int | None]) -> tuple[Archive, int]:
    """The images of a zip file, and the number of classes.

    Raises:
        DataError: not a readable zip, no images, or labels that cannot be used.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            names = sorted(filter(is_image, members))
            text = archive.read(LABEL_FILE) if LABEL_FILE in members else None
    except Exception as error:  # as in Archive.read
        raise DataError(f"{path}: not a readable zip file ({error})") from None
    if not names:
        raise DataError(f"{path}: no images ({' '.join(sorted(SUFFIXES))}) among its {len(members)} files")
    elsewhere = [member for member in members if member.endswith(f"/{LABEL_FILE}")]
    if text is None and elsewhere:
        raise DataError(f"{path}: {LABEL_FILE} must be at the top of the archive, got {elsewhere[0]}")
    labels, classes = labels_of(str(path), names, text)
    return Archive(path, names, labels, fit), classes
