"""How many PyTorch operations a piece of code dispatches, and the bytes of the states they read and write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class Count:
    """Operations, views apart; bytes of tensors with at least as many elements as a state; values read by the host."""

    operations: int = 0
    bytes: int = 0
    reads: int = 0


class _Counter(TorchDispatchMode):
    def __init__(self, elements: int):
        super().__init__()
        self.count, self._elements = Count(), elements

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        taken = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if func is torch.ops.aten._local_scalar_dense.default:
            self.count.reads += 1
        elif not _is_view(func):
            self.count.operations += 1
            states = [tensor for tensor in (*taken, *made) if tensor.numel() >= self._elements]
            self.count.bytes += sum(tensor.numel() * tensor.element_size() for tensor in states)
        return result


def _is_view(func: Any) -> bool:
    """Whether an operation computes nothing: a view, or memory that is yet to be written."""
    if func._schema.name in ("aten::detach", "aten::empty", "aten::empty_like", "aten::lift_fresh"):
        return True
    aliases = [value.alias_info for value in func._schema.arguments if value.alias_info is not None]
    return bool(aliases) and not any(alias.is_write for alias in aliases)


def count(call: Callable[[], Any], elements: int) -> Count:
    """What one call dispatches.

    Args:
        elements: of a state; smaller tensors count as operations, but not as traffic.
    """
    with torch.no_grad(), _Counter(elements) as counter:
        call()
    return counter.count
