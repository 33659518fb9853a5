"""Checks of what a user hands to a sampler, before any work."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .errors import check_choice, check_count
from .graphs import has_graphs
from .process import Process


def dtype_of_model(model: Any, dtype: torch.dtype) -> torch.dtype:
    """The dtype a network wants its input in: that of its floating parameters (of most of their numbers, where a few
    stay in float32), else the state's."""
    numbers: dict[torch.dtype, int] = {}
    for parameter in model.parameters() if isinstance(model, nn.Module) else ():
        if parameter.is_floating_point():
            numbers[parameter.dtype] = numbers.get(parameter.dtype, 0) + parameter.numel()
    return max(numbers, key=numbers.__getitem__) if numbers else dtype


def model_device(model: Any) -> torch.device:
    """Where a network's parameters are; the CPU for a plain callable."""
    if isinstance(model, nn.Module):
        for parameter in model.parameters():
            return parameter.device
    return torch.device("cpu")


def resolve_device(device: torch.device | str) -> torch.device:
    """A device with its number: "cuda" is the current one."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device


def graph_mode(graph: str, device: torch.device, compiled: bool) -> str:
    """`graph`, "off" where "auto" finds that nothing can be captured.

    Raises:
        ValueError: an unknown mode, or a graph asked for that cannot be.
    """
    check_choice("graph", graph, ("auto", "loop", "step", "off"))
    possible = compiled and has_graphs(device)
    if graph in ("loop", "step") and not possible:
        why = f"a device that has graphs (CUDA), got {device}" if compiled else "compiled=True"
        raise ValueError(f"graph={graph!r} needs {why}; use graph='auto' or 'off'")
    return graph if possible else "off"


def compile_network(model: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """The network through torch.compile, for fixed shapes; no graphs of its own, because the sampler captures it."""
    mode = "max-autotune-no-cudagraphs" if device.type == "cuda" else "default"
    return torch.compile(model, mode=mode, dynamic=False)


def resolve_shape(shape: int | Sequence[int], sample_shape: Sequence[int] | None) -> torch.Size:
    """[B, ...] from a full shape, or from a batch size and the shape of one sample."""
    if hasattr(shape, "__index__") and not isinstance(shape, bool):
        if sample_shape is None:
            raise ValueError(
                "shape must be [B, ...], because neither the model's sample_shape nor Sampler(shape=...) gives the "
                f"shape of one sample, got {shape}"
            )
        shape = (int(shape), *sample_shape)
    if not isinstance(shape, Sequence) or len(shape) == 0:
        raise ValueError(f"shape must be a batch size or a sequence [B, ...], got {shape!r}")
    return torch.Size([check_count("shape", n, 0) for n in shape])


def check_state(name: str, x: Any, shape: torch.Size, device: torch.device) -> Tensor:
    """`x`, if it is a floating tensor of the run's shape on the model's device."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(x.shape)}")
    if x.device != device:
        raise ValueError(f"{name} must be on {device}, got {x.device}")
    return x


def check_noise(
    noise: Callable[[int, int], Tensor], shape: torch.Size, dtype: torch.dtype, device: torch.device
) -> Callable[[int, int], Tensor]:
    """Wrap a user's noise function so that what it returns is checked and cast."""

    def checked(draw: int, step: int) -> Tensor:
        z = noise(draw, step)
        if not isinstance(z, Tensor) or z.shape != shape:
            came = list(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise ValueError(f"noise(draw={draw}, step={step}) must return a tensor of shape {list(shape)}, got {came}")
        return z.to(device=device, dtype=dtype)

    return checked


def label_tensor(labels: Any, batch: int, label_dim: int | None, device: torch.device) -> Tensor:
    """Class labels on `device`: int64 [B] from an int or integers, checked against `label_dim`; or rows [B, L]."""
    given = torch.as_tensor(labels)
    if given.ndim == 0:
        given = given.expand(batch)
    if len(given) != batch:
        raise ValueError(f"labels must hold one class per sample ({batch}), got {len(given)}")
    if given.ndim == 1:
        if given.is_floating_point() or given.dtype == torch.bool:
            raise TypeError(f"labels must be integers [B] or one-hot rows [B, L], got {given.dtype}")
        given = given.to(torch.int64)
        if label_dim is not None and batch and (int(given.min()) < 0 or int(given.max()) >= label_dim):
            wrong = [int(v) for v in given if not 0 <= int(v) < label_dim]
            wanted = f"from 0 to {label_dim - 1}" if label_dim else "left out: the model has no classes"
            raise ValueError(f"labels must be {wanted}, got {wrong[0]}")
    elif label_dim is not None and given.shape[1] != label_dim:
        raise ValueError(f"labels must have {label_dim} columns, got {given.shape[1]}")
    return given.to(device).contiguous()


def conditioning(
    cond: Mapping[str, Any] | None, labels: Any, batch: int, label_dim: int | None, device: torch.device
) -> dict[str, Any]:
    """The keyword arguments of the model and the guidance terms, with the labels among them if there are any.

    Raises:
        TypeError, ValueError: `cond` is no dict, or has the labels that are given beside it too; see `label_tensor`.
    """
    if cond is not None and not isinstance(cond, Mapping):
        raise TypeError(f"cond must be a dict of keyword arguments, got {type(cond).__name__}")
    given = dict(cond or {})
    if labels is not None:
        if given.get("labels") is not None:
            raise ValueError("labels must be left out when cond has 'labels'")
        given["labels"] = label_tensor(labels, batch, label_dim, device)
    return given


def clip_range(clip_denoised: bool | Sequence[float]) -> tuple[float, float] | None:
    """(lo, hi) of `clip_denoised`: True is (-1, 1)."""
    if isinstance(clip_denoised, bool):
        return (-1.0, 1.0) if clip_denoised else None
    try:
        lo, hi = (float(bound) for bound in clip_denoised)
    except (TypeError, ValueError):
        raise ValueError(f"clip_denoised must be True, False or (lo, hi), got {clip_denoised!r}") from None
    if math.isnan(lo) or math.isnan(hi) or lo >= hi:
        raise ValueError(f"clip_denoised must be (lo, hi) with lo < hi, got {clip_denoised!r}")
    return lo, hi


def explicit_levels(process: Process, sigmas: Sequence[float] | None, timesteps: Sequence[float] | None) -> Any:
    """The explicit levels a process understands, sigmas (VE) or timesteps (VP, flow); None if neither is given."""
    for name, values in (("sigmas", sigmas), ("timesteps", timesteps)):
        if values is not None and name != process.explicit:
            raise ValueError(f"{name} must be left out for process {type(process).__name__}; give {process.explicit}")
    return sigmas if sigmas is not None else timesteps
