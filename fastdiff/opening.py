"""From the names in configurations and on command lines to devices, networks and samplers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from . import latents
from .models import ModelFileError
from .models.io import weights_digest
from .models.network import FACTS
from .process import VE, Process
from .reading import reading_of
from .sampler import Sampler

__all__ = [
    "default_settings",
    "fill_settings",
    "judge_options",
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
        name: a model file of this package, a shipped model, or a published checkpoint (see `fastdiff.load`).

    Raises:
        ModelFileError: there is no such file, or it does not say so.
    """
    model = _load(name, device)
    try:
        reading_of(model)
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{name}: the file does not say how its output is read ({error})") from None
    return model


def open_discriminator(name: str, model: Any, device: torch.device) -> Any:
    """A discriminator of states like a network's.

    Raises:
        ModelFileError: there is no such file, or it holds something else.
    """
    judge = _load(name, device)
    facts = FACTS.get(type(judge).__name__)
    if facts is None or facts.kind != "discriminator" or judge.sample_shape != model.sample_shape:
        raise ModelFileError(f"{name}: not a discriminator of samples of shape {list(model.sample_shape)}")
    return judge


def _load(name: str, device: torch.device) -> Any:
    """`fastdiff.load`. The digest of a file of our own stands in it; others get that of their converted file."""
    from .importing import load

    model = load(name, device)
    if "digest" not in model.metadata:
        model.metadata["digest"] = weights_digest(model.state_dict())
    return model


def judge_options(judge: Any) -> dict[str, Any]:
    """Arguments of `DiscriminatorGuidance` that a discriminator needs: its `time`, where it has one."""
    return {"time": judge.time} if hasattr(judge, "time") else {}


def network_sampler(model: Any, **options: Any) -> Sampler:
    """The sampler of a network that says how its output is read (`reading_of`).

    That settles the process and the prediction, and the solver where the options do not. A preconditioned network is
    sampled through its raw one. Networks of a discrete chain are sampled with their variance and, for images, x_0
    clipped, as guided-diffusion samples them; those of diffusers as the scheduler beside them does. The latents of a
    network that came with its autoencoder are decoded, unless the options have `decode`, which may be None.

    Args:
        options: `Sampler`'s; None leaves one out. sigma_min and sigma_max are limits of the process EDM or VE.

    Raises:
        ValueError, TypeError: an option that this network's process does not have, or levels that it does not know;
            the network does not say how it is read.
    """
    given = {name: value for name, value in options.items() if value is not None}
    reading = reading_of(model, given.get("steps"))
    process, own = reading.process, dict(reading.own)
    limits: dict[str, Any] = {name: given.pop(name) for name in ("sigma_min", "sigma_max") if name in given}
    if limits:
        process = _within(process, limits, reading.limits)
    if given.get("solver", reading.solver) != reading.solver:
        own = {}
    if "decode" not in options and (latent := latents.latent_of(model)) is not None:
        own |= {"decode": latent, "decode_batch": latents.BATCH}
    arguments = {"solver": reading.solver, **reading.always, **own, **given}
    return Sampler(reading.network, process=process, prediction=reading.prediction, **arguments)


def _within(process: Process, limits: Mapping[str, float], known: tuple[float, float]) -> Process:
    """A process with other limits."""
    if not isinstance(process, VE):
        name, value = next(iter(limits.items()))
        raise ValueError(f"{name} must be left out for process {type(process).__name__}, got {value!r}")
    for name, value in limits.items():
        if not known[0] <= value <= known[1]:
            least, most = known
            raise ValueError(f"{name} must be from {least:.6g} to {most:.6g}, which the network knows, got {value}")
    limits = {"sigma_min": process.sigma_min, "sigma_max": process.sigma_max, **limits}
    return type(process)(**limits, round_sigma=process.round_sigma)


def default_settings(model: Any) -> dict[str, Any]:
    """A solver, steps and levels that suit a network's process: the defaults of the commands.

    No solver for a network of diffusers: it is its scheduler's.
    """
    reading = reading_of(model)
    named = {"solver": reading.solver} if isinstance(reading.solver, str) else {}
    settings = {**named, **reading.settings}
    if isinstance(reading.process, VE):
        settings |= {"sigma_min": reading.process.sigma_min, "sigma_max": reading.process.sigma_max}
    return settings


def fill_settings(config: Any, model: Any) -> None:
    """Sets what `default_settings` names, where a configuration leaves it out (None)."""
    for name, value in default_settings(model).items():
        if getattr(config, name) is None:
            setattr(config, name, value)
