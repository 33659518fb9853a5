"""A checkpoint as it was read: its tensors, and what the file says about the network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["Checkpoint"]


@dataclass
class Checkpoint:
    """What a file holds, whatever its format.

    Attributes:
        source: the file, as the user named it.
        format: "edm-pickle", "torch", "torch-legacy", "safetensors", "score-sde", "diffusers" or "fastdiff".
        tensors: the network's state dict, in the dtypes stored; checked by nothing but the reader yet.
        architecture: a name of `ARCHITECTURES`; None if the file does not say.
        config: its constructor's arguments; None if the file does not say.
        metadata: what the file says beside: how the output is read (see `fastdiff.opening`).
        notes: what was left behind, what was chosen ("weights: ema", "augment_pipe is not used").
    """

    source: str
    format: str
    tensors: dict[str, Tensor]
    architecture: str | None = None
    config: dict[str, Any] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
