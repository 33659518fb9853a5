"""Typed configurations: YAML files and `key=value` overrides, checked against dataclasses by OmegaConf."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

__all__ = ["ConfigError", "ModelConfig", "TrainConfig", "load_train_config"]


class ConfigError(ValueError):
    """A configuration that cannot be used; one line that names the key."""


@dataclass
class ModelConfig:
    """The part of `fastdiff.models.UNet`'s arguments that the data set does not decide."""

    width: int = 32
    mults: list[int] = field(default_factory=lambda: [1, 2])
    blocks: int = 1
    attention: list[int] = field(default_factory=lambda: [1])
    heads: int = 2
    embedding: int = 128
    dropout: float = 0.0
    patch: int = 2


@dataclass
class TrainConfig:
    """Everything that decides a training run; the keys of `fastdiff train`."""

    data: str = "digits16"  # a name of fastdiff.data.DATASETS
    conditional: bool = True  # whether the network is given the class
    model: ModelConfig = field(default_factory=ModelConfig)

    iterations: int = 4000
    batch: int = 128
    learning_rate: float = 2e-3
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])  # Adam
    warmup: int = 100  # iterations of linear warm-up; a cosine to 0 follows
    grad_clip: float = 1.0  # largest gradient norm; 0 turns clipping off
    ema: float = 0.999  # largest decay; the decay at iteration i is min(ema, (1 + i) / (10 + i))
    label_dropout: float = 0.1  # probability of hiding a sample's class (conditional networks)

    P_mean: float = -1.2  # ln(sigma) of the training noise is normal: its mean ...
    P_std: float = 1.2  # ... and its standard deviation (EDM, table 1)
    sigma_data: float = 0.5

    seed: int = 0
    device: str = "auto"  # auto: CUDA when there is one, else the CPU
    amp: str = "auto"  # bfloat16 (autocast), none, or auto: bfloat16 with CUDA (on a CPU it is slower)
    log_every: int = 50  # iterations per row of the loss log
    evaluate_every: int = 500  # iterations between losses of the averaged network on the held-out images
    checkpoint_every: int = 500

    def as_dict(self) -> dict[str, Any]:
        """The configuration as nested plain dictionaries."""
        return asdict(self)

    def check(self) -> None:
        """Refuses values that are out of range.

        Raises:
            ConfigError: naming the key, what was wanted and what came.
        """
        for key in ("iterations", "batch", "log_every", "evaluate_every", "checkpoint_every"):
            _require(getattr(self, key) >= 1, key, "at least 1", getattr(self, key))
        for key in ("warmup", "grad_clip", "seed"):
            _require(getattr(self, key) >= 0, key, "at least 0", getattr(self, key))
        for key in ("learning_rate", "P_std", "sigma_data"):
            _require(0 < getattr(self, key) < float("inf"), key, "positive and finite", getattr(self, key))
        for key in ("ema", "label_dropout"):
            _require(0 <= getattr(self, key) < 1, key, "in [0, 1)", getattr(self, key))
        betas_ok = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _require(betas_ok, "betas", "two numbers in [0, 1)", self.betas)
        _require(self.amp in ("auto", "bfloat16", "none"), "amp", "auto, bfloat16 or none", self.amp)


def _require(ok: bool, key: str, wanted: str, got: Any) -> None:
    if not ok:
        raise ConfigError(f"{key} must be {wanted}, got {got!r}")


def load_train_config(file: str | Path | None = None, overrides: Sequence[str] = ()) -> TrainConfig:
    """Defaults, then the YAML `file`, then `key=value` overrides (nested keys with dots: `model.width=64`).

    Raises:
        ConfigError: the file cannot be read, a key is unknown (the message names the nearest known one), a
            value has the wrong type or is out of range.
    """
    config = OmegaConf.structured(TrainConfig)
    sources: list[tuple[str, DictConfig]] = []
    if file is not None:
        sources.append((f"{file}: ", _read_yaml(file)))
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"expected key=value, got {override!r}")
        sources.append(("", OmegaConf.from_dotlist([override])))
    for origin, source in sources:
        _check_keys(origin, OmegaConf.to_container(source), TrainConfig().as_dict())
        try:
            config = OmegaConf.merge(config, source)
        except OmegaConfBaseException as error:
            key = getattr(error, "full_key", None)
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{origin}{key}: {reason}" if key else f"{origin}{reason}") from None
    result = OmegaConf.to_object(config)
    assert isinstance(result, TrainConfig)
    result.check()
    return result


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
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{origin}unknown key {prefix}{key}; did you mean {prefix}{near}?")
        if isinstance(known[key], dict):
            _check_keys(origin, value, known[key], f"{prefix}{key}.")
