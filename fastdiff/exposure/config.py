"""The configuration of `fastdiff exposure`, and what it measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from ..config import ConfigError, _check_keys, _read_yaml
from ..data import load as load_data
from ..errors import check_choice
from ..guidance import DiscriminatorGuidance
from ..models import load as load_model
from ..prediction import EDMPrediction
from ..process import EDM
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

    solver: str = "heun"
    steps: int = 18
    epsilon_scale: Any = 1.0  # lambda: a number, one per step, or a file of `fastdiff calibrate`
    discriminator: str | None = None  # a file of `fastdiff train-discriminator`: guide with it
    w_1st: float = 2.0  # its weight in a step's first evaluation
    w_2nd: float = 0.0  # ... and in its second

    rho: float = 7.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
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
    config = OmegaConf.structured(ExposureConfig)
    sources = [] if file is None else [(f"{file}: ", OmegaConf.to_container(_read_yaml(file)))]
    for origin, source in [*sources, ("", dict(changes or {}))]:
        _check_keys(origin, source, ExposureConfig().as_dict())
        try:
            config = OmegaConf.merge(config, source)
        except OmegaConfBaseException as error:
            key = getattr(error, "full_key", None)
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{origin}{key}: {reason}" if key else f"{origin}{reason}") from None
    result = OmegaConf.to_object(config)
    assert isinstance(result, ExposureConfig)
    return result


def open_exposure(config: ExposureConfig, device: torch.device) -> Exposure:
    """The sampler and the data of a configuration; nothing is run.

    Raises:
        ConfigError, ModelFileError, ModuleNotFoundError, ValueError, TypeError, OSError: what cannot be used.
    """
    check_choice("split", config.split, ("train", "test"))
    model = load_model(config.network, device)
    known = model.metadata
    if known.get("prediction") != "edm" or not isinstance(known.get("sigma_data"), float):
        raise ConfigError(f"network: {config.network}: the file does not name prediction edm and its sigma_data")
    digests, guidance = {"network": known["digest"]}, None
    if config.discriminator is not None:
        judge = load_model(config.discriminator, device)
        if getattr(judge, "sample_shape", None) != model.sample_shape or type(judge) is type(model):
            shape = list(model.sample_shape)
            raise ConfigError(f"discriminator: {config.discriminator}: not a discriminator of samples of shape {shape}")
        digests["discriminator"] = judge.metadata["digest"]
        guidance = DiscriminatorGuidance(judge, w_1st=config.w_1st, w_2nd=config.w_2nd)
    churn = {name: getattr(config, name) for name in ("S_churn", "S_min", "S_max", "S_noise")}
    sampler = Sampler(
        model,
        process=EDM(config.sigma_min, config.sigma_max),
        prediction=EDMPrediction(known["sigma_data"]),
        solver=config.solver,
        steps=config.steps,
        rho=config.rho,
        epsilon_scale=config.epsilon_scale,
        guidance=guidance,
        **{name: value for name, value in churn.items() if value is not None},
    )
    images = load_data(config.data, config.split)
    size, wanted = list(images.images.shape[1:]), list(model.sample_shape)
    if size != wanted:
        raise ConfigError(f"data: {config.data} has samples of shape {size}, the network is for {wanted}")
    labels = images.labels if config.conditional and model.label_dim else None
    if labels is not None and images.classes != model.label_dim:
        raise ConfigError(f"data: {config.data} has {images.classes} classes, the network {model.label_dim}")
    scales = epsilon_scales(sampler.epsilon_scale, sampler.levels.steps)
    return Exposure(sampler, images.images, labels, scales, digests)
