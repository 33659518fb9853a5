"""Checkpoints of a training run: a folder each, that appears whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import ConfigError
from ..models.io import ModelFileError, load_tensors, save_tensors

__all__ = ["Checkpoint", "Checkpoints"]

_TENSORS, _STATE = "state.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """What was stored.

    Attributes:
        folder: where.
        tensors: by name, on the CPU.
        state: JSON values by name; `iteration` is one of them.
    """

    folder: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]

    def check_config(self, config: Any, free: Collection[str]) -> None:
        """Refuses to go on with another configuration than the run began with.

        Args:
            config: of the resumed run, a dataclass with `as_dict` and `iterations`.
            free: top-level keys that may differ.

        Raises:
            ConfigError: naming the key and both values.
        """
        # A key that the stored configuration lacks came later: it was at its default.
        stored = {**_flat(type(config)().as_dict()), **_flat(self.state["config"])}
        for key, value in _flat(config.as_dict()).items():
            if key.partition(".")[0] not in free and stored[key] != value:
                raise ConfigError(f"{key} is {value!r}, but {self.folder} was made with {stored[key]!r}")
        if config.iterations < self.state["iteration"]:
            raise ConfigError(f"iterations is {config.iterations}, but {self.folder} has {self.state['iteration']}")


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys with dots, as users write them."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


class Checkpoints:
    """The checkpoints in a folder: `0000500/state.safetensors` and `0000500/state.json` after 500 iterations.

    One is written under a temporary name that begins with a dot, flushed to the disk and renamed; one that is no longer
    kept is renamed before it is deleted. So whatever has a number for a name is whole, whenever the run was killed.

    Args:
        folder: made by the first `save`.
        keep: how many of the newest are kept, at least 1.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def folders(self) -> list[Path]:
        """Those there are, oldest first."""
        found = [path for path in self.folder.glob("*") if path.name.isdigit() and path.is_dir()]
        return sorted(found, key=lambda path: int(path.name))

    def save(self, iteration: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Writes a checkpoint, and deletes those that are then too many, or of later iterations.

        The latter could not be read, or the run would have gone on from them.

        Raises:
            OSError: it cannot be written. What was there before still is.
        """
        target = self.folder / f"{iteration:07d}"
        temporary = self._hidden(target, "new")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            save_tensors(temporary / _TENSORS, dict(tensors), {"iteration": iteration})
            (temporary / _STATE).write_text(json.dumps({**state, "iteration": iteration}))
            for path in (temporary / _TENSORS, temporary / _STATE, temporary):
                _flush(path)
            if target.exists():  # damaged
                self._delete(target)
            os.replace(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _flush(self.folder)
        known = self.folders()
        place = known.index(target)
        for other in known[: max(0, place + 1 - self.keep)] + known[place + 1 :]:
            self._delete(other)
        return target

    def newest(self) -> Checkpoint | None:
        """The newest that can be read, or None where there is none at all.

        Raises:
            ModelFileError: there are some, and none can be read; what is wrong with the newest.
        """
        reason: ModelFileError | None = None
        for folder in reversed(self.folders()):
            try:
                return self.read(folder)
            except ModelFileError as error:
                reason = reason or error
        if reason is not None:
            raise reason
        return None

    def read(self, folder: Path) -> Checkpoint:
        """One checkpoint.

        Raises:
            ModelFileError: it is damaged, or not a checkpoint.
        """
        tensors, description = load_tensors(folder / _TENSORS)
        try:
            state = json.loads((folder / _STATE).read_bytes())
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{folder / _STATE}: cannot be read ({error})") from None
        if not isinstance(state, dict) or not isinstance(state.get("config"), dict):
            raise ModelFileError(f"{folder}: not a training checkpoint")
        if state.get("iteration") != description.get("iteration"):
            raise ModelFileError(f"{folder}: its two files are of different iterations")
        return Checkpoint(folder, tensors, state)

    def clean(self) -> None:
        """Deletes what killed runs have left half written."""
        for path in self.folder.glob(".*.tmp"):
            shutil.rmtree(path, ignore_errors=True)

    def _delete(self, folder: Path) -> None:
        hidden = self._hidden(folder, "old")
        shutil.rmtree(hidden, ignore_errors=True)
        os.replace(folder, hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def _hidden(self, folder: Path, kind: str) -> Path:
        return self.folder / f".{folder.name}.{kind}.tmp"


def _flush(path: Path) -> None:
    """Has the system write a file, or a folder's list of files, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
