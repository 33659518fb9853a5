"""Exposure bias: the drift between what a network saw in training and what it sees while sampling."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .schedules import LinearScale, epsilon_scales

_LAZY = {  # what is imported when it is first asked for: name -> module
    "Calibration": "choice",
    "Drift": "drift",
    "calibrate": "calibration",
    "load_scale": "choice",
    "match_norms": "norm",
    "measure_drift": "drift",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)


__all__ = [
    "Calibration",
    "Drift",
    "LinearScale",
    "calibrate",
    "epsilon_scales",
    "load_scale",
    "match_norms",
    "measure_drift",
]
