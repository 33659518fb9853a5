"""From the names in configurations and on command lines to devices, networks and samplers."""

from __future__ import annotations

from typing import Any

import torch

from .models import Discriminator, ModelFileError, UNet, load
from .prediction import EDMPrediction
from .process import EDM
from .sampler import Sampler

__all__ = ["edm_sampler", "open_device", "open_discriminator", "open_network"]


def open_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one.

    Raises:
        ValueError: it cannot be used here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"{name!r} cannot be used here ({str(error).splitlines()[0]})") from None
    return device


def open_network(name: str, device: torch.device) -> UNet:
    """A network whose file says how its output is read: EDM's preconditioning, and its sigma_data.

    Args:
        name: a model file, or a shipped model.

    Raises:
        ModelFileError: there is no such file, or it does not say so.
    """
    model = load(name, device)
    described = getattr(model, "metadata", {})
    if described.get("prediction") != "edm" or not isinstance(described.get("sigma_data"), float):
        raise ModelFileError(f"{name}: the file does not name prediction edm and its sigma_data")
    return model


def open_discriminator(name: str, model: UNet, device: torch.device) -> Discriminator:
    """A discriminator of states like a network's.

    Raises:
        ModelFileError: there is no such file, or it holds something else.
    """
    judge = load(name, device)
    if not isinstance(judge, Discriminator) or judge.sample_shape != model.sample_shape:
        raise ModelFileError(f"{name}: not a discriminator of samples of shape {list(model.sample_shape)}")
    return judge


def edm_sampler(model: UNet, sigma_min: float = 0.002, sigma_max: float = 80.0, **options: Any) -> Sampler:
    """The sampler of a network from `open_network`; `options` are `Sampler`'s, and None leaves one out."""
    return Sampler(
        model,
        process=EDM(sigma_min, sigma_max),
        prediction=EDMPrediction(model.metadata["sigma_data"]),
        **{name: value for name, value in options.items() if value is not None},
    )
