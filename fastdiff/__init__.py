"""fastdiff: the fastest and most trustworthy way to sample from a diffusion model in PyTorch."""

from __future__ import annotations

from . import ops
from ._version import __version__
from .exposure import LinearScale
from .plan import Plan
from .prediction import EDMPrediction, Prediction
from .process import EDM, VE, VP, Process
from .sampler import Sampler, StepInfo

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
    "ops",
]
