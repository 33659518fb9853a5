"""Model files: safetensors weights with a JSON description, written atomically and checked when read.

Nothing is unpickled. The description holds the architecture, its constructor arguments, how the output is to
be read (`prediction`, `sigma_data`), the training's provenance and a digest of the weights, so that a damaged
file is refused instead of drawing noise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor, nn

from ..files import atomic_path
from .discriminator import EXTERNAL
from .network import DEPTHS, build

__all__ = [
    "ModelFileError",
    "check_depth",
    "check_tensors",
    "fill",
    "find",
    "is_own",
    "load",
    "load_tensors",
    "read_metadata",
    "save",
    "save_tensors",
    "weights_digest",
]

_SHIPPED = {"digits": "digits.safetensors", "digits_classifier": "digits_classifier.safetensors"}
_KEY = "fastdiff"
_ALIGNED = 64  # bytes, as PyTorch allocates
_LEVELS = ("channel_mult", "ch_mult", "mults", "block_out_channels")


class ModelFileError(ValueError):
    """A model file that is missing, damaged or not one of fastdiff's; the message names the file."""


def save(path: str | Path, model: nn.Module, metadata: dict[str, Any]) -> None:
    """Writes `model` to `path`: appears whole or not at all.

    Args:
        path: file to write, by habit `*.safetensors`; its folder exists.
        model: a network of this package; its parameters and buffers are stored in their own dtypes.
        metadata: JSON-serialisable description: `prediction` ("edm") and `sigma_data` say how a denoiser's output
            is to be read, `training` is the provenance; the architecture and its configuration are added here.

    Raises:
        OSError: the file cannot be written.
    """
    description = {**metadata, "architecture": type(model).__name__, "config": model.config}
    save_tensors(path, model.state_dict(), description)


def load(path: str | Path, device: str | torch.device = "cpu", extractor: nn.Module | None = None) -> Any:
    """Reads a model file, or a shipped model by its name.

    Args:
        path: a file written by `save`, or `"digits"` (the class-conditional 16x16 digits of this package) or
            `"digits_classifier"` (their classifier).
        device: where the parameters go.
        extractor: of a `Discriminator` whose file lacks it: the module it was trained on.

    Returns:
        The network in evaluation mode, gradients off, with the file's description as `.metadata`.

    Raises:
        ModelFileError: no such file, truncated or damaged, an unknown architecture, missing, unexpected or
            misshapen tensors, non-finite weights; an extractor is missing or has no place.
    """
    file = find(path)
    tensors, metadata = load_tensors(file)
    name, config = metadata.get("architecture"), metadata.get("config")
    if not isinstance(name, str) or not isinstance(config, dict):
        raise ModelFileError(f"{file}: unknown architecture {name!r}, or no configuration")
    external = config.get("extractor") == EXTERNAL
    if external != (extractor is not None):
        wanted = "given: the file does not hold it" if external else "left out: there is no place for one"
        raise ModelFileError(f"{file}: extractor must be {wanted}")
    check_depth(file, config, len(tensors))
    try:
        model: Any = build(name, config, "meta", **({"extractor": extractor} if extractor is not None else {}))
    except ValueError as error:
        raise ModelFileError(f"{file}: {error}") from None
    fill(model, tensors, file, strict=not external)
    model.metadata = metadata
    return model.to(device).eval().requires_grad_(False)


def fill(model: nn.Module, tensors: dict[str, Tensor], file: str | Path, strict: bool = True) -> None:
    """Lays `tensors` into a network that was built on the device "meta"; the dictionary is taken over.

    Args:
        strict: no tensor of the network may be left out; else those that its `state_dict` does not name.

    Raises:
        ModelFileError: see `check_tensors`; a module refuses one; or the network has tensors that no file can hold.
    """
    check_tensors(file, tensors, model.state_dict())
    for name, tensor in tensors.items():
        if tensor.data_ptr() % _ALIGNED:  # in a mapped file: sums of it would be rounded otherwise than in memory
            tensors[name] = tensor.clone()
    try:
        model.load_state_dict(tensors, assign=True, strict=strict)  # names and shapes have been checked
    except RuntimeError as error:
        raise ModelFileError(f"{file}: {' '.join(str(error).split())}") from None
    if left := [n for n, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]:
        raise ModelFileError(f"{file}: a {type(model).__name__} has tensors that no file holds: {', '.join(left)}")


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The description inside a model file (or a shipped model's), without reading its weights.

    Raises:
        ModelFileError: no such file, or not a file of fastdiff's.
    """
    file = find(path)
    try:
        with safe_open(file, framework="pt") as handle:
            return _description(file, handle.metadata())
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{file}: not a readable safetensors file ({error})") from None


def save_tensors(path: str | Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Writes named tensors and a JSON `description`, with a digest of the tensors, atomically."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({**description, "format": 1, "digest": weights_digest(stored)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(serialise(stored, metadata={_KEY: text}))


def is_own(header: Mapping[str, str] | None) -> bool:
    """Whether a safetensors header is of a file written by `save_tensors`."""
    return _KEY in (header or {})


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save_tensors` wrote: (tensors, description).

    Raises:
        ModelFileError: the file is missing, truncated, altered, or not one of fastdiff's.
    """
    file = Path(path)
    if not file.is_file():
        raise ModelFileError(f"{file}: no such file")
    try:
        with safe_open(file, framework="pt") as handle:
            description = _description(file, handle.metadata())
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{file}: not a readable safetensors file ({error})") from None
    if weights_digest(tensors) != description.get("digest"):
        raise ModelFileError(f"{file}: the weights are damaged (their digest differs from the stored one)")
    return tensors, description


def check_depth(file: str | Path, config: Mapping[str, Any], tensors: int) -> None:
    """Refuses a configuration with more blocks than the file has tensors, before time is spent on building them.

    Raises:
        ModelFileError: naming the file.
    """
    for value in config.values():
        if isinstance(value, Mapping):
            check_depth(file, value, tensors)
    depth = max((config[name] for name in DEPTHS if isinstance(config.get(name), int)), default=1)
    levels = max((len(config[name]) for name in _LEVELS if isinstance(config.get(name), (list, tuple))), default=1)
    if depth * levels > max(tensors, 1):
        wanted = f"{levels} levels of {depth} blocks" if levels > 1 else f"{depth} blocks"
        raise ModelFileError(f"{file}: the configuration asks for {wanted}, and the file has {tensors} tensors")


def check_tensors(file: str | Path, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Refuses `tensors` unless they have exactly the names and shapes of `expected` and are finite.

    Raises:
        ModelFileError: naming the file and all names that are missing or unexpected, or the first tensor that is wrong.
    """
    differ = {"missing": expected.keys() - tensors.keys(), "unexpected": tensors.keys() - expected.keys()}
    if told := [f"{what} {', '.join(sorted(names))}" for what, names in differ.items() if names]:
        raise ModelFileError(f"{file}: the tensors are not those of this network: {'; '.join(told)}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            wanted, got = list(expected[name].shape), list(tensor.shape)
            raise ModelFileError(f"{file}: tensor {name!r} must have shape {wanted}, got {got}")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ModelFileError(f"{file}: tensor {name!r} holds NaN or infinite values")


def find(path: str | Path) -> Path:
    """The file of a shipped model's name, or `path` itself.

    Raises:
        ModelFileError: there is neither.
    """
    if str(path) in _SHIPPED:
        return Path(str(resources.files("fastdiff.assets").joinpath(_SHIPPED[str(path)])))
    file = Path(path)
    try:
        found = file.is_file()
    except OSError as error:  # a name too long, a folder that may not be entered
        raise ModelFileError(f"{str(file)[:200]}: {error.strerror}") from None
    if not found:
        raise ModelFileError(f"{file}: no such file, and not a shipped model ({', '.join(_SHIPPED)})")
    return file


def _description(file: Path, metadata: dict[str, str] | None) -> dict[str, Any]:
    """The JSON description of a safetensors header."""
    try:
        description = json.loads((metadata or {})[_KEY])
    except (KeyError, ValueError, RecursionError):  # no JSON, or of too many digits or brackets
        description = None
    if not isinstance(description, dict):
        raise ModelFileError(f"{file}: a safetensors file, but not one written by fastdiff")
    return description


def weights_digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in name order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
