"""``python -m fastdiff``: what was built, against which torch, what runs, which backend will be used and why."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import torch

from . import __version__, ops

_VARIABLES = ("FASTDIFF_BACKEND", "FASTDIFF_CPU")


def report() -> Iterator[tuple[str, str]]:
    """Yield the report's lines as (name, text); an empty name continues the line before."""
    yield "fastdiff", f"{__version__} in {Path(__file__).parent}"
    yield "running", f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}"
    yield from _compiled_part()
    name = "backends"
    for line in ops.explain():
        yield name, line
        name = ""
    for variable in _VARIABLES:
        if os.environ.get(variable):
            yield variable, os.environ[variable]


def _compiled_part() -> Iterator[tuple[str, str]]:
    try:
        _host = import_module("fastdiff._host")
    except ImportError as error:
        reason = "none was built" if isinstance(error, ModuleNotFoundError) else f"does not load: {error}"
        yield "compiled", f"{reason}; a C++ compiler and `pip install .` from the sources make it"
        return
    info = _host.build_info()
    yield "compiled", f"against torch {info['torch']}, from commit {info['git']}"
    yield "", f"by {info['compiler']}"
    yield "", f"with {info['flags']}"
    cuda = f"{info['cuda']} for {info['archs']}" if info["cuda"] else "not built"
    yield "CUDA part", cuda
    try:
        yield "CPU level", f"{_host.cpu_level()} of {', '.join(_host.cpu_levels())}"
    except (RuntimeError, ValueError) as error:  # FASTDIFF_CPU names what this machine cannot run
        yield "CPU level", str(error)


def main() -> None:
    """Print the report; the commands are `fastdiff`'s."""
    if sys.argv[1:]:
        sys.exit(f"python -m fastdiff takes no arguments: it prints a report. Try: fastdiff {' '.join(sys.argv[1:])}")
    for name, text in report():
        print(f"{name:<10} {text}")


if __name__ == "__main__":
    main()
