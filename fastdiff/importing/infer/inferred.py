"""What the shapes of a state dict say about the network they are of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Inferred"]


@dataclass
class Inferred:
    """An architecture and its configuration, read off names and shapes of tensors.

    Attributes:
        architecture: a name of `ARCHITECTURES`.
        config: constructor arguments: those found, those assumed, and over them those given.
        found: what in the tensors says so, for each argument that they settle ("input_blocks.0.0.weight").
        assumed: why this value, for each argument that no tensor shows ("the published default").
        missing: arguments that must be given: no tensor shows them, and no value goes without saying. `config` lacks
            them.
    """

    architecture: str
    config: dict[str, Any]
    found: dict[str, str] = field(default_factory=dict)
    assumed: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
