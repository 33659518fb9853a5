"""One thread for tensors of 192 numbers; the largest error of every family at the end of a run."""

from __future__ import annotations

from ..threads import one_thread
from .cases import worst_errors

__all__ = ["one_thread"]


def pytest_terminal_summary(terminalreporter):
    if worst_errors:
        terminalreporter.section("largest conformance errors", sep="-")
        for key, value in sorted(worst_errors.items()):
            terminalreporter.line(f"{key:<48} {value:.1e}")
