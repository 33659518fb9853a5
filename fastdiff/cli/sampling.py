"""What commands that sample have in common: the flags that describe a sampler, by EDM's names, and what they open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import click
import torch

from ..guidance import Boosting, DiscriminatorGuidance
from ..models import ModelFileError
from ..opening import (
    default_settings,
    judge_options,
    network_sampler,
    open_device,
    open_discriminator,
    open_network,
)
from ..sampler import Sampler
from ..solvers import SOLVERS, options_of
from . import CliError
from .arguments import OPTION, STEPS, flag

__all__ = ["Opened", "named_device", "open_sampler", "sampler_flags"]

_Command = TypeVar("_Command", bound=Callable[..., Any])
_SOLVER = "solver", "steps", "rho", "sigma_min", "sigma_max", "S_churn", "S_min", "S_max", "S_noise"
_WEIGHTS = "w_1st", "w_2nd"
_OTHER = "schedule", "noise", "thresholding", "clip_denoised", "epsilon_scale_mode"

_FLAGS = (
    click.option("--network", default="digits", show_default=True, metavar="FILE", help="A model file, or digits."),
    click.option("--solver", metavar="NAME", help="One of `fastdiff solvers`  [default: what suits the network]"),
    click.option(
        "-o",
        "--option",
        "options",
        type=OPTION,
        multiple=True,
        metavar="NAME=VALUE",
        help="An option of the solver (see `fastdiff solvers`), schedule, noise, thresholding, clip_denoised.",
    ),
    click.option("--steps", type=STEPS, metavar="N", help="Steps, or a respacing  [default: EDM 18, chains 100]"),
    click.option("--discriminator", metavar="FILE", help="Discriminator guidance (EDM-G++) with this model file."),
    flag("w_1st", type=float, help="Its weight in a step's first evaluation  [default: 2]."),
    flag("w_2nd", type=float, help="Its weight in Heun's second evaluation  [default: 0]."),
    click.option("--boosting", is_flag=True, help="EDM-G++'s boosting of samples that look generated."),
    flag("S_churn", type=float, help="Heun, Euler: amount of noise added back."),
    flag("S_min", type=float, help="Lowest level that is churned."),
    flag("S_max", type=float, help="Highest level that is churned."),
    flag("S_noise", type=float, help="Standard deviation of the added noise."),
    flag("rho", type=float, help="Exponent of the Karras schedule  [default: 7]"),
    flag("sigma_min", type=float, help="Lowest noise level  [default: EDM 0.002]"),
    flag("sigma_max", type=float, help="Highest noise level  [default: EDM 80]"),
    click.option("--device", default="auto", show_default=True, help="cpu, cuda, or auto: CUDA when there is one."),
)


class Opened(NamedTuple):
    """A sampler and what it was made of; `settings` are those given, as JSON can hold them."""

    sampler: Sampler
    model: Any
    device: torch.device
    settings: dict[str, Any]


def sampler_flags(command: _Command) -> _Command:
    """The flags that `open_sampler` reads."""
    for option in reversed(_FLAGS):
        command = option(command)
    return command


def named_device(name: str) -> torch.device:
    """The device of that name, if it can be used here."""
    try:
        return open_device(name)
    except ValueError as error:
        raise CliError(f"--device: {error}") from None


def open_sampler(flags: dict[str, Any], epsilon_scale: Any = 1.0) -> Opened:
    """The sampler that the flags describe.

    Raises:
        CliError: a file or a value that cannot be used.
    """
    device = named_device(flags["device"])
    try:
        model = open_network(flags["network"], device)
    except (ModelFileError, ModuleNotFoundError) as error:
        raise CliError(f"--network: {error}") from None
    if len(model.sample_shape) != 3:
        shape = list(model.sample_shape)
        raise CliError(f"--network must draw images, got one of samples {shape} (fastdiff.opening.network_sampler)")
    weights: dict[str, Any] = {name: flags[name] for name in _WEIGHTS if flags[name] is not None}
    given = {name: flags[name] for name in _SOLVER if flags[name] is not None}
    settings = {**default_settings(model), **given}
    settings |= _further(settings.get("solver"), flags["options"])
    if "schedule" in settings and flags["rho"] is None:
        settings.pop("rho", None)  # Karras's
    described = {"network": flags["network"], "digest": model.metadata["digest"], **settings}
    judge = None
    if flags["discriminator"] is not None:
        try:
            judge = open_discriminator(flags["discriminator"], model, device)
        except (ModelFileError, ModuleNotFoundError) as error:
            raise CliError(f"--discriminator: {error}") from None
        described |= {"discriminator": judge.metadata["digest"], "boosting": flags["boosting"], **weights}
    elif weights or flags["boosting"]:
        raise CliError(f"--{next(iter(weights), 'boosting')} needs --discriminator")
    try:
        boosting = Boosting() if flags["boosting"] else None
        guidance = None
        if judge is not None:
            guidance = DiscriminatorGuidance(judge, **weights, **judge_options(judge), boosting=boosting)
        sampler = network_sampler(model, **settings, epsilon_scale=epsilon_scale, guidance=guidance)
    except (TypeError, ValueError) as error:
        raise CliError(str(error)) from None
    return Opened(sampler, model, device, described)


def _further(solver: str | None, options: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """What --option adds to the settings: the solver's own options, and those of `Sampler` in `_OTHER`; without a
    solver, for a network of diffusers with its scheduler's, the latter."""
    if solver is not None and solver not in SOLVERS:
        raise CliError(f"--solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    known = [*(() if solver is None else options_of(SOLVERS[solver])), *_OTHER]
    for name, _ in options:
        if name in _SOLVER:
            raise CliError(f"--option {name}: give --{name}")
        if name not in known:
            raise CliError(f"--option must name one of {', '.join(known)} for solver {solver!r}, got {name!r}")
    return dict(options)
