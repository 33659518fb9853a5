"""How a network's output is read: what a sampler has to know beside the network itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from .continuous import process_of
from .prediction import EDMPrediction, Prediction, get_prediction
from .process import EDM, VE, VP, Process

__all__ = ["Reading", "reading_of"]

NOTHING: Mapping[str, Any] = MappingProxyType({})
STEPS = 50  # of a scheduler of diffusers, whose process depends on them


class Reading(NamedTuple):
    """What a sampler is made of.

    Attributes:
        network: called by the sampler: of a preconditioned network its raw one.
        process, prediction: see `Sampler`; a process's own limits are the defaults of sigma_min and sigma_max.
        solver: that suits them.
        settings: further arguments that commands start from: steps, rho.
        always: arguments of the sampler, unless others are given.
        own: options of `solver`, unless another solver or other options are given.
        limits: the smallest and the largest noise level, in VE terms, that the network knows.
    """

    network: Callable[..., Any]
    process: Process
    prediction: Prediction
    solver: Any
    settings: Mapping[str, Any] = NOTHING
    always: Mapping[str, Any] = NOTHING
    own: Mapping[str, Any] = NOTHING
    limits: tuple[float, float] = (0.0, math.inf)


def reading_of(model: Any, steps: int | None = None) -> Reading:
    """How a network is read: by its own method `reading`, or as its `metadata` describes it.

    Metadata hold one of

    * "prediction" and "process" (`continuous.process_of`), and for chains the "variance" that solver "ddpm" takes;
    * "prediction" "edm" and "sigma_data";
    * "scheduler", the configuration of a scheduler of diffusers.

    Args:
        steps: of the sampler, which a scheduler's levels depend on; default 50.

    Raises:
        ValueError, TypeError: neither says how.
    """
    if hasattr(model, "reading"):
        found: Reading = model.reading()
        return found
    described = getattr(model, "metadata", {})
    if isinstance(described.get("scheduler"), Mapping):
        return _as_scheduled(model, described["scheduler"], STEPS if steps is None else steps)
    name = described.get("prediction")
    if name == "edm":
        if not isinstance(described.get("sigma_data"), float):
            raise ValueError("no sigma_data beside prediction edm")
        return in_ve(model, EDM(), EDMPrediction(described["sigma_data"]))
    if not isinstance(name, str) or not isinstance(described.get("process"), Mapping):
        raise ValueError("no prediction, or no process beside it")
    process, prediction = process_of(described["process"]), get_prediction(name)
    if isinstance(process, VE):
        return in_ve(model, process, prediction)
    if not isinstance(process, VP):
        return Reading(model, process, prediction, "ddim", {"steps": 50})
    # As guided-diffusion samples: with the network's variance, and x_0 of images clipped.
    always = {"clip_denoised": True} if len(model.sample_shape or ()) == 3 else {}
    own = {"variance": described.get("variance", "fixed_small")}
    return Reading(model, process, prediction, "ddpm", {"steps": 100}, always, own)


def in_ve(network: Any, process: VE, prediction: Prediction, limits: tuple[float, float] = (0.0, math.inf)) -> Reading:
    """Read as EDM's networks are: Heun's method on a schedule of noise levels."""
    rho = {"rho": 7.0} if isinstance(process, EDM) else {}
    return Reading(network, process, prediction, "heun", {"steps": 18, **rho}, limits=limits)


def _as_scheduled(model: Any, scheduler: Mapping[str, Any], steps: int) -> Reading:
    """As a scheduler of diffusers."""
    from .interop.diffusers import sampler_options

    options = sampler_options(scheduler, steps)
    process, prediction, solver, n = (options.pop(name) for name in ("process", "prediction", "solver", "steps"))
    always = {"steps": n}
    always |= {name: options.pop(name) for name in ("clip_denoised", "thresholding") if name in options}
    return Reading(model, process, get_prediction(prediction), solver, {"steps": n}, always, options)
