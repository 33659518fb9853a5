"""Build fastdiff's compiled part with ninja; everything else about the package is in pyproject.toml.

``python setup.py -q build_ext --inplace`` rebuilds what changed, in the source tree. What is built follows
from FASTDIFF_BUILD, torch and nvcc (csrc/toolchain.py lists the variables), never from a visible GPU. CXXFLAGS,
LDFLAGS and MAX_JOBS apply; FASTDIFF_WERROR=1 makes every warning an error, of register spills too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))

import ninja_file  # noqa: E402
import toolchain  # noqa: E402


class NinjaBuild(build_ext):
    """Builds all extensions with one run of ninja."""

    def build_extensions(self) -> None:
        assert TOOLCHAIN is not None  # there are no extensions without it
        temp = Path(self.build_temp).resolve()
        temp.mkdir(parents=True, exist_ok=True)
        outputs = {e.name: Path(self.get_ext_fullpath(e.name)).resolve() for e in self.extensions}
        package = outputs["fastdiff._host"].parent
        package.mkdir(parents=True, exist_ok=True)
        if "fastdiff._cuda" not in outputs:  # one that an earlier build left must not be taken for this build's
            (package / "_cuda.abi3.so").unlink(missing_ok=True)
        file = temp / "build.ninja"
        ninja_file.write_if_changed(file, ninja_file.NinjaFile(TOOLCHAIN, temp, outputs).text())
        command = [toolchain.find_ninja(), "-f", str(file)]
        command += ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        command += [] if self.verbose else ["--quiet"]
        if subprocess.run(command, check=False).returncode:
            raise toolchain.BuildError(
                "fastdiff: the compiled part did not build (the compiler's message is above); "
                "FASTDIFF_BUILD=none installs without it, on the slow reference backend."
            )

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        if TOOLCHAIN is None or TOOLCHAIN.cuda is None:
            (ROOT / "fastdiff/_cuda.abi3.so").unlink(missing_ok=True)


class Sdist(sdist):
    """Adds what a build needs beside the package; the fixed top level has no MANIFEST.in."""

    def make_distribution(self) -> None:
        files = [path for folder in ("csrc", "tests") for path in sorted((ROOT / folder).rglob("*"))]
        kept = [path for path in files if path.is_file() and "__pycache__" not in path.parts]
        self.filelist.extend([str(path.relative_to(ROOT)) for path in kept])
        self.filelist.append("CHANGELOG.md")
        self.filelist.remove_duplicates()
        super().make_distribution()


def extensions() -> list[Extension]:
    """Return the extensions to build; ninja_file.py knows their sources."""
    if TOOLCHAIN is None:
        return []
    stable = ["fastdiff._C"] + ["fastdiff._cuda"] * (TOOLCHAIN.cuda is not None)
    return [Extension(name, [], py_limited_api=True) for name in stable] + [Extension("fastdiff._host", [])]


TOOLCHAIN, MESSAGE = toolchain.choose()
if MESSAGE and {"build", "build_ext", "bdist_wheel", "editable_wheel", "develop", "install"} & set(sys.argv):
    print(f"\n{'*' * 100}\n{MESSAGE}\n{'*' * 100}\n", file=sys.stderr)

setup(ext_modules=extensions(), cmdclass={"build_ext": NinjaBuild, "sdist": Sdist})
