"""`fastdiff.load` and `convert`: a checkpoint of any known project in, a network or a file of our own out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..continuous import process_of
from ..files import atomic_path
from ..models import ModelFileError, io
from ..models.network import build
from ..prediction import get_prediction
from .checkpoint import Checkpoint, open_checkpoint
from .configure import Settled, settle

__all__ = ["Converted", "convert", "load"]

_STORED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Converted:
    """What `convert` has written.

    Attributes:
        target: the file; description: the JSON file beside it.
        network: what the file holds.
        checkpoint: what was read, without its tensors.
        settled: the description, and where each part of it is from.
        digest: of the weights, as the file has it.
    """

    target: Path
    description: Path
    network: Any
    checkpoint: Checkpoint
    settled: Settled
    digest: str


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    config: Mapping[str, Any] | str | Path | None = None,
    like: str | None = None,
    dtype: torch.dtype | None = torch.float32,
    weights: str = "ema",
    head: str | Path | None = None,
    **overrides: Any,
) -> Any:
    """The network of a checkpoint: EDM's pickles, state dicts of guided-diffusion and DG, score_sde's checkpoints,
    diffusers folders, safetensors, our own files. Nothing in the file is executed or imported.

    Args:
        path: a file or a folder, a shipped model's name, or a Hugging Face id ("owner/name").
        device: where the parameters go.
        config: what a file of tensors does not say: a mapping, or a JSON file (see `configure.given_config`).
        like: the name of a published checkpoint that has the same configuration (`fastdiff models`).
        dtype: of the parameters: weights stored in half become float32, which is exact; None keeps what is stored.
        weights: "ema", or "model" where the file holds both.
        head: of a discriminator in two files: `path` is its extractor.
        overrides: single values over all others, by name: constructor arguments ("head.num_heads" for one inside),
            "architecture", or how the output is read ("prediction", "process", "variance").

    Returns:
        The network in evaluation mode, gradients off.

    Raises:
        ModelFileError: no such file; it is damaged, holds code or more than one thing; its tensors are not those of the
            network (all names that are missing or unexpected are listed), or not finite; or what must be known is
            neither in the file nor given.
        ValueError: what was given cannot be used.
    """
    checkpoint, settled = _opened(path, config, like, weights, head, overrides)
    return _network(checkpoint, settled, dtype, overrides).to(device)


def convert(
    source: str | Path,
    target: str | Path,
    *,
    config: Mapping[str, Any] | str | Path | None = None,
    like: str | None = None,
    dtype: torch.dtype | None = torch.float32,
    weights: str = "ema",
    head: str | Path | None = None,
    **overrides: Any,
) -> Converted:
    """Writes a checkpoint as a file of our own, and what it says as JSON beside it, for people.

    Nothing is written if anything is refused. The JSON file is `target` with the suffix .json; it is never read.

    Args:
        source, config, like, dtype, weights, head, overrides: see `load`.
        target: file to write, by habit `*.safetensors`; its folder exists.

    Raises:
        ModelFileError, ValueError: see `load`; `target` would replace what is no file of ours.
        OSError: the file cannot be written.
    """
    file = Path(target)
    if not file.name:
        raise ValueError(f"target must be a file, got {str(target)!r}")
    description = file.with_suffix(".json")
    inputs = [Path(each) for each in (source, head, config) if isinstance(each, (str, Path))]
    _check_target(file, description, inputs)
    checkpoint, settled = _opened(source, config, like, weights, head, overrides)
    network: Any = _network(checkpoint, settled, dtype, overrides)
    checkpoint.tensors = {}
    with atomic_path(description) as beside:
        io.save(file, network, network.metadata)
        written = io.read_metadata(file)
        beside.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    return Converted(file, description, network, checkpoint, settled, written["digest"])


def _opened(
    path: str | Path,
    config: Mapping[str, Any] | str | Path | None,
    like: str | None,
    weights: str,
    head: str | Path | None,
    overrides: Mapping[str, Any],
) -> tuple[Checkpoint, Settled]:
    checkpoint = open_checkpoint(path, weights=weights)
    if head is not None:
        checkpoint = _pair(checkpoint, open_checkpoint(head, weights=weights))
    return checkpoint, settle(checkpoint, config, like, overrides)


def _pair(extractor: Checkpoint, head: Checkpoint) -> Checkpoint:
    """A feature extractor and a discriminator of its features as one network's checkpoint."""
    parts = {"extractor": extractor, "head": head}
    tensors = {f"{part}.{name}": t for part, each in parts.items() for name, t in each.tensors.items()}
    notes = [f"{part}: {note}" for part, each in parts.items() for note in (Path(each.source).name, *each.notes)]
    return Checkpoint(extractor.source, extractor.format, tensors, "DGDiscriminator", notes=notes)


def _network(
    checkpoint: Checkpoint, settled: Settled, dtype: torch.dtype | None, overrides: Mapping[str, Any]
) -> nn.Module:
    """Built, checked and filled; on the CPU.

    Raises:
        ModelFileError: the configuration makes no network, or the tensors are not its own.
        ValueError: an override of how its output is read cannot be used.
    """
    if dtype not in (None, *_STORED):
        raise ValueError(f"dtype must be a floating-point type of 16 to 64 bits, or None, got {dtype}")
    source = checkpoint.source
    io.check_depth(source, settled.config, len(checkpoint.tensors))
    try:
        model: Any = build(settled.architecture, settled.config, "meta")
    except ValueError as error:
        raise ModelFileError(f"{source}: {error}") from None
    _check_reading(model, settled, {name.split(".")[0] for name in overrides})
    expected: dict[str, Tensor] = model.state_dict()
    _unshare(checkpoint)
    tensors = {n: _as_built(source, n, t, expected.get(n), dtype) for n, t in checkpoint.tensors.items()}
    io.fill(model, tensors, source)
    if dtype not in (None, torch.float32):
        model.to(dtype)
        io.check_tensors(source, model.state_dict(), expected)  # what float16 cannot hold
    model.metadata = dict(settled.metadata)
    if checkpoint.format != "fastdiff":
        name = Path(source).name if Path(source).exists() else source
        imported = {"file": name, "format": checkpoint.format, "notes": checkpoint.notes}
        model.metadata["imported"] = imported
    return model.eval().requires_grad_(False)


def _check_reading(model: Any, settled: Settled, given: set[str]) -> None:
    """Refuses what was given of how a network's output is read, where it has no effect or no meaning."""
    given &= {"prediction", "process", "variance", "scheduler"}
    if hasattr(model, "reading") and given:
        kind = type(model).__name__
        raise ValueError(f"{', '.join(sorted(given))} must be left out: of a {kind} its arguments say how it is read")
    said = settled.metadata
    if "prediction" in given and said["prediction"] != "edm":
        get_prediction(said["prediction"])
    if "process" in given:
        process_of(said["process"])


def _as_built(source: str, name: str, tensor: Tensor, expected: Tensor | None, dtype: torch.dtype | None) -> Tensor:
    """A stored tensor in the type that the network has it in."""
    if expected is None:
        return tensor
    if tensor.is_floating_point() != expected.is_floating_point() or tensor.is_complex():
        raise ModelFileError(f"{source}: tensor {name!r} must be of type {expected.dtype}, got {tensor.dtype}")
    if tensor.is_floating_point() and tensor.dtype not in _STORED:
        raise ModelFileError(f"{source}: tensor {name!r} must be of 16 to 64 bits, got {tensor.dtype}")
    return tensor if dtype is None else tensor.to(expected.dtype)


def _unshare(checkpoint: Checkpoint) -> None:
    """Gives tensors that are one under several names memory of their own, unless that is out of all proportion: a
    small file could ask for any amount of it."""
    names: dict[int, str] = {}
    shared = [name for name, tensor in checkpoint.tensors.items() if names.setdefault(id(tensor), name) != name]
    more, total = (sum(checkpoint.tensors[n].nbytes for n in some) for some in (shared, checkpoint.tensors))
    if more > total - more:
        raise ModelFileError(f"{checkpoint.source}: most of its tensors are the same numbers under several names")
    for name in shared:
        checkpoint.tensors[name] = checkpoint.tensors[name].clone()


def _check_target(file: Path, description: Path, inputs: list[Path]) -> None:
    """Refuses a target that would replace what is being read, or what is no file of ours."""
    if not file.parent.is_dir():
        raise ValueError(f"target must be in a folder that exists, got {file}")
    if file == description:
        raise ValueError(f"target must not end in .json: the description beside it does, got {file}")
    for path in (file, description):
        if path.is_dir():
            raise ValueError(f"target must be a file, and {path} is a folder")
        if path.exists() and not path.is_file():
            raise ValueError(f"target must be a file, and {path} is a device or a pipe")
        if any(each.exists() and path.exists() and path.samefile(each) for each in inputs):
            raise ValueError(f"target would replace {path}, which is being read")
    if file.exists() and file.stat().st_size:
        try:
            io.read_metadata(file)
        except ModelFileError:
            raise ValueError(f"target would replace {file}, which is not a model file of fastdiff's") from None
    if description.exists():
        try:
            ours = "digest" in json.loads(description.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, RecursionError):
            ours = False
        if not ours:
            raise ValueError(f"target would replace {description}, which is not a description of a model file")
