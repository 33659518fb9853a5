"""The configuration of `fastdiff exposure`, and what it measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import ConfigError, load_config
from ..data import load as load_data
from ..errors import check_choice
from ..guidance import DiscriminatorGuidance
from ..opening import fill_settings, judge_options, network_sampler, open_discriminator, open_network
from ..sampler import Sampler
from .schedules import epsilon_scales

__all__ = ["Exposure", "ExposureConfig", "load_exposure_config", "open_exposure"]


@dataclass
class ExposureConfig:
    """Everything that decides a measurement of the drift; the keys of `fastdiff exposure`."""

    network: str = "digits"  # a model file, or digits
    conditional: bool = True  # give the network the classes of the data; otherwise none
    data: str = "digits16"  # what states are compared with: a name of fastdiff.data.DATASETS ...
    split: str = "train"  # ... and train or test
    seeds: str = "0-999"  # one per pair of a sample and a datum: 0-999 or 1,5,7-9

    solver: str | None = None  # by default what suits the network: EDM heun, 18 steps; a chain ddpm, 100
    steps: int | None = None
    epsilon_scale: Any = 1.0  # lambda: a number, one per step, or a file of `fastdiff calibrate`
    discriminator: str | None = None  # a file of `fastdiff train-discriminator`: guide with it
    w_1st: float = 2.0  # its weight in a step's first evaluation
    w_2nd: float = 0.0  # ... and in its second

    rho: float | None = None  # default: EDM 7, 0.002 and 80; other networks have no such limits
    sigma_min: float | None = None
    sigma_max: float | None = None
    S_churn: float | None = None
    S_min: float | None = None
    S_max: float | None = None
    S_noise: float | None = None

    batch: int = 250
    probe: int = 64  # dimensions of the Shapiro-Wilk check; 0: none
    device: str = "auto"  # auto: CUDA when there is one

    def as_dict(self) -> dict[str, Any]:
        """The configuration as a plain dictionary."""
        return asdict(self)


class Exposure(NamedTuple):
    """What is measured: `measure_drift(sampler, data, labels=labels, ...)`.

    Attributes:
        data: float32 [N, C, H, W] in [-1, 1]; labels: int64 [N], or None for a network without.
        scales: lambda of every step, noisiest first.
        digests: of the weights, by role (network, discriminator).
    """

    sampler: Sampler
    data: Tensor
    labels: Tensor | None
    scales: list[float]
    digests: dict[str, str]


def load_exposure_config(file: str | Path | None = None, changes: Mapping[str, Any] | None = None) -> ExposureConfig:
    """Defaults, then the YAML `file`, then `changes`.

    Raises:
        ConfigError: the file cannot be read, a key is unknown (the message names the nearest known one), or a value
            has the wrong type.
    """
    return load_config(ExposureConfig, file, [changes or {}])


def open_exposure(config: ExposureConfig, device: torch.device) -> Exposure:
    """The sampler and the data of a configuration, whose open settings are filled in; nothing is run.

    Raises:
        ConfigError, ModelFileError, ModuleNotFoundError, ValueError, TypeError, OSError: what cannot be used.
    """
    check_choice("split", config.split, ("train", "test"))
    model = open_network(config.network, device)
    fill_settings(config, model)
    digests, guidance = {"network": model.metadata["digest"]}, None
    if config.discriminator is not None:
        judge = open_discriminator(config.discriminator, model, device)
        digests["discriminator"] = judge.metadata["digest"]
        guidance = DiscriminatorGuidance(judge, config.w_1st, config.w_2nd, **judge_options(judge))
    names = (
        "solver",
        "steps",
        "rho",
        "epsilon_scale",
        "S_churn",
        "S_min",
        "S_max",
        "S_noise",
        "sigma_min",
        "sigma_max",
    )
    settings = {name: getattr(config, name) for name in names}
    sampler = network_sampler(model, guidance=guidance, **settings)
    images = load_data(config.data, config.split)
    size, wanted = list(images.images.shape[1:]), list(model.sample_shape)
    if size != wanted:
        raise ConfigError(f"data: {config.data} has samples of shape {size}, the network is for {wanted}")
    labels = images.labels if config.conditional and model.label_dim else None
    if labels is not None and images.classes != model.label_dim:
        raise ConfigError(f"data: {config.data} has {images.classes} classes, the network {model.label_dim}")
    scales = epsilon_scales(sampler.epsilon_scale, sampler.levels.steps)
    return Exposure(sampler, images.images, labels, scales, digests)
