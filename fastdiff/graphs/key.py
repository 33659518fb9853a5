"""The signature of a run: everything that changes which work is done, and nothing that does not.

What lives in device memory, refilled (seeds, labels, conditioning, coefficients, times) or read in place (weights),
counts by where it lies and how it is laid out, not by its values. Numbers a model keeps as Python attributes cannot be
seen: they are frozen in a graph.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

_DEPTH = 3  # how far functions, methods, plain objects and containers are searched
_WIDTH = 64  # and how many things are looked at in each


def modules_of(thing: Any, depth: int = _DEPTH) -> Iterator[nn.Module | Tensor]:
    """The modules and tensors a callable can reach: itself, or by its closure, globals, arguments and attributes."""
    if isinstance(thing, (nn.Module, Tensor)):
        yield thing
        return
    if depth == 0 or isinstance(thing, type):
        return
    inner: list[Any] = []
    if isinstance(thing, partial):
        inner += [thing.func, *thing.args, *thing.keywords.values()]
    elif isinstance(thing, (list, tuple)):
        inner += thing[:_WIDTH]
    elif isinstance(thing, dict):
        inner += list(thing.values())[:_WIDTH] if len(thing) <= _WIDTH else []
    elif hasattr(thing, "__func__"):
        inner += [thing.__self__, thing.__func__]
    elif hasattr(thing, "__code__"):
        inner += [value for cell in thing.__closure__ or () if (value := _contents(cell)) is not None]
        inner += [thing.__globals__[name] for name in thing.__code__.co_names if name in thing.__globals__]
    elif callable(thing):
        inner += list(getattr(thing, "__dict__", {}).values())
    for value in inner:
        yield from modules_of(value, depth - 1)


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)


@cache
def _is_torchs_own(kind: Hashable) -> bool:
    """Whether a module is PyTorch's, which keep their tensors as parameters and buffers."""
    return str(getattr(kind, "__module__", "")).startswith("torch.nn.")


def weights(things: Iterable[nn.Module | Tensor]) -> tuple[list[Tensor], list[Hashable]]:
    """(every parameter, buffer and other tensor, the state of the modules: where their tensors lie, mode, hooks)."""
    tensors: list[Tensor] = []
    state: list[Hashable] = []
    stack: list[Any] = []
    for thing in things:
        (tensors if isinstance(thing, Tensor) else stack).append(thing)  # type: ignore[arg-type]
    visited: set[int] = set()
    while stack:  # of every call, so without the generators of nn.Module
        module = stack.pop()
        if id(module) in visited:
            continue
        visited.add(id(module))
        parts = module.__dict__
        state.append(parts.get("training"))  # a compiled module has its inner module's
        for kind in ("_forward_hooks", "_forward_pre_hooks"):
            if parts[kind]:
                state.append((kind, *parts[kind]))
        for kind in ("_parameters", "_buffers"):
            if parts[kind]:
                tensors += [t for t in parts[kind].values() if t is not None]
        made_by: Any = type(module)
        own: Iterable[str] = () if _is_torchs_own(made_by) else parts.keys() - _OF_EVERY_MODULE
        for value in [parts[name] for name in own]:
            if isinstance(value, (Tensor, list, tuple, dict)):
                for thing in modules_of(value):
                    (tensors if isinstance(thing, Tensor) else stack).append(thing)  # type: ignore[arg-type]
        if parts["_modules"]:
            stack += [m for m in parts["_modules"].values() if m is not None]
    state += [(t.data_ptr(), t.is_contiguous(), t.dtype) for t in tensors]
    return tensors, state


def flatten(tree: Any) -> tuple[list[Any], Hashable]:
    """(leaves in PyTorch's order, structure); a plain dict of tensors and numbers takes a shorter way."""
    if isinstance(tree, dict) and all(isinstance(leaf, (Tensor, int, float, str)) for leaf in tree.values()):
        return list(tree.values()), tuple(tree)
    leaves, spec = pytree.tree_flatten(tree)
    return leaves, str(spec)


def layout(tree: Any, device: torch.device) -> Hashable:
    """The signature of conditioning: tensors by their layout, everything else by value.

    Raises:
        ValueError: a tensor on another device, or a value that cannot be compared.
    """
    leaves, spec = flatten(tree)
    signature: list[Hashable] = [spec]
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            if leaf.device != device:
                raise ValueError(f"a tensor of cond is on {leaf.device}, not on {device}")
            signature.append((leaf.shape, leaf.stride(), leaf.dtype))
        elif isinstance(leaf, float):
            signature.append((type(leaf), leaf.hex()))  # 0.0 equals -0.0 and NaN not itself
        elif isinstance(leaf, Hashable):
            signature.append((type(leaf), leaf))
        else:
            raise ValueError(f"a value of cond cannot be compared with that of another call: {type(leaf).__name__}")
    return tuple(signature)


def flags(device: torch.device) -> Hashable:
    """The switches of PyTorch that choose kernels."""
    cuda: Any = torch.backends.cuda
    cudnn: Any = torch.backends.cudnn
    return (
        torch.is_autocast_enabled(device.type),
        torch.get_autocast_dtype(device.type),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        cuda.matmul.allow_fp16_reduced_precision_reduction,
        cuda.matmul.allow_bf16_reduced_precision_reduction,
        (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled(), cuda.cudnn_sdp_enabled()),
        (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision),
        cuda.matmul.fp32_precision,
    )
