"""A checkpoint as it was read: its tensors, and what the file says about the network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..models import ModelFileError, io
from ..models.network import ARCHITECTURES

if TYPE_CHECKING:
    from .tensors import TensorRef

__all__ = ["Checkpoint", "open_checkpoint"]

_WRAPPER = "module."  # of DataParallel
_INSIDE = ("state_dict", "model")  # where a dictionary of several things keeps the tensors


@dataclass
class Checkpoint:
    """What a file holds, whatever its format.

    Attributes:
        source: the file, as the user named it.
        format: "edm-pickle", "torch", "torch-legacy", "safetensors", "score-sde", "diffusers" or "fastdiff".
        tensors: the network's state dict, in the dtypes stored; checked by nothing but the reader yet.
        architecture: a name of `ARCHITECTURES`; None if the file does not say.
        config: its constructor's arguments; None if the file does not say.
        metadata: what the file says beside: how the output is read (see `fastdiff.opening`).
        notes: what was left behind, what was chosen ("weights: ema", "augment_pipe is not used").
    """

    source: str
    format: str
    tensors: dict[str, Tensor]
    architecture: str | None = None
    config: dict[str, Any] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def open_checkpoint(path: str | Path, *, weights: str = "ema") -> Checkpoint:
    """Reads a checkpoint. What it is, its content says and not its name; nothing in it is executed or imported.

    Args:
        path: a file, a folder of diffusers, a shipped model's name, or a Hugging Face id ("owner/name").
        weights: "ema" or "model", of a file that holds both.

    Raises:
        ModelFileError: there is no such file; it is damaged, too large to be true, of no known kind, or holds code.
        ValueError: `weights` is neither.
    """
    if weights not in ("ema", "model"):
        raise ValueError(f"weights must be 'ema' or 'model', got {weights!r}")
    from . import folders

    try:
        Path(path).exists()
    except OSError as error:  # a name too long, a folder that may not be entered
        raise ModelFileError(f"{str(path)[:200]}: {error.strerror}") from None
    if folders.is_id(path):
        local = folders.fetch(str(path))
        checkpoint = open_checkpoint(local, weights=weights)
        checkpoint.source = str(path)
        if commit := re.search(r"snapshots/([0-9a-f]{40})", local.as_posix()):
            checkpoint.notes.append(f"revision: {commit[1]}")
        return checkpoint
    if Path(path).is_dir():
        if not folders.is_folder(path):
            raise ModelFileError(f"{path}: a folder, and not one of diffusers: no model_index.json, no config.json")
        return folders.open_folder(path)
    return _open_file(io.find(path), weights)


def _open_file(file: Path, weights: str) -> Checkpoint:
    from . import containers, edm

    record, source = containers.open_record(file), str(file)
    if record.format == "edm-pickle":
        return edm.checkpoint(record, weights=weights)
    if record.format == "safetensors" and io.is_own(record.metadata):
        tensors, description = io.load_tensors(file)
        architecture, config = description.pop("architecture", None), description.pop("config", None)
        if not isinstance(architecture, str) or architecture not in ARCHITECTURES or not isinstance(config, dict):
            raise ModelFileError(f"{source}: unknown architecture {architecture!r}, or no configuration"[:500])
        return Checkpoint(source, "fastdiff", tensors, architecture, config, description)
    from . import score_sde

    if isinstance(record.content, Mapping) and score_sde.is_score_sde(record.content):
        try:
            held, notes = score_sde.unpacked(record.content, weights)
        except ValueError as error:
            raise ModelFileError(f"{source}: {error}") from None
        tensors = record.load(held)
        config, reading = score_sde.shown(tensors)
        if reading:
            process = reading["process"].get("sde", reading["process"]["name"])
            notes.append(f"a published {process} network, unless a configuration says otherwise")
        return Checkpoint(source, "score-sde", tensors, None, config, reading, notes)
    stored, notes = _state_dict(record.content, source)
    return Checkpoint(source, record.format, record.load(stored), notes=notes)


def _state_dict(content: Any, source: str) -> tuple[Mapping[str, TensorRef], list[str]]:
    """The tensors of a file without further order, and what there is to say about it."""
    notes = []
    if isinstance(content, Mapping):
        for name in _INSIDE:
            if _is_of_tensors(inner := content.get(name)):
                others = [str(key) for key in content if key != name]
                notes.append(f"tensors of the entry {name!r}; not used: {', '.join(others) or 'nothing'}")
                content = inner
                break
    if not _is_of_tensors(content):
        what = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        raise ModelFileError(f"{source}: expected a dictionary of tensors by name, got one of {what}"[:500])
    if all(name.startswith(_WRAPPER) for name in content):
        content = {name.removeprefix(_WRAPPER): tensor for name, tensor in content.items()}
        notes.append(f"the prefix {_WRAPPER!r} of all names was taken off")
    return content, notes


def _is_of_tensors(content: Any) -> bool:
    """Whether it is a dictionary of tensors by name, and of nothing else."""
    if not isinstance(content, Mapping) or not content:
        return False
    return all(isinstance(name, str) and hasattr(value, "load") for name, value in content.items())
