"""Which network a checkpoint is of: what its file says, what its tensors show, what the user gave, and in which order.

The user's single values go over the user's configuration, that over a published one (`like`), that over the file's.
What none of them says is inferred from names and shapes of the tensors.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..models import ModelFileError
from ..models.network import ARCHITECTURES, build
from .checkpoint import Checkpoint

__all__ = ["READING", "Settled", "given_config", "settle"]

READING = ("prediction", "process", "variance", "sigma_data", "range", "scheduler")  # how the output is read
_SECTIONS = ("model", "data", "training")  # of score_sde's configurations
_PARTS = ("extractor", "head")  # of a DGDiscriminator
_DG = ("adm_classifier", "discriminator")  # what its kwargs.json calls them


@dataclass
class Settled:
    """A network's description, and where each part of it is from.

    Attributes:
        architecture: a name of `ARCHITECTURES`; config: its constructor's arguments.
        metadata: how the output is read, and what else the file says.
        origins: for each argument "file", "given", "like NAME", "inferred" or "assumed"; those not named have the
            constructor's default.
        reasons: for the inferred and the assumed: from what.
    """

    architecture: str
    config: dict[str, Any]
    metadata: dict[str, Any]
    origins: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """What one place says: an architecture (None: it does not say), arguments, how the output is read."""

    architecture: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


def given_config(config: Mapping[str, Any] | str | Path | None) -> list[Candidate]:
    """What a configuration says, in any of the forms that are about; several where it is of several networks.

    Args:
        config: a mapping, or the path of a JSON file that holds one: `{"architecture", "config", ...}` as beside our
            own files; `{"cls", "kwargs"}`; `{"precond": {"cls", "kwargs"}}` (EDM); `{"adm_classifier": kwargs,
            "discriminator": kwargs}` (DG); score_sde's sections `{"model", "data", "training"}`; or plain arguments.

    Raises:
        ValueError: it is none of these.
    """
    if config is None:
        return []
    if isinstance(config, (str, Path)):
        config = _json_file(Path(config))
    if not isinstance(config, Mapping):
        raise ValueError(f"config must be a mapping of names to values, got {type(config).__name__}")
    if "precond" in config and isinstance(config["precond"], Mapping):
        config = config["precond"]
    if set(_DG) <= config.keys():
        parts = [_candidate("DGEncoderUNetModel", config[name], name) for name in _DG]
        whole = {part: each.config for part, each in zip(_PARTS, parts, strict=True)}
        return [*parts, Candidate("DGDiscriminator", whole)]
    if set(_SECTIONS) <= config.keys():
        from . import score_sde

        return [Candidate("NCSNpp", *score_sde.described(config))]
    if "kwargs" in config:
        return [_candidate(config.get("cls"), config["kwargs"], "kwargs")]
    if isinstance(config.get("config"), Mapping):
        metadata = {name: config[name] for name in READING if name in config}
        return [_candidate(config.get("architecture"), config["config"], "config", metadata)]
    arguments = {name: value for name, value in config.items() if name != "architecture"}
    return [_candidate(config.get("architecture"), arguments, "config")]


def settle(
    checkpoint: Checkpoint,
    config: Mapping[str, Any] | str | Path | None = None,
    like: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settled:
    """The description of a checkpoint's network.

    Args:
        checkpoint: as read; config: see `given_config`; like: a published checkpoint's name.
        overrides: single arguments by name ("num_heads", with dots inside nested ones: "head.num_heads"),
            "architecture", or how the output is read (`READING`).

    Raises:
        ModelFileError: neither the file nor the user says what must be known; the message lists what.
        ValueError: what was given cannot be used.
    """
    places = [("file", Candidate(checkpoint.architecture, checkpoint.config or {}, checkpoint.metadata))]
    if like is not None:
        places.append((f"like {like}", _published(like)))
    if candidates := given_config(config):
        places.append(("given", _fitting(checkpoint, candidates)))
    single = dict(overrides or {})
    said = [place.architecture for _, place in places if place.architecture is not None]
    architecture = single.pop("architecture", said[-1] if said else None)
    if architecture is not None and architecture not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {', '.join(sorted(ARCHITECTURES))}, got {architecture!r}")
    settled = Settled("", {}, {})
    for origin, place in places:
        if place.architecture in (None, architecture):  # the arguments of another class are not this one's
            settled.config.update(place.config)
            settled.origins.update(dict.fromkeys(place.config, origin))
        settled.metadata.update(place.metadata)
    for name, value in single.items():
        _override(settled, architecture, name, value)
    if architecture is not None and _binds(architecture, settled.config):
        settled.architecture = architecture
        return settled
    return _inferred(checkpoint, architecture, settled)


def _inferred(checkpoint: Checkpoint, architecture: str | None, settled: Settled) -> Settled:
    """Completed by what the tensors show."""
    from .infer import infer

    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    given = {**settled.config, **({} if architecture is None else {"architecture": architecture})}
    try:
        found = infer(shapes, given)
    except ValueError as error:
        raise ModelFileError(f"{checkpoint.source}: {error}") from None
    if found.missing:
        raise ModelFileError(
            f"{checkpoint.source}: the tensors of this {found.architecture} do not show {', '.join(found.missing)}; "
            "give a value of each, or a configuration, or the name of a published checkpoint like it"
        )
    assumed = dict.fromkeys(found.assumed, "assumed")
    return Settled(
        found.architecture,
        {name: value for name, value in found.config.items() if name != "architecture"},
        settled.metadata,
        {**dict.fromkeys((*found.config, *found.found), "inferred"), **assumed, **settled.origins},
        {**found.found, **found.assumed},
    )


def _override(settled: Settled, architecture: str | None, name: str, value: Any) -> None:
    """Lays one value over the arguments, or over how the output is read."""
    first, *inner = name.split(".")
    known = inspect.signature(ARCHITECTURES[architecture]).parameters if architecture else {}
    reading = first in READING and first not in known
    if reading and first == "process" and isinstance(value, str) and not inner:
        value = {"name": value}
    if reading:
        settled.metadata = _laid(settled.metadata, [first, *inner], value)
    else:
        settled.config = _laid(settled.config, [first, *inner], value)
        settled.origins[name] = "given"


def _laid(values: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """A copy of nested values with one of them changed."""
    first, *rest = path
    inner = values.get(first)
    changed = _laid(inner if isinstance(inner, Mapping) else {}, rest, value) if rest else value
    return {**values, first: changed}


def _fitting(checkpoint: Checkpoint, candidates: list[Candidate]) -> Candidate:
    """Of several networks' configurations, the one whose tensors are the checkpoint's most nearly."""
    if len(candidates) == 1:
        return candidates[0]

    def alike(candidate: Candidate) -> int:
        try:
            expected = build(str(candidate.architecture), candidate.config, "meta").state_dict()
        except ValueError:
            return -1
        held = checkpoint.tensors
        return sum(name in held and held[name].shape == tensor.shape for name, tensor in expected.items())

    return max(candidates, key=alike)


def _binds(architecture: str, config: Mapping[str, Any]) -> bool:
    """Whether every argument that the constructor must have is there; unknown ones are its own to refuse."""
    parameters = inspect.signature(ARCHITECTURES[architecture]).parameters.values()
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    inside = [config[part] for part in _PARTS if architecture == "DGDiscriminator" and part in config]
    whole = all(_binds("DGEncoderUNetModel", part) for part in inside if isinstance(part, Mapping))
    needed = [p.name for p in parameters if p.kind in plain and p.default is inspect.Parameter.empty]
    return whole and all(name in config for name in needed)


def _candidate(architecture: Any, arguments: Any, name: str, metadata: Mapping[str, Any] | None = None) -> Candidate:
    if not isinstance(arguments, Mapping):
        raise ValueError(f"config: {name} must be a mapping of names to values, got {type(arguments).__name__}")
    if architecture is not None and not isinstance(architecture, str):
        raise ValueError(f"config: the architecture must be a name, got {architecture!r}")
    return Candidate(architecture, {str(n): v for n, v in arguments.items()}, dict(metadata or {}))


def _published(name: str) -> Candidate:
    """The description of a published checkpoint."""
    from ..models import published

    row = published.get(name)
    return Candidate(row.architecture, dict(row.config), dict(row.reading))


def _json_file(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"config: cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"config: {path} is not a JSON file ({error})") from None
