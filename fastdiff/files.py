"""Writing files so that they appear whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_path", "remove_temporaries"]


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`; moves it to `path` on success, removes it on any error.

    Raises:
        OSError: from the body, or when the temporary file cannot be moved.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(folder: str | os.PathLike[str]) -> None:
    """Deletes what killed processes have left of `atomic_path` in a folder that nobody else is writing to.

    Raises:
        OSError: one cannot be deleted.
    """
    for path in Path(folder).glob(".*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", path.name) and path.is_file():
            path.unlink(missing_ok=True)
