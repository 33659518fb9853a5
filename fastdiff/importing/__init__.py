"""Reading what other projects have published, without running any of it."""

from __future__ import annotations

from .checkpoint import Checkpoint, open_checkpoint
from .load import Converted, convert, load

__all__ = ["Checkpoint", "Converted", "convert", "load", "open_checkpoint"]
