"""Finding the backends other than the reference, and falling back to it when there is none.

`fastdiff._C` (CPU) and `fastdiff._cuda` hold the operators of `torch.ops.fastdiff`, `triton_ops` holds Triton's; all
are optional. Importing this module loads `_C` (40 KB) and nothing else, the others are loaded when first asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from ..errors import warn
from . import reference_ops

_OLDEST_TRITON = (3, 6)
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


@cache
def _triton_reason(kind: str) -> str:
    """Why Triton cannot run on tensors of a device type, or nothing if it can."""
    try:
        import triton
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "triton":
            return "Triton is not installed; `pip install fastdiff[triton]` does it"
        return f"Triton does not load: {error}"
    if tuple(int(n) for n in triton.__version__.split(".")[:2]) < _OLDEST_TRITON:
        return f"Triton {triton.__version__} is older than 3.6; `pip install -U fastdiff[triton]` helps"
    from . import triton_ops

    if triton_ops.INTERPRETED:
        return ""
    if kind == "cpu":
        return "Triton has no CPU code; set TRITON_INTERPRET=1 before Python starts to have it interpreted, slowly"
    try:
        found = triton.runtime.driver.active.get_active_torch_device().type
    except Exception as error:  # no driver, no C compiler for its launcher, ...: whatever it is, Triton cannot run
        return f"Triton cannot use the device: {error}"
    return "" if found == kind else f"Triton's driver is one for {found} tensors"


def available(name: str, kind: str | None = None) -> bool:
    """Whether the backend "cpu", "cuda" or "triton" can run, Triton on tensors of device type `kind`."""
    if name == "triton":
        return not _triton_reason(kind or "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        return False
    return name in ("cpu", "cuda") and _load("_C" if name == "cpu" else "_cuda")


def reason(name: str, kind: str | None = None) -> str:
    """Why a backend cannot run."""
    if name == "triton":
        return _triton_reason(kind or "cuda")
    if name not in ("cpu", "cuda"):
        return f"there is no compiled backend for {name} tensors"
    if name == "cuda" and not torch.cuda.is_available():
        return "no CUDA device is visible" if torch.version.cuda else f"torch {torch.__version__} has no CUDA"
    _load("_C" if name == "cpu" else "_cuda")
    return _FAILED.get("_C" if name == "cpu" else "_cuda", "")


def require(name: str, kind: str) -> None:
    """Raise if a backend cannot run on tensors of a device type."""
    if name == "reference" or available(name, kind):
        return
    advice = "" if name == "triton" else f" Reinstall with FASTDIFF_BUILD={name} to see why."
    raise RuntimeError(f"backend {name!r} cannot run on {kind} tensors: {reason(name, kind)}.{advice}")


def best(kind: str) -> str:
    """The fastest backend that can run on tensors of a device type."""
    if available(kind):
        return kind
    if kind != "cpu" and available("triton", kind):
        return "triton"
    return fall_back(kind)


@cache
def fall_back(kind: str) -> str:
    """Say once that the reference backend runs, and return its name."""
    warn(f"fastdiff runs its reference backend (correct, slower) on {kind}: {_why_none(kind)}.")
    return "reference"


def operation(name: str, backend: str) -> Callable[..., Any]:
    """The function behind an operator on a backend; all take the same positional arguments."""
    if backend == "reference":
        return getattr(reference_ops, name)
    if backend == "triton":
        from . import triton_ops

        return getattr(triton_ops, name)
    return getattr(torch.ops.fastdiff, name).default


def small_launch(*arguments: Any) -> Any:
    """A launch of the C++ backend on small plain tensors, without PyTorch's dispatcher. None if it is not small, or
    cannot be had.

    Args:
        arguments: of `fastdiff._host.SmallLaunch`.
    """
    try:
        launch = importlib.import_module("fastdiff._host").SmallLaunch(*arguments)
    except (ImportError, AttributeError, ValueError):  # not built, a PyTorch that lends no tensors to C
        return None
    return launch if launch.pays() else None


@cache
def host_function(name: str) -> Callable[..., Any] | None:
    """A function of `fastdiff._host` for small plain CPU tensors; None if it was not built, or PyTorch lends no tensors
    to C."""
    try:
        module = importlib.import_module("fastdiff._host")
    except ImportError:
        return None
    return getattr(module, name) if hasattr(torch.Tensor, "__dlpack_c_exchange_api__") else None


def unobserved() -> bool:
    """Whether nobody but the caller sees operators: no autograd, tracing, profiler, inference or dispatch mode."""
    return not (
        torch.is_grad_enabled()
        or torch.is_inference_mode_enabled()
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.autograd._profiler_enabled()
        or torch._C._len_torch_dispatch_stack()
    )


def explain() -> list[str]:
    """One line per device type: which backend will be used and why."""
    lines = []
    for kind in ("cpu", "cuda"):
        if available(kind):
            lines.append(f"{kind}: {kind} backend (compiled)")
        elif kind == "cuda" and not torch.cuda.is_available():
            lines.append(f"cuda: none, {reason(kind)}")
        elif kind != "cpu" and available("triton", kind):
            lines.append(f"{kind}: triton backend, because {reason(kind)}")
        else:
            lines.append(f"{kind}: reference backend, because {_why_none(kind)}")
    return lines


def _why_none(kind: str) -> str:
    return reason(kind) if kind == "cpu" else f"{reason(kind)}, and {reason('triton', kind)}"
