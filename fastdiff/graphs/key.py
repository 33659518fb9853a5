"""The signature of a run: everything that changes which work is done, and nothing that does not.

What lives in device memory, refilled (seeds, labels, conditioning, coefficients, times) or read in place (weights),
counts by where it lies and how it is laid out, not by its values. Numbers a model keeps as Python attributes cannot be
seen: they are frozen in a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import cache, lru_cache, partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..plan import Same

_DEPTH = 3  # how far functions, methods, plain objects and containers are searched
_WIDTH = 64  # and how many things are looked at in each
_REMEMBERED = 1024  # methods
_COMPILER = "torch._dynamo"


def modules_of(thing: Any, depth: int = _DEPTH) -> Iterator[nn.Module | Tensor]:
    """The modules and tensors a callable can reach: itself, or by its closure, globals, arguments and attributes."""
    if isinstance(thing, (nn.Module, Tensor)):
        yield thing
        return
    if depth == 0 or isinstance(thing, (type, ModuleType)):
        return
    inner: list[Any] = []
    if isinstance(thing, partial):
        inner += [thing.func, *thing.args, *thing.keywords.values()]
    elif isinstance(thing, (list, tuple)):
        inner += thing[:_WIDTH]
    elif isinstance(thing, dict):
        inner += list(thing.values())[:_WIDTH] if len(thing) <= _WIDTH else []
    elif isinstance(thing, MethodType):
        inner += [thing.__func__, *_used(thing.__self__, thing.__func__)]
    elif isinstance(thing, FunctionType) and str(thing.__globals__.get("__name__")).startswith(_COMPILER):
        inner.append(getattr(thing, "_torchdynamo_orig_callable", None))
    elif isinstance(thing, FunctionType):
        inner += [value for cell in thing.__closure__ or () if (value := _contents(cell)) is not None]
        inner += [thing.__globals__[name] for name in thing.__code__.co_names if name in thing.__globals__]
    elif hasattr(thing, "__dict__"):
        inner += _used(thing, vars(type(thing)).get("__call__") if depth == _DEPTH else None)
    else:
        inner += [getattr(thing, name, None) for name in getattr(type(thing), "__slots__", ())]
    for value in inner:
        yield from modules_of(value, depth - 1)


def _used(thing: Any, method: Any) -> list[Any]:
    """What a method of a thing may look at: a module, or of other things the attributes that its code names, so that
    an agent that keeps its last observation beside its network has the same signature in every call. Attributes
    whose names are computed, or that only other objects use, are not found."""
    if isinstance(thing, nn.Module) or not hasattr(thing, "__dict__"):
        return [thing]
    kind: Any = type(thing)
    names = _named(kind, method) if isinstance(method, FunctionType) else None
    return [value for name, value in vars(thing).items() if names is None or name in names][:_WIDTH]


@lru_cache(_REMEMBERED)
def _named(kind: Any, method: FunctionType) -> frozenset[str]:
    """Names and strings in the code of a method, and in that of the methods and functions it names."""
    names: set[str] = set()
    seen: set[int] = set()
    stack: list[Any] = [method]
    while stack:
        part = stack.pop()
        if isinstance(part, property):
            part = part.fget
        elif isinstance(part, (staticmethod, classmethod, MethodType)):
            part = part.__func__
        if not isinstance(part, FunctionType) or id(part) in seen or str(part.__module__).startswith("torch."):
            continue
        seen.add(id(part))
        stack += [_contents(cell) for cell in part.__closure__ or ()]  # what a decorator is around
        new = _names_in(part.__code__)
        names |= new
        stack += [part.__globals__[name] for name in new if name in part.__globals__]
        stack += [vars(base)[name] for base in kind.__mro__ for name in new if name in vars(base)]
    return frozenset(names)


def _names_in(code: CodeType) -> set[str]:
    inner = [_names_in(part) for part in code.co_consts if isinstance(part, CodeType)]
    return {*code.co_names, *(part for part in code.co_consts if isinstance(part, str))}.union(*inner)


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


_HOOKS = "_forward_hooks", "_forward_pre_hooks"
_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)
_WITHOUT_TENSORS = frozenset(
    (type(None), bool, int, float, str, type, torch.Size, torch.dtype, torch.device, torch.layout, torch.memory_format)
)


@cache
def _made_by(kind: Hashable) -> str:
    """Whose class a module is of: PyTorch's, whose modules keep their tensors as parameters and buffers, that of
    torch.compile around another module, or the user's."""
    place = str(getattr(kind, "__module__", ""))
    return "torch" if place.startswith("torch.nn.") else "compile" if place.startswith(_COMPILER) else "user"


def weights(called: Iterable[Any]) -> tuple[list[Tensor], tuple[Hashable, ...]]:
    """(every parameter, buffer and other tensor that modules and functions can reach, the state: which modules, their
    mode and hooks, where the tensors lie).

    Raises:
        ValueError: a tensor without memory that could be watched, such as a sparse one.
    """
    found: list[Tensor | None] = []
    state: list[Hashable] = []
    stack: list[Any] = []
    for function in called:
        for thing in modules_of(function):
            (found if isinstance(thing, Tensor) else stack).append(thing)  # type: ignore[arg-type]
    visited = {id(None)}
    while stack:  # of every call, so without the generators of nn.Module
        module = stack.pop()
        identity = id(module)
        if identity in visited:
            continue
        visited.add(identity)
        parts = module.__dict__
        state += (identity, parts.get("training"))  # a compiled module has its inner module's
        for kind in _HOOKS:
            if hooks := parts[kind]:
                state += (kind, *hooks)
                for thing in modules_of(tuple(hooks.values()), _DEPTH + 1):
                    (found if isinstance(thing, Tensor) else stack).append(thing)  # type: ignore[arg-type]
        if of_its_own := parts["_parameters"]:
            found += of_its_own.values()
        if of_its_own := parts["_buffers"]:
            found += of_its_own.values()
        if of_its_own := parts["_modules"]:
            stack += of_its_own.values()
        maker = _made_by(type(module))  # type: ignore[arg-type]
        if maker == "compile":
            continue
        if "forward" in parts:  # in place of its class's
            state.append(Same(parts["forward"]))
        elif maker == "torch":
            continue
        for name in parts.keys() - _OF_EVERY_MODULE:
            if type(parts[name]) not in _WITHOUT_TENSORS:
                for thing in modules_of(parts[name]):
                    (found if isinstance(thing, Tensor) else stack).append(thing)  # type: ignore[arg-type]
    tensors = [t for t in found if t is not None]
    try:
        places = [t.data_ptr() for t in tensors]
        if 0 in places:  # made of other tensors, or empty
            tensors = [part for tensor in tensors for part in _parts(tensor)]
            places = [t.data_ptr() for t in tensors]
    except RuntimeError as error:
        raise ValueError(f"a tensor of the model cannot be watched: {error}") from error
    state += places
    state += [(t.is_contiguous(), t.dtype) for t in tensors]
    return tensors, tuple(state)


def _parts(tensor: Any) -> list[Tensor]:
    """The tensors with memory that a tensor, such as a quantized one, is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in _parts(getattr(tensor, name))]


def flatten(tree: Any) -> tuple[list[Any], Hashable]:
    """(leaves in PyTorch's order, structure); a plain dict of tensors and numbers takes a shorter way."""
    if isinstance(tree, dict) and all(isinstance(leaf, (Tensor, int, float, str)) for leaf in tree.values()):
        return list(tree.values()), tuple(tree)
    leaves, spec = pytree.tree_flatten(tree)
    return leaves, str(spec)


def layout(tree: Any, device: torch.device) -> tuple[Hashable, list[Any]]:
    """(the signature of conditioning: tensors by their layout, everything else by value; the modules and functions).

    Raises:
        ValueError: a tensor on another device or without strides, or a value of which nobody can say whether it has
            changed since another call.
    """
    leaves, spec = flatten(tree)
    signature: list[Hashable] = [spec]
    called: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            if leaf.device != device:
                raise ValueError(f"a tensor of cond is on {leaf.device}, not on {device}")
            if leaf.layout != torch.strided:
                raise ValueError(f"a tensor of cond has the layout {leaf.layout}")
            signature.append((type(leaf), leaf.shape, leaf.stride(), leaf.dtype))
        elif isinstance(leaf, float):
            signature.append((type(leaf), leaf.hex()))  # 0.0 equals -0.0 and NaN not itself
        elif isinstance(leaf, (nn.Module, FunctionType, MethodType, partial)):
            parts = (leaf.__self__, leaf.__func__) if isinstance(leaf, MethodType) else (leaf,)
            signature.append(tuple(map(Same, parts)))
            called.append(leaf)
        elif type(leaf) in _WITHOUT_TENSORS or (isinstance(leaf, Hashable) and not _by_identity(type(leaf))):
            signature.append((type(leaf), leaf))
        else:
            raise ValueError(f"a value of cond cannot be compared with that of another call: {type(leaf).__name__}")
    return tuple(signature), called


def _by_identity(kind: type) -> bool:
    """Whether things of a type equal themselves only, whatever they hold by then."""
    return kind.__hash__ is object.__hash__ and kind.__eq__ is object.__eq__


_CUDA: Any = torch.backends.cuda
_CUDNN: Any = torch.backends.cudnn


def _getter(name: str, switch: Callable[[], Hashable]) -> Callable[[], Hashable]:
    """What a switch of PyTorch reads, without the Python around it; the switch, where a version calls it otherwise."""
    return getattr(torch._C, name, switch)


_SWITCHES: list[Callable[[], Hashable]] = [
    torch.is_inference_mode_enabled,
    torch.get_default_dtype,
    torch.are_deterministic_algorithms_enabled,
    _CUDA.flash_sdp_enabled,
    _CUDA.mem_efficient_sdp_enabled,
    _CUDA.math_sdp_enabled,
    _CUDA.cudnn_sdp_enabled,
    _getter("_get_cudnn_enabled", lambda: _CUDNN.enabled),
    _getter("_get_cudnn_benchmark", lambda: _CUDNN.benchmark),
    _getter("_get_cudnn_deterministic", lambda: _CUDNN.deterministic),
    _getter("_get_cublas_allow_fp16_accumulation", lambda: _CUDA.matmul.allow_fp16_accumulation),
    _getter(
        "_get_cublas_allow_fp16_reduced_precision_reduction",
        lambda: _CUDA.matmul.allow_fp16_reduced_precision_reduction,
    ),
    _getter(
        "_get_cublas_allow_bf16_reduced_precision_reduction",
        lambda: _CUDA.matmul.allow_bf16_reduced_precision_reduction,
    ),
    # What the older allow_tf32 and set_float32_matmul_precision set too; reading those fails once these are set.
    lambda: _CUDA.matmul.fp32_precision,
    lambda: _CUDNN.conv.fp32_precision,
    lambda: _CUDNN.rnn.fp32_precision,
]


def flags(device: torch.device) -> Hashable:
    """The switches of PyTorch that choose kernels."""
    autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
    return (autocast, *[switch() for switch in _SWITCHES])
