"""The PEP 517 backend: setuptools, building against the torch that is already installed.

Were torch a build requirement, every isolated ``pip install .`` would download the newest one (gigabytes)
although one is installed. So it is requested only when none is found. Which version it is does not matter:
the compiled part uses LibTorch's stable ABI.
"""

from __future__ import annotations

from typing import Any

from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

import toolchain

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Return what a wheel requires beyond pyproject.toml: torch, if a compiled build lacks only that."""
    if toolchain.build_mode() == "none":
        return []
    try:
        toolchain.find_compiler()
    except toolchain.BuildError:
        return []  # setup.py says so
    try:
        toolchain.find_torch()
    except toolchain.BuildError:
        return ["torch>=" + ".".join(map(str, toolchain.TORCH_MINIMUM))]
    return []


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Return the requirements of an editable install: a wheel's."""
    return get_requires_for_build_wheel(config_settings)


def get_requires_for_build_sdist(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Return the requirements of a source distribution: none, it compiles nothing."""
    return []
