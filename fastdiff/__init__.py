"""fastdiff: the fastest and most trustworthy way to sample from a diffusion model in PyTorch."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from . import adaptive, ops, probability_flow
from ._version import __version__
from .exposure import LinearScale
from .plan import Plan
from .prediction import EDMPrediction, Prediction
from .process import EDM, VE, VP, Process
from .sampler import Sampler, StepInfo

_ROOMS = (
    *("cascade", "continuous", "data", "energy", "evaluation", "exposure", "guidance", "importing", "interop"),
    *("interpolating", "latents", "likelihood", "models", "ncsn", "presets", "schedules", "sde", "spacing", "sweep"),
    *("thresholding", "training"),
)


def __getattr__(name: str) -> Any:
    """Rooms that not every user needs are imported when they are first asked for."""
    if name == "load":
        return import_module("fastdiff.importing").load
    if name == "sampler_of":
        return import_module("fastdiff.opening").network_sampler
    if name in _ROOMS:
        return import_module(f"fastdiff.{name}")
    raise AttributeError(f"module 'fastdiff' has no attribute {name!r}")


__all__ = [
    "EDM",
    "VE",
    "VP",
    "EDMPrediction",
    "LinearScale",
    "Plan",
    "Prediction",
    "Process",
    "Sampler",
    "StepInfo",
    "__version__",
    "adaptive",
    "ops",
    "probability_flow",
]
