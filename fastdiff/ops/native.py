"""Finding the compiled backends, and falling back to the reference when there is none.

`fastdiff._C` (CPU) and `fastdiff._cuda` hold the operators of `torch.ops.fastdiff`; both are optional. Importing this
module loads `_C` (40 KB) and nothing else; `_cuda` is loaded when a CUDA backend is first asked for.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from . import reference_ops

_FAILED: dict[str, str] = {}


@cache
def _load(module: str) -> bool:
    """Import a compiled module once; remember why it failed."""
    if module == "_cuda" and not _load("_C"):  # the schemas live in _C
        _FAILED[module] = _FAILED["_C"]
        return False
    try:
        importlib.import_module(f"fastdiff.{module}")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        _FAILED[module] = f"fastdiff.{module} was not built" if missing else f"fastdiff.{module} does not load: {error}"
        return False
    if module == "_C":
        from . import register

        register.register()
    return True


def available(kind: str) -> bool:
    """Whether the compiled backend of a device type ("cpu", "cuda") can run."""
    if kind == "cuda" and not torch.cuda.is_available():
        return False
    return kind in ("cpu", "cuda") and _load("_C" if kind == "cpu" else "_cuda")


def reason(kind: str) -> str:
    """Why the compiled backend of a device type cannot run."""
    if kind not in ("cpu", "cuda"):
        return f"there is no compiled backend for {kind} tensors"
    if kind == "cuda" and not torch.cuda.is_available():
        return "no CUDA device is visible" if torch.version.cuda else f"torch {torch.__version__} has no CUDA"
    _load("_C" if kind == "cpu" else "_cuda")
    return _FAILED.get("_C" if kind == "cpu" else "_cuda", "")


def require(kind: str) -> None:
    """Raise if the compiled backend of a device type cannot run."""
    if not available(kind):
        raise RuntimeError(
            f"backend {kind!r} cannot run: {reason(kind)}. Reinstall with FASTDIFF_BUILD={kind} to see why."
        )


@cache
def fall_back(kind: str) -> str:
    """Say once that the reference backend runs, and return its name."""
    warnings.warn(
        f"fastdiff runs its reference backend (correct, slower) on {kind}: {reason(kind)}.",
        RuntimeWarning,
        stacklevel=4,
    )
    return "reference"


def operation(name: str, backend: str) -> Callable[..., Any]:
    """The function behind an operator on a backend; both kinds take the same positional arguments."""
    if backend == "reference":
        return getattr(reference_ops, name)
    return getattr(torch.ops.fastdiff, name).default


def explain() -> list[str]:
    """One line per device type: which backend will be used and why."""
    lines = []
    for kind in ("cpu", "cuda"):
        if available(kind):
            lines.append(f"{kind}: {kind} backend (compiled)")
        elif kind == "cuda" and not torch.cuda.is_available():
            lines.append(f"cuda: none, {reason(kind)}")
        else:
            lines.append(f"{kind}: reference backend, because {reason(kind)}")
    return lines
