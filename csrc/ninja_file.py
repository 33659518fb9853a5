"""Write the build.ninja that compiles csrc: which source goes through which compiler, with which flags.

``fastdiff/_C.abi3.so``: ops.cpp and cpu/*.cpp, LibTorch's stable ABI: any Python >= 3.10, any torch >= 2.11.
``fastdiff/_cuda.abi3.so``: ops_cuda.cpp and cuda/*.cu, the same; apart, as a CPU-only torch cannot load it.
``fastdiff/_host``: host.cpp and cpu/*.cpp, pybind11, no torch; one for each Python.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

import toolchain

CSRC = Path(__file__).resolve().parent

# The CPU kernels are one source, compiled once for each instruction set; one is chosen at run time.
KERNELS = CSRC / "cpu/kernels.cpp"
X86_LEVELS = {f"v{n}": [f"-march=x86-64-v{n}"] for n in (2, 3, 4)}
LEVELS = X86_LEVELS if platform.machine().lower() in ("x86_64", "amd64") else {"generic": []}

# No contraction: all instruction sets give the same bits. The two -fno-* let loops with sqrt vectorise.
CXX_FLAGS = [
    *"-O3 -g0 -std=c++20 -fPIC -fvisibility=hidden".split(),
    *"-ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra".split(),
]
NVCC_FLAGS = [
    *"-O3 -std=c++20 -fmad=false --threads=2".split(),
    "-Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off,-Wall,-Wextra",
    "-Xptxas=-warn-spills,-warn-lmem-usage",
]
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DPy_LIMITED_API=0x030a0000"]


class NinjaFile:
    """The statements of one build.ninja.

    Args:
        tools: the compilers and the torch to build with.
        temp: the folder of the objects and of the generated header; it exists.
        outputs: the file to make for each extension: ``fastdiff._C``, ``fastdiff._host`` and, with CUDA,
            ``fastdiff._cuda``.
    """

    def __init__(self, tools: toolchain.Toolchain, temp: Path, outputs: dict[str, Path]) -> None:
        self.tools, self.temp, self.outputs = tools, temp, outputs
        self.werror = os.environ.get("FASTDIFF_WERROR", "0") not in ("", "0")
        self.flags = [*CXX_FLAGS, *["-Werror"] * self.werror, *shlex.split(os.environ.get("CXXFLAGS", ""))]
        self.link_flags = shlex.split(os.environ.get("LDFLAGS", ""))
        self.lines = ["ninja_required_version = 1.5", f"builddir = {_escape(str(temp))}"]

    def text(self) -> str:
        """Return the file's text; also writes the generated header, if it changed."""
        torch, python = self.tools.torch, ["-isystem", sysconfig.get_path("include")]
        abi = [*STABLE_ABI, *python, "-isystem", str(torch.root / "include")]
        self._rule("cxx", [*self.tools.cxx, "-c"], depfile=True)
        self._rule("link", [*self.tools.cxx, *_shared_flags()])

        cpu = [self._cxx(KERNELS, [*march, f"-DFASTDIFF_LEVEL={name}"], name) for name, march in LEVELS.items()]
        cpu += [self._cxx(source) for source in sorted(CSRC.glob("cpu/*.cpp")) if source != KERNELS]
        torch_libraries = [f"-L{torch.root / 'lib'}", "-ltorch_cpu", "-lc10"]
        self._link(self.outputs["fastdiff._C"], [self._cxx(CSRC / "ops.cpp", abi), *cpu], torch_libraries)

        write_if_changed(self.temp / "build_info.h", self._build_info())
        pybind11 = ["-isystem", str(toolchain.pybind11_include(torch)), f"-I{self.temp}"]
        self._link(self.outputs["fastdiff._host"], [self._cxx(CSRC / "host.cpp", [*pybind11, *python]), *cpu])

        if self.tools.cuda:
            self._add_cuda(self.tools.cuda, abi, torch_libraries)
        return "\n".join(self.lines) + "\n"

    def _add_cuda(self, cuda: toolchain.Cuda, abi: Sequence[str], torch_libraries: Sequence[str]) -> None:
        warnings = ["-Werror=all-warnings", "-Xcompiler=-Werror"] * self.werror
        flags = [*NVCC_FLAGS, *warnings, *toolchain.gencode_flags(cuda)]
        self._rule("nvcc", [str(cuda.nvcc), "-c", *flags], depfile=True)
        objects = [
            self._build("nvcc", self.temp / f"{source.stem}.cu.o", [source], [f"-I{CSRC}"])
            for source in sorted(CSRC.glob("cuda/*.cu"))
        ]
        include = ["-DUSE_CUDA", "-isystem", str(cuda.home / "include")]
        objects.append(self._cxx(CSRC / "ops_cuda.cpp", [*abi, *include]))
        libraries = [*torch_libraries, str(toolchain.cuda_runtime(cuda))]
        if self.tools.torch.cuda:
            libraries += ["-ltorch_cuda"]
        else:  # a CPU-only torch has no libtorch_cuda: an empty one gives the entry that the loader will need
            empty = self.temp / "empty.cpp"
            write_if_changed(empty, "")
            objects.append(self._link(self.temp / "libtorch_cuda.so", [empty], ["-Wl,-soname,libtorch_cuda.so"]))
        self._link(self.outputs["fastdiff._cuda"], objects, libraries)

    def _build_info(self) -> str:
        """Return the header that host.cpp's build_info() reads."""
        cuda = self.tools.cuda
        values = {
            "COMPILER": toolchain.compiler_version(self.tools.cxx),
            "TORCH": self.tools.torch.version,
            "CUDA": cuda.version if cuda else "",
            "ARCHS": " ".join(f.split(",code=")[1] for f in toolchain.gencode_flags(cuda)) if cuda else "",
            "GIT": toolchain.source_commit(CSRC.parent),
            "FLAGS": " ".join(self.flags),
        }
        escaped = {key: value.replace("\\", "\\\\").replace('"', '\\"') for key, value in values.items()}
        lines = [f'#define FASTDIFF_BUILD_INFO_{key} "{value}"\n' for key, value in escaped.items()]
        return "#pragma once\n" + "".join(lines)

    def _cxx(self, source: Path, flags: Iterable[str] = (), suffix: str = "") -> Path:
        target = self.temp / f"{source.stem}{suffix and '_' + suffix}.o"
        return self._build("cxx", target, [source], [*self.flags, f"-I{CSRC}", *flags])

    def _link(self, output: Path, objects: Iterable[Path], libraries: Iterable[str] = ()) -> Path:
        return self._build("link", output, objects, [*self.link_flags, *libraries])

    def _rule(self, name: str, command: Sequence[str], depfile: bool = False) -> None:
        dependencies = " -MD -MF $out.d" if depfile else ""
        self.lines += [f"rule {name}", f"  command = {_quote(command)}{dependencies} -o $out $in $flags"]
        self.lines += [f"  description = {name} $out"]
        if depfile:
            self.lines += ["  depfile = $out.d", "  deps = gcc"]

    def _build(self, rule: str, output: Path, inputs: Iterable[Path], flags: Iterable[str]) -> Path:
        sources = " ".join(_escape(str(path)) for path in inputs)
        self.lines += [f"build {_escape(str(output))}: {rule} {sources}", f"  flags = {_quote(flags)}"]
        return output


def write_if_changed(path: Path, text: str) -> None:
    """Write ``text``, leaving the file and its time alone when it holds it already."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def _shared_flags() -> list[str]:
    if sys.platform == "darwin":
        return ["-bundle", "-undefined", "dynamic_lookup"]
    return ["-shared", "-Wl,--no-as-needed"]


def _quote(arguments: Iterable[str]) -> str:
    return shlex.join(arguments).replace("$", "$$")


def _escape(path: str) -> str:
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
