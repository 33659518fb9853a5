"""Find what a build needs: torch's headers, a C++ compiler, ninja, nvcc.

Used by ``setup.py`` and by the PEP 517 backend beside this file. Nothing here imports torch or asks for a GPU:
with LibTorch's stable ABI its folder and version are enough, and few build machines have a GPU.

Environment:
    FASTDIFF_BUILD       auto (default) | none | cpu | cuda
    FASTDIFF_TORCH       the folder of the ``torch`` package to build against, if it is not found by itself
    CXX, CUDA_HOME       the compilers; CUDA_HOME wins over an nvcc on PATH
    TORCH_CUDA_ARCH_LIST CUDA architectures, in torch's notation ("8.0;9.0+PTX")
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import site
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MODES = ("auto", "none", "cpu", "cuda")
TORCH_MINIMUM = (2, 11)
DEFAULT_ARCHS = ("8.0", "9.0", "10.0")  # and PTX of the last for GPUs to come


class BuildError(SystemExit):
    """Ends a build with one sentence instead of a traceback."""


@dataclass(frozen=True)
class Torch:
    """An installed torch: its folder, version, and the CUDA version it was built with (None: a CPU build)."""

    root: Path
    version: str
    cuda: str | None


@dataclass(frozen=True)
class Cuda:
    """A CUDA toolkit: its root folder, its nvcc and its version."""

    home: Path
    nvcc: Path
    version: str


@dataclass(frozen=True)
class Toolchain:
    """What the build uses; ``cuda`` is None when only the CPU part is built."""

    torch: Torch
    cxx: tuple[str, ...]
    cuda: Cuda | None


def build_mode() -> str:
    """Return the value of FASTDIFF_BUILD, checked.

    Raises:
        BuildError: if it is not one of ``MODES``.
    """
    mode = os.environ.get("FASTDIFF_BUILD", "") or "auto"
    if mode not in MODES:
        raise BuildError(f"fastdiff: FASTDIFF_BUILD={mode!r} is not one of {', '.join(MODES)}.")
    return mode


def choose() -> tuple[Toolchain | None, str | None]:
    """Decide what to build.

    Returns:
        The toolchain (None for a pure-Python build) and a sentence for the user, if there is one to say.

    Raises:
        BuildError: in mode ``cpu`` or ``cuda``, when something that the mode needs is missing.
    """
    mode = build_mode()
    if mode == "none":
        return None, None
    try:
        torch, cxx = find_torch(), find_compiler()
    except BuildError as error:
        if mode != "auto":
            raise
        return (
            None,
            f"{error} Building WITHOUT the compiled part: fastdiff will run on its slow reference backend.",
        )
    if mode == "cpu" or (mode == "auto" and torch.cuda is None):
        return Toolchain(torch, cxx, None), None
    try:
        return Toolchain(torch, cxx, find_cuda(torch)), None
    except BuildError as error:
        if mode == "cuda":
            raise
        return Toolchain(torch, cxx, None), f"{error} Building the CPU part only."


def find_torch() -> Torch:
    """Find torch in the running environment, or in the one that an isolated build was started from.

    Raises:
        BuildError: if no torch of at least ``TORCH_MINIMUM`` is found.
    """
    wanted = ".".join(map(str, TORCH_MINIMUM))
    refused = ""
    for root in _torch_candidates():
        version_file = root / "version.py"
        if not version_file.is_file():
            continue
        text = version_file.read_text(encoding="utf-8")
        version = _assigned(text, "__version__") or "0"
        if tuple(map(int, re.findall(r"\d+", version)[:2])) < TORCH_MINIMUM:
            refused = refused or f" (torch {version} is too old)"
        elif not (root / "include/torch/csrc/stable/library.h").is_file():
            refused = refused or f" (torch {version} came without its C++ headers)"
        else:
            return Torch(root, version, _assigned(text, "cuda"))
    raise BuildError(f"fastdiff: no torch >= {wanted} to build against{refused}: pip install torch first.")


def _assigned(text: str, name: str) -> str | None:
    """Return the string that ``text`` assigns to ``name``, or None."""
    match = re.search(rf"^{name}\b[^=\n]*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return match.group(1) if match else None


def _torch_candidates() -> Iterator[Path]:
    """Yield where torch may be, nearest first; pip, uv and ``build`` hide the user's packages each in its way."""
    explicit = os.environ.get("FASTDIFF_TORCH")
    if explicit:
        yield Path(explicit) / "torch"
        yield Path(explicit)
        return
    spec = importlib.util.find_spec("torch")
    if spec and spec.submodule_search_locations:
        yield from map(Path, spec.submodule_search_locations)
    # pip keeps the target's interpreter and only masks its site-packages.
    yield Path(sysconfig.get_path("platlib")) / "torch"
    yield Path(sysconfig.get_path("purelib")) / "torch"
    # `python -m build` leaves these two; uv overwrites VIRTUAL_ENV, the activated one survives only on PATH.
    environments = [os.environ.get("VIRTUAL_ENV"), os.environ.get("CONDA_PREFIX")]
    for entry in os.environ.get("PATH", "").split(os.pathsep):
        if (Path(entry).parent / "pyvenv.cfg").is_file():
            environments.append(str(Path(entry).parent))
    for environment in filter(None, environments):
        yield from sorted(Path(environment).glob("lib/python3*/site-packages/torch"))
    for folder in [*site.getsitepackages(), site.getusersitepackages()]:
        yield Path(folder) / "torch"


def find_compiler() -> tuple[str, ...]:
    """Return the C++ compiler's command: CXX, or the first of c++, g++, clang++ on PATH.

    Raises:
        BuildError: if there is none, or Python's headers are missing, or the platform is not supported.
    """
    if os.name != "posix":
        raise BuildError("fastdiff: the compiled part is built on Linux and macOS only.")
    named = shlex.split(os.environ.get("CXX", ""))
    found = [command for command in named[:1] or ["c++", "g++", "clang++"] if shutil.which(command)]
    if not found:
        looked = f"CXX={named[0]}" if named else "c++, g++ or clang++ on PATH"
        raise BuildError(f"fastdiff: no C++ compiler was found (looked for {looked}).")
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").is_file():
        raise BuildError("fastdiff: no Python.h was found: install Python's development headers (python3-dev).")
    return (found[0], *named[1:])


def find_ninja() -> str:
    """Return the path of ninja.

    Raises:
        BuildError: if it is neither installed as a package nor on PATH.
    """
    spec = importlib.util.find_spec("ninja")
    if spec and spec.origin:
        module = importlib.import_module("ninja")
        binary = Path(getattr(module, "BIN_DIR", "")) / "ninja"
        if binary.is_file():
            return str(binary)
    on_path = shutil.which("ninja")
    if not on_path:
        raise BuildError("fastdiff: ninja was not found: pip install ninja, or drop --no-build-isolation.")
    return on_path


def find_cuda(torch: Torch) -> Cuda:
    """Find a CUDA toolkit that fits ``torch``: CUDA_HOME, else the nvcc on PATH, wherever its wrapper leads.

    Raises:
        BuildError: if there is none, or its major version differs from the one torch was built with.
    """
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    root = Path(home) if home else _root_of(shutil.which("nvcc"))
    if root is None or not _is_toolkit(root):
        where = f"CUDA_HOME={home} holds" if home else "PATH holds"
        wanted = "nvcc and include/cuda_runtime.h"
        raise BuildError(f"fastdiff: {where} no CUDA toolkit ({wanted}): set CUDA_HOME.")
    nvcc = root / "bin/nvcc"
    match = re.search(r"release (\d+\.\d+)", _output([str(nvcc), "--version"]))
    version = match.group(1) if match else "unknown"
    if torch.cuda and torch.cuda.split(".")[0] != version.split(".")[0]:
        raise BuildError(
            f"fastdiff: nvcc is of CUDA {version} but torch {torch.version} was built with CUDA "
            f"{torch.cuda}: set CUDA_HOME to a toolkit of torch's major version."
        )
    return Cuda(root, nvcc, version)


def _root_of(nvcc: str | None) -> Path | None:
    """Return the toolkit's root for an nvcc on PATH, be it a link or a script that calls the real one."""
    if nvcc is None:
        return None
    root = Path(nvcc).resolve().parent.parent
    if _is_toolkit(root):
        return root
    steps = _output([nvcc, "--dryrun", "-x", "cu", "-E", os.devnull])
    told = re.search(r"^#\$ TOP=(.+)$", steps, re.MULTILINE)
    return Path(told.group(1).strip()).resolve() if told else None


def _is_toolkit(root: Path) -> bool:
    return (root / "bin/nvcc").is_file() and (root / "include/cuda_runtime.h").is_file()


def cuda_runtime(cuda: Cuda) -> Path:
    """Return the shared CUDA runtime to link; pip's toolkit has it under its versioned name only, in ``lib``.

    Raises:
        BuildError: if the toolkit has none.
    """
    for folder in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
        for library in sorted((cuda.home / folder).glob("libcudart.so*")):
            return library
    raise BuildError(f"fastdiff: the CUDA toolkit in {cuda.home} has no libcudart.so.")


def gencode_flags(cuda: Cuda) -> list[str]:
    """Return nvcc's architecture flags for TORCH_CUDA_ARCH_LIST, or for those of the defaults that it knows.

    Raises:
        BuildError: if the list names something that is no architecture.
    """
    names = re.split(r"[;,\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip())
    if names == [""]:
        known = set(re.findall(r"sm_(\w+)", _output([str(cuda.nvcc), "--list-gpu-code"])))
        names = [name for name in DEFAULT_ARCHS if name.replace(".", "") in known]
        names[-1] += "+PTX"
    flags = []
    for name in names:
        match = re.fullmatch(r"(\d+)\.(\d+[af]?)(\+PTX)?", name)
        if not match:
            raise BuildError(f"fastdiff: TORCH_CUDA_ARCH_LIST names {name!r}: write 9.0 or 9.0+PTX.")
        arch = match.group(1) + match.group(2)
        targets = f"[sm_{arch},compute_{arch}]" if match.group(3) else f"sm_{arch}"
        flags.append(f"-gencode=arch=compute_{arch},code={targets}")
    return flags


def pybind11_include(torch: Torch) -> Path:
    """Return pybind11's include folder; torch carries a copy, for a build without isolation."""
    spec = importlib.util.find_spec("pybind11")
    if spec and spec.origin:
        return Path(spec.origin).parent / "include"
    return torch.root / "include"


def compiler_version(cxx: tuple[str, ...]) -> str:
    """Return the first line of the compiler's --version."""
    return _output([*cxx, "--version"]).splitlines()[0].strip()


def source_commit(root: Path) -> str:
    """Return the commit that last touched the sources, with a "+" if they differ from it, or "unknown"."""

    def git(*arguments: str) -> str:
        return _output(["git", "-C", str(root), *arguments]).strip()

    if not (root / ".git").exists() or not shutil.which("git"):
        return "unknown"
    commit = git("log", "-1", "--format=%h", "--", "csrc", "setup.py")
    return (commit or "unknown") + ("+" if git("status", "--porcelain", "--", "csrc", "setup.py") else "")


def _output(command: list[str]) -> str:
    """Run ``command`` and return what it printed on both streams; a failure shows in the text."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout
