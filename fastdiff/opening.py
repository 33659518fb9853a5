"""From the names in configurations and on command lines to devices, networks and samplers."""

from __future__ import annotations

from typing import Any

import torch

from .continuous import process_of
from .models import Discriminator, ModelFileError, UNet, load
from .prediction import EDMPrediction, Prediction, get_prediction
from .process import EDM, VE, VP, Process
from .sampler import Sampler

__all__ = [
    "default_settings",
    "fill_settings",
    "network_sampler",
    "open_device",
    "open_discriminator",
    "open_network",
]


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


def open_network(name: str, device: torch.device) -> Any:
    """A network whose file says how its output is read (see `network_sampler`).

    Args:
        name: a model file, or a shipped model.

    Raises:
        ModelFileError: there is no such file, or it does not say so.
    """
    model = load(name, device)
    try:
        _reading(getattr(model, "metadata", {}))
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{name}: the file does not say how its output is read ({error})") from None
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


def network_sampler(model: Any, **options: Any) -> Sampler:
    """The sampler of a network from `open_network`.

    The file says the process and the prediction; `default_settings` the solver, where the options do not. Networks of a
    discrete chain are sampled with their variance and, for images, x_0 clipped, as guided-diffusion samples them.

    Args:
        options: `Sampler`'s; None leaves one out. sigma_min and sigma_max are limits of the process EDM or VE.

    Raises:
        ValueError, TypeError: an option that this network's process does not have.
    """
    given = {name: value for name, value in options.items() if value is not None}
    process, prediction = _reading(model.metadata)
    limits = {name: given.pop(name) for name in ("sigma_min", "sigma_max") if name in given}
    if limits:
        if not isinstance(process, VE):
            name, value = next(iter(limits.items()))
            raise ValueError(f"{name} must be left out for process {type(process).__name__}, got {value!r}")
        process = type(process)(**{"sigma_min": process.sigma_min, "sigma_max": process.sigma_max, **limits})
    solver = given.setdefault("solver", default_settings(model)["solver"])
    if isinstance(process, VP):
        if solver == "ddpm":
            given.setdefault("variance", model.metadata.get("variance", "fixed_small"))
        if len(model.sample_shape) == 3:
            given.setdefault("clip_denoised", True)
    return Sampler(model, process=process, prediction=prediction, **given)


def default_settings(model: Any) -> dict[str, Any]:
    """A solver, steps and levels that suit a network's process: the defaults of the commands."""
    process, _ = _reading(model.metadata)
    if isinstance(process, VE):
        limits = {"sigma_min": process.sigma_min, "sigma_max": process.sigma_max}
        return {"solver": "heun", "steps": 18, **({"rho": 7.0} if isinstance(process, EDM) else {}), **limits}
    return {"solver": "ddpm", "steps": 100} if isinstance(process, VP) else {"solver": "ddim", "steps": 50}


def fill_settings(config: Any, model: Any) -> None:
    """Sets what `default_settings` names, where a configuration leaves it out (None)."""
    for name, value in default_settings(model).items():
        if getattr(config, name) is None:
            setattr(config, name, value)


def _reading(described: dict[str, Any]) -> tuple[Process, Prediction]:
    """The process and the prediction that a model file names.

    Raises:
        ValueError, TypeError: it names none.
    """
    name = described.get("prediction")
    if name == "edm":
        if not isinstance(described.get("sigma_data"), float):
            raise ValueError("no sigma_data beside prediction edm")
        return EDM(), EDMPrediction(described["sigma_data"])
    if not isinstance(name, str) or not isinstance(described.get("process"), dict):
        raise ValueError("no prediction, or no process beside it")
    return process_of(described["process"]), get_prediction(name)
