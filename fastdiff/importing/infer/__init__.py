"""Configurations of networks whose files hold tensors only, one module for each family of architectures.

A family's module has `infer(shapes, given) -> Inferred | None`: None if the names are not of its networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from .inferred import Inferred

__all__ = ["Inferred", "infer"]

_FAMILIES = ("edm", "ncsnpp", "dg", "adm")  # the more particular before the more general


def infer(shapes: Mapping[str, Sequence[int]], given: Mapping[str, Any] | None = None) -> Inferred:
    """The network that tensors of these names and shapes are of.

    Args:
        shapes: of every tensor of the state dict, by name.
        given: constructor arguments that the caller knows; "architecture" among them settles the class.

    Raises:
        ValueError: no architecture has such tensors; or what was given contradicts them.
    """
    given = dict(given or {})
    for family in _FAMILIES:
        found: Inferred | None = import_module(f"{__name__}.{family}").infer(shapes, given)
        if found is not None:
            return found
    some = ", ".join(list(shapes)[:3])
    raise ValueError(f"no known architecture has tensors of these names ({some}, ...); give the configuration")
