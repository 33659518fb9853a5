"""Typed configurations: YAML files and `key=value` overrides, checked against dataclasses by OmegaConf."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

__all__ = [
    "ConfigError",
    "DiscriminatorConfig",
    "ModelConfig",
    "TrainConfig",
    "load_config",
    "load_discriminator_config",
    "load_train_config",
]


_Config = TypeVar("_Config")
_Training = TypeVar("_Training", "TrainConfig", "DiscriminatorConfig")


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
        _check_run(self)
        for key in ("P_std", "sigma_data"):
            _require(0 < getattr(self, key) < math.inf, key, "positive and finite", getattr(self, key))
        _require(0 <= self.label_dropout < 1, "label_dropout", "in [0, 1)", self.label_dropout)


@dataclass
class DiscriminatorConfig:
    """Everything that decides a discriminator's training; the keys of `fastdiff train-discriminator`."""

    data: str = "digits16"  # real samples: a name of fastdiff.data.DATASETS
    validation: float = 0.1  # fraction of the real and of the generated samples that is held out

    network: str = "digits"  # the denoiser whose samples are told from real ones: a model file, or digits
    solver: str = "heun"  # the fakes' sampler: a good one, not the few-step one that is to be guided
    steps: int = 18
    fakes: int = 5000  # generated samples; each has the class of a real one
    fake_seed: int = 1_000_000  # of the first; the others count up. Keep it away from seeds that are evaluated
    fake_batch: int = 250

    start: str = "denoiser"  # denoiser: begin as the network's own way down; scratch: as `model`
    extractor: str = "none"  # none; denoiser: its way down, frozen; or a TorchScript file (y, tau) -> [B, C, H, W]
    model: ModelConfig = field(default_factory=ModelConfig)  # of the encoder, unless the denoiser decides it
    conditional: bool = False  # whether the discriminator is given the class
    hidden: int = 128
    dropout: float = 0.1

    sigma_min: float = 0.01  # noise levels (VE) are log-uniform between these: VP times as Kim et al. 2023 draw them
    sigma_max: float = 5.0  # the paper's range is 0.001 to 152; on small data most of it teaches nothing
    temporal_weight: str = "none"  # none: every level counts alike; time: as if VP times were drawn uniformly

    iterations: int = 700  # at most
    patience: int = 3  # evaluations without a lower held-out loss before the run stops; 0: never
    batch: int = 256  # one half real, one half generated
    learning_rate: float = 5e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])  # AdamW
    weight_decay: float = 1e-2
    warmup: int = 0  # iterations of linear warm-up; a cosine to 0 follows
    grad_clip: float = 1.0  # largest gradient norm; 0 turns clipping off
    ema: float = 0.995  # largest decay; the decay at iteration i is min(ema, (1 + i) / (10 + i))

    seed: int = 0
    device: str = "auto"
    amp: str = "auto"
    log_every: int = 20
    evaluate_every: int = 50  # iterations between losses of the averaged network on the held-out samples
    checkpoint_every: int = 100

    def as_dict(self) -> dict[str, Any]:
        """The configuration as nested plain dictionaries."""
        return asdict(self)

    def check(self) -> None:
        """Refuses values that are out of range.

        Raises:
            ConfigError: naming the key, what was wanted and what came.
        """
        _check_run(self)
        for key in ("steps", "fakes", "fake_batch", "hidden"):
            _require(getattr(self, key) >= 1, key, "at least 1", getattr(self, key))
        for key in ("fake_seed", "patience", "weight_decay"):
            _require(0 <= getattr(self, key) < math.inf, key, "at least 0 and finite", getattr(self, key))
        _require(self.batch % 2 == 0, "batch", "even: one half real, one half generated", self.batch)
        _require(0 < self.validation < 1, "validation", "in (0, 1)", self.validation)
        _require(0 <= self.dropout < 1, "dropout", "in [0, 1)", self.dropout)
        _require(0 < self.sigma_min < math.inf, "sigma_min", "positive and finite", self.sigma_min)
        wanted = f"above sigma_min = {self.sigma_min} and finite"
        _require(self.sigma_min < self.sigma_max < math.inf, "sigma_max", wanted, self.sigma_max)
        _require(self.start in ("denoiser", "scratch"), "start", "denoiser or scratch", self.start)
        _require(self.temporal_weight in ("none", "time"), "temporal_weight", "none or time", self.temporal_weight)


def _check_run(config: TrainConfig | DiscriminatorConfig) -> None:
    """The checks of the keys that every training run has."""
    for key in ("iterations", "batch", "log_every", "evaluate_every", "checkpoint_every"):
        _require(getattr(config, key) >= 1, key, "at least 1", getattr(config, key))
    for key in ("warmup", "grad_clip", "seed"):
        _require(getattr(config, key) >= 0, key, "at least 0", getattr(config, key))
    _require(0 < config.learning_rate < math.inf, "learning_rate", "positive and finite", config.learning_rate)
    _require(0 <= config.ema < 1, "ema", "in [0, 1)", config.ema)
    betas_ok = len(config.betas) == 2 and all(0 <= beta < 1 for beta in config.betas)
    _require(betas_ok, "betas", "two numbers in [0, 1)", config.betas)
    _require(config.amp in ("auto", "bfloat16", "none"), "amp", "auto, bfloat16 or none", config.amp)


def _require(ok: bool, key: str, wanted: str, got: Any) -> None:
    if not ok:
        raise ConfigError(f"{key} must be {wanted}, got {got!r}")


def load_train_config(file: str | Path | None = None, overrides: Sequence[str] = ()) -> TrainConfig:
    """Defaults, then the YAML `file`, then `key=value` overrides (nested keys with dots: `model.width=64`).

    Raises:
        ConfigError: the file cannot be read, a key is unknown (the message names the nearest known one), a
            value has the wrong type or is out of range.
    """
    return _checked(load_config(TrainConfig, file, map(_assignment, overrides)))


def load_discriminator_config(file: str | Path | None = None, overrides: Sequence[str] = ()) -> DiscriminatorConfig:
    """As `load_train_config`, for a discriminator's training.

    Raises:
        ConfigError: see `load_train_config`.
    """
    return _checked(load_config(DiscriminatorConfig, file, map(_assignment, overrides)))


def load_config(
    kind: type[_Config],
    file: str | Path | None,
    changes: Iterable[Mapping[str, Any]] = (),
    lists: Collection[str] = (),
) -> _Config:
    """Defaults of the dataclass `kind`, then the YAML `file`, then `changes`.

    Args:
        lists: keys that may be one value in place of a list.

    Raises:
        ConfigError: the file cannot be read, a key is unknown (the message names the nearest known one), or a value has
            the wrong type.
    """
    config = OmegaConf.structured(kind)
    known: Any = OmegaConf.to_container(config)
    sources = [] if file is None else [(f"{file}: ", OmegaConf.to_container(_read_yaml(file)))]
    for origin, source in [*sources, *(("", dict(change)) for change in changes)]:
        _check_keys(origin, source, known)
        assert isinstance(source, dict)
        wrapped = {k: [v] if k in lists and not isinstance(v, (list, tuple)) else v for k, v in source.items()}
        try:
            config = OmegaConf.merge(config, wrapped)
        except OmegaConfBaseException as error:
            key = getattr(error, "full_key", None)
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{origin}{key}: {reason}" if key else f"{origin}{reason}") from None
    result = OmegaConf.to_object(config)
    assert isinstance(result, kind)
    return result


def _assignment(override: str) -> dict[str, Any]:
    """`a.b=3` as nested mappings."""
    if "=" not in override:
        raise ConfigError(f"expected key=value, got {override!r}")
    nested = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
    assert isinstance(nested, dict)
    return {str(key): value for key, value in nested.items()}


def _checked(config: _Training) -> _Training:
    config.check()
    return config


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
