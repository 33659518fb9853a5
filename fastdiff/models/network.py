"""What every network of this package has in common, and the register of architectures that model files name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import nn

__all__ = ["ARCHITECTURES", "FACTS", "Facts", "Network", "architecture", "build"]

KINDS = ("denoiser", "classifier", "discriminator", "features")
MOST = 1 << 24  # of a number in a configuration
DEEPEST = 256  # of the numbers of blocks, and of entries of a list
DEPTHS = ("blocks", "depth", "num_blocks", "num_res_blocks")

C = TypeVar("C", bound=type[nn.Module])


@dataclass(frozen=True)
class Facts:
    """What is known of an architecture.

    Attributes:
        kind: what it is for, one of `KINDS`.
        source: the paper, or the project, that it is from.
    """

    kind: str
    source: str


ARCHITECTURES: dict[str, type[nn.Module]] = {}
FACTS: dict[str, Facts] = {}


class Network(nn.Module):
    """A network that a model file can hold.

    Attributes:
        config: the constructor's arguments, JSON-serialisable; `build(type(network).__name__, config)` makes the same.
        metadata: what the file says beside the weights: how the output is read, where the weights are from; empty for
            a fresh network.
        sample_shape: (C, H, W) of one sample; None if it takes several.
        label_dim: number of classes, 0 for an unconditional network.
    """

    config: dict[str, Any]
    sample_shape: tuple[int, ...] | None = None
    label_dim: int = 0

    def __init__(self) -> None:
        super().__init__()
        self.metadata: dict[str, Any] = {}


def architecture(kind: str, source: str) -> Callable[[C], C]:
    """Registers a network under its class's name. Arguments of its constructor become its `config`, unless the class
    sets that itself.

    Args:
        kind: "denoiser", "classifier", "discriminator" or "features".
        source: the paper or project.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")

    def register(cls: C) -> C:
        if cls.__name__ in ARCHITECTURES:
            raise ValueError(f"architecture {cls.__name__!r} is registered already")
        ARCHITECTURES[cls.__name__], FACTS[cls.__name__] = cls, Facts(kind, source)
        init, signature = cls.__init__, inspect.signature(cls.__init__)

        @wraps(init)
        def recorded(self: Any, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            if type(self) is cls and "config" not in self.__dict__:
                bound = signature.bind(self, *args, **kwargs)
                bound.apply_defaults()
                self.config = _plain(_arguments(bound, signature))

        cls.__init__ = recorded  # type: ignore[method-assign]
        return cls

    return register


def build(name: str, config: Mapping[str, Any], device: str | torch.device = "meta", **modules: nn.Module) -> nn.Module:
    """The network of a configuration, in evaluation mode; on the device "meta" its tensors have shapes only.

    Args:
        name: of `ARCHITECTURES`; config: its constructor's arguments, as JSON has them.
        modules: arguments that are networks already.

    Raises:
        ValueError: there is no such architecture, or the configuration does not make one: an unknown, missing or
            mistyped argument, or sizes beyond all use.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}; known: {', '.join(sorted(ARCHITECTURES))}")
    arguments = _read(config, "config")
    with torch.device(device):
        try:
            return ARCHITECTURES[name](**{**arguments, **modules}).eval()
        except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, IndexError, RuntimeError) as error:
            reason = str(error) or type(error).__name__
            raise ValueError(f"the configuration does not build a {name}: {reason}") from None


def _arguments(bound: inspect.BoundArguments, signature: inspect.Signature) -> dict[str, Any]:
    """By name, without self; those of `**kwargs` beside the others."""
    found: dict[str, Any] = {}
    for name, value in list(bound.arguments.items())[1:]:
        variadic = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        found.update(value if variadic else {name: value})
    return found


def _plain(value: Any) -> Any:
    """As JSON has it: lists for tuples, "inf" for infinity."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"an argument of a network must be a number, a string or a list of them, got {value!r}")


def _read(value: Any, name: str, depth: int = 0) -> Any:
    """The arguments that JSON stands for, none beyond all use."""
    if depth > 8:
        raise ValueError(f"{name}: nested more than 8 deep")
    if isinstance(value, Mapping):
        return {str(key): _read(each, str(key), depth + 1) for key, each in value.items()}
    if isinstance(value, str):
        return {"inf": math.inf, "-inf": -math.inf}.get(value, value)
    if isinstance(value, Sequence):
        if len(value) > DEEPEST:
            raise ValueError(f"{name} must have at most {DEEPEST} entries, got {len(value)}")
        return [_read(each, name, depth + 1) for each in value]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        most = DEEPEST if name in DEPTHS else MOST
        if not (math.isinf(value) or abs(value) <= most):
            raise ValueError(f"{name} must be at most {most}, got {value}")
    return value
