"""One thread for tensors this small, and the emulator of CUDA graphs."""

from __future__ import annotations

from ..graphs.conftest import graphs
from ..threads import one_thread

__all__ = ["graphs", "one_thread"]
