"""Configurations from YAML files and `key=value` overrides, checked against dataclasses by OmegaConf."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

__all__ = ["ConfigError", "assignment", "load_config"]

_Config = TypeVar("_Config")


class ConfigError(ValueError):
    """A configuration that cannot be used; one line that names the key."""


def load_config(
    kind: type[_Config],
    file: str | Path | None,
    changes: Iterable[Mapping[str, Any]] = (),
    lists: Collection[str] = (),
    preset: Mapping[str, Any] | None = None,
) -> _Config:
    """Defaults of the dataclass `kind`, then `preset`, then the YAML `file`, then `changes`.

    Args:
        lists: keys (nested ones with dots) that may be one value in place of a list.

    Raises:
        ConfigError: the file cannot be read, a key is unknown (the message names the nearest known one), or a value has
            the wrong type.
    """
    config = OmegaConf.structured(kind)
    known: Any = OmegaConf.to_container(config)
    sources: list[tuple[str, Any]] = [] if preset is None else [("preset: ", dict(preset))]
    sources += [] if file is None else [(f"{file}: ", OmegaConf.to_container(_read_yaml(file)))]
    together: dict[str, Any] = {}  # for one merge, as each copies the whole configuration
    for change in changes:
        _check_keys("", dict(change), known)
        _update(together, change)
    for origin, source in sources:
        _check_keys(origin, source, known)
    for origin, source in [*sources, ("", together)]:
        try:
            config = OmegaConf.merge(config, _wrapped(source, lists))
        except OmegaConfBaseException as error:
            key = getattr(error, "full_key", None)
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{origin}{key}: {reason}" if key else f"{origin}{reason}") from None
    result = OmegaConf.to_object(config)
    assert isinstance(result, kind)
    return result


def _update(target: dict[str, Any], change: Mapping[str, Any]) -> None:
    """Takes `change` into `target`, mapping by mapping."""
    for key, value in change.items():
        if isinstance(value, Mapping):
            inner = target[key] = dict(target[key]) if isinstance(target.get(key), dict) else {}
            _update(inner, value)
        else:
            target[key] = value


def _wrapped(source: dict[str, Any], lists: Collection[str], prefix: str = "") -> dict[str, Any]:
    """`source` with the single values of `lists` as lists."""
    result = {}
    for key, value in source.items():
        if isinstance(value, dict):
            value = _wrapped(value, lists, f"{prefix}{key}.")
        elif f"{prefix}{key}" in lists and not isinstance(value, (list, tuple)):
            value = [value]
        result[key] = value
    return result


def assignment(override: str) -> dict[str, Any]:
    """`a.b=3` as nested mappings."""
    if "=" not in override:
        raise ConfigError(f"expected key=value, got {override!r}")
    key, _, value = override.partition("=")
    nested = OmegaConf.to_container(OmegaConf.from_dotlist([override if value else f"{key}=''"]))
    assert isinstance(nested, dict)
    return {str(key): value for key, value in nested.items()}


def _read_yaml(file: str | Path) -> DictConfig:
    """A YAML file whose top level is a mapping."""
    try:
        source = OmegaConf.load(file)
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(source, DictConfig):
        raise ConfigError(f"{file}: expected a mapping of keys to values")
    return source


def _check_keys(origin: str, given: Any, known: dict[str, Any], prefix: str = "") -> None:
    """Refuses keys of `given` that `known` lacks, level by level, naming the nearest known key."""
    if not isinstance(given, dict):
        raise ConfigError(f"{origin}{prefix.rstrip('.')} must be a mapping of keys to values, got {given!r}")
    for key, value in given.items():
        if key not in known:
            nested = {inner: f"{k}.{inner}" for k, v in known.items() if isinstance(v, dict) for inner in v}
            names = {**nested, **{k: k for k in known}}
            near = names[difflib.get_close_matches(str(key), names, n=1, cutoff=0.0)[0]]
            raise ConfigError(f"{origin}unknown key {prefix}{key}; did you mean {prefix}{near}?")
        if isinstance(known[key], dict):
            _check_keys(origin, value, known[key], f"{prefix}{key}.")
        elif isinstance(known[key], list) and any(isinstance(item, (list, dict)) for item in _listed(value)):
            raise ConfigError(f"{origin}{prefix}{key} must be a list of single values, got {value!r}")


def _listed(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]
