"""The configuration of `fastdiff sweep`, and the sweep it describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..config import ConfigError, load_config
from ..data import load as load_data
from ..errors import check_choice, check_count
from ..opening import (
    fill_settings,
    judge_options,
    network_sampler,
    open_device,
    open_discriminator,
    open_network,
)
from .cells import grid
from .runner import Sweep

__all__ = ["SweepConfig", "load_sweep_config", "open_sweep"]

_AXES = ("solver", "steps", "epsilon_scale", "w_1st", "w_2nd", "S_churn")


@dataclass
class SweepConfig:
    """Everything that decides a sweep; the keys of `fastdiff sweep`."""

    network: str = "digits"  # a model file, or digits
    discriminator: str | None = None  # a file of `fastdiff train-discriminator`, for weights other than 0
    conditional: bool = True  # give the network the class seed mod classes; otherwise none
    data: str = "digits16"  # real images to compare with: a name of fastdiff.data.DATASETS ...
    split: str = "train"  # ... and train or test
    features: str = "digits"  # the feature space, see fastdiff.evaluation.get_features

    solver: list[str] = field(default_factory=lambda: ["heun"])
    steps: list[int] = field(default_factory=lambda: [18])
    epsilon_scale: list[float] = field(default_factory=lambda: [1.0])
    w_1st: list[float] = field(default_factory=lambda: [0.0])
    w_2nd: list[float] = field(default_factory=lambda: [0.0])
    S_churn: list[float] = field(default_factory=lambda: [0.0])

    samples: int = 1000  # per range of seeds
    ranges: int = 3
    first_seed: int = 0  # range r: first_seed + r * samples and following
    batch: int = 250

    rho: float | None = None  # default: EDM 7, 0.002 and 80; other networks have no such limits
    sigma_min: float | None = None
    sigma_max: float | None = None
    S_min: float | None = None
    S_max: float | None = None
    S_noise: float | None = None
    time_min: float = 0.01  # discriminator guidance acts within these VP times
    time_max: float = 1.0
    device: str = "auto"  # auto: CUDA when there is one; process r of torchrun takes GPU r

    def as_dict(self) -> dict[str, Any]:
        """The configuration as a plain dictionary."""
        return asdict(self)


def load_sweep_config(file: str | Path | None = None, changes: Mapping[str, Any] | None = None) -> SweepConfig:
    """Defaults, then the YAML `file`, then `changes`. An axis may be one value in place of a list.

    Raises:
        ConfigError: the file cannot be read, a key is unknown (the message names the nearest known one), or a value
            has the wrong type.
    """
    return load_config(SweepConfig, file, [changes or {}], lists=_AXES)


def open_sweep(config: SweepConfig, folder: str | Path, local_rank: int = 0) -> Sweep:
    """The sweep of a configuration: network, real images and feature space are loaded, nothing is run.

    Args:
        folder: of the finished cells.
        local_rank: which GPU of this machine, for device "auto".

    Raises:
        ConfigError, ModelFileError, FeatureError, ValueError, TypeError, ModuleNotFoundError: what cannot be used.
    """
    from ..evaluation import Evaluator

    cells = grid(**{name: getattr(config, name) for name in _AXES}, ranges=config.ranges)
    check_choice("split", config.split, ("train", "test"))
    device = open_device(config.device)
    if config.device == "auto" and device.type == "cuda":
        device = torch.device("cuda", local_rank)
    model = open_network(config.network, device)
    fill_settings(config, model)
    discriminator, own = None, {}
    if config.discriminator is not None:
        discriminator = open_discriminator(config.discriminator, model, device)
        own = judge_options(discriminator)
    churn = {name: getattr(config, name) for name in ("S_min", "S_max", "S_noise")}
    sampler = network_sampler(model, sigma_min=config.sigma_min, sigma_max=config.sigma_max, rho=config.rho, **churn)
    images = load_data(config.data, config.split).images
    if tuple(images.shape[1:]) != tuple(model.sample_shape):
        wanted, got = list(model.sample_shape), list(images.shape[1:])
        raise ConfigError(f"data: {config.data} has images of shape {got}, the network draws {wanted}")
    evaluator = Evaluator(images, config.features)
    check_count("samples", config.samples, evaluator.least)
    return Sweep(
        sampler,
        evaluator,
        cells,
        folder,
        discriminator=discriminator,
        guidance={"time_min": config.time_min, "time_max": config.time_max, **own},
        samples=config.samples,
        first_seed=config.first_seed,
        labels="cycle" if config.conditional else None,
        batch=config.batch,
    )
