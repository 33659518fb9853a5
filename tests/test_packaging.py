"""What a user installs: what importing costs, the package without its compiled part, wheels, what a build says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import textwrap
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "csrc"))
import toolchain  # noqa: E402

VARIABLES = ("FASTDIFF_BUILD", "FASTDIFF_TORCH", "FASTDIFF_WERROR", "FASTDIFF_BACKEND", "FASTDIFF_CPU", "CXX")


def run(
    *command: str | Path, cwd: Path = ROOT, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python with ``command``; the build's own variables are those given, no others."""
    inherited = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    environment = {**inherited, **(variables or {})}
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def succeed(*command: str | Path, cwd: Path = ROOT, variables: Mapping[str, str] | None = None) -> str:
    """Run Python, which must succeed, and return what it printed."""
    done = run(*command, cwd=cwd, variables=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def script(text: str) -> str:
    return succeed("-c", textwrap.dedent(text))


def from_folder(folder: Path, *command: str) -> str:
    """Run Python where fastdiff comes from ``folder`` alone, even if this environment has an editable install."""
    path = os.pathsep.join([str(folder), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    return succeed("-S", *command, cwd=folder, variables={"PYTHONPATH": path})


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is under version control or could be, without anything that was built."""
    copy = tmp_path_factory.mktemp("sources")
    built = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    for name in ("csrc", "fastdiff", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=built)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def sdist(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, as a file."""
    folder = tmp_path_factory.mktemp("sdist")
    succeed("setup.py", "-q", "sdist", "-d", folder, cwd=sources)
    return next(folder.glob("*.tar.gz"))


def names_in(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_importing_adds_nothing_but_fastdiff() -> None:
    """No compiler, no CUDA, no other package; torch's lazy parts stay unloaded."""
    script("""
        import sys, numpy, torch
        before = set(sys.modules)
        import fastdiff
        added = {name for name in set(sys.modules) - before if not name.startswith("fastdiff")}
        foreign = {name.split(".")[0] for name in added} - set(sys.stdlib_module_names)
        assert foreign <= {"torch", "numpy"}, foreign
        lazy = {"torch._dynamo", "torch._inductor", "torch.utils.cpp_extension"} & added
        assert not lazy, lazy
        assert not torch.cuda.is_initialized()
    """)


def test_importing_takes_little_longer_than_torch() -> None:
    """In processor time, and the quickest of three: other work on the machine only ever adds."""
    seconds = script("""
        import time, numpy, torch
        start = time.process_time()
        import fastdiff
        print(time.process_time() - start)
    """)
    for _ in range(2):
        if float(seconds) < 0.2:
            break
        seconds = script("import time, torch; t = time.process_time(); import fastdiff; print(time.process_time() - t)")
    assert float(seconds) < 0.2


def test_the_package_works_without_its_compiled_part(sources: Path) -> None:
    """The reference backend runs, and says so once."""
    text = """
        import warnings, torch
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            from fastdiff import ops
            for _ in range(3):
                ops.normal(torch.arange(2), (2, 3))
        ours = [str(w.message) for w in caught if "fastdiff" in str(w.message)]
        assert len(ours) == 1 and "reference backend" in ours[0], ours
    """
    assert not from_folder(sources, "-c", textwrap.dedent(text))
    report = from_folder(sources, "-m", "fastdiff")
    assert "none was built" in report and "reference backend" in report


def test_the_report_names_what_was_built_and_what_runs() -> None:
    report = succeed("-m", "fastdiff")
    for part in ("running", "compiled", "backends", "cpu: ", "cuda: "):
        assert part in report
    refused = run("-m", "fastdiff", "convert", "a.pkl")
    assert refused.returncode == 1 and "Try: fastdiff convert a.pkl" in refused.stderr


def test_a_source_distribution_holds_every_source(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for folder in ("csrc", "fastdiff"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix not in (".pyc", ".so"):
                assert str(path.relative_to(ROOT)) in held
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "setup.py"} <= held


def test_a_pure_python_wheel(sources: Path, tmp_path: Path) -> None:
    succeed("setup.py", "-q", "bdist_wheel", "-d", tmp_path, cwd=sources, variables={"FASTDIFF_BUILD": "none"})
    (wheel,) = tmp_path.glob("*.whl")
    names = names_in(wheel)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "fastdiff/py.typed" in names
    assert {"fastdiff/" + str(p.relative_to(ROOT / "fastdiff")) for p in (ROOT / "fastdiff/assets").glob("*.*")} <= set(
        names
    )
    assert not [name for name in names if name.endswith(".so") or name.startswith(("csrc", "tests"))]


@pytest.mark.slow
def test_pip_builds_a_wheel_from_the_sdist_with_the_installed_torch(sdist: Path, tmp_path: Path) -> None:
    """As `pip install` does it, isolation included; optimisation is off to be quicker."""
    done = run("-m", "pip", "wheel", "-v", "--no-deps", "-w", tmp_path, sdist, variables={"CXXFLAGS": "-O0"})
    if "No matching distribution found for setuptools" in done.stdout + done.stderr:
        pytest.skip("pip reaches no package index")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "torch-" not in done.stdout, "the isolated build must not fetch a torch of its own"
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    report = from_folder(tmp_path / "installed", "-m", "fastdiff")
    assert str(tmp_path / "installed") in report and "cpu backend (compiled)" in report


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"FASTDIFF_BUILD": "gpu"}, "FASTDIFF_BUILD='gpu' is not one of auto, none, cpu, cuda"),
        (
            {"FASTDIFF_BUILD": "cpu", "CXX": "no-such-compiler"},
            "no C++ compiler was found (looked for CXX=no-such-compiler)",
        ),
        ({"FASTDIFF_BUILD": "cpu", "FASTDIFF_TORCH": "/no-such-folder"}, "no torch >= 2.11 to build against"),
        ({"FASTDIFF_BUILD": "cuda", "CUDA_HOME": "/no-such-folder"}, "CUDA_HOME=/no-such-folder holds no CUDA toolkit"),
    ],
)
def test_a_build_that_cannot_be_ends_in_one_sentence(
    variables: dict[str, str], sentence: str, sources: Path, tmp_path: Path
) -> None:
    done = run("setup.py", "-q", "build_ext", "-b", tmp_path, "-t", tmp_path, cwd=sources, variables=variables)
    assert done.returncode == 1
    assert sentence in done.stderr and "Traceback" not in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("variables", [{"CXX": "no-such-compiler"}, {"FASTDIFF_TORCH": "/no-such-folder"}], ids=str)
def test_auto_goes_without_the_compiled_part_and_warns(
    variables: dict[str, str], sources: Path, tmp_path: Path
) -> None:
    said = succeed("setup.py", "-q", "build_ext", "-b", tmp_path, "-t", tmp_path, cwd=sources, variables=variables)
    assert "WITHOUT the compiled part" in said
    assert not list(tmp_path.rglob("*.so"))


def test_an_old_torch_is_refused_by_its_version(sources: Path, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/version.py").write_text("__version__ = '2.9.1+cpu'\n")
    variables = {"FASTDIFF_BUILD": "cpu", "FASTDIFF_TORCH": str(tmp_path)}
    done = run("setup.py", "-q", "build_ext", cwd=sources, variables=variables)
    assert done.returncode == 1 and "torch 2.9.1+cpu is too old" in done.stderr


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a CUDA 13 build of torch, a toolkit in ``cuda`` and, on PATH, a script that calls its nvcc."""
    for variable in (*VARIABLES, "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(variable, raising=False)
    files = {
        "torch/version.py": "__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\n",
        "torch/include/torch/csrc/stable/library.h": "",
        "cuda/include/cuda_runtime.h": "",
        "cuda/bin/nvcc": "\n".join([
            "#!/bin/sh",
            'case "$1" in',
            "  --version) echo 'Cuda compilation tools, release 13.0, V13.0.88';;",
            "  --dryrun) echo '#$ TOP='$(dirname $0)/..;;",
            "  --list-gpu-code) echo sm_80; echo sm_90;;",
            "esac",
        ]),
        "bin/nvcc": f'#!/bin/sh\nexec {tmp_path}/cuda/bin/nvcc "$@"\n',
    }  # fmt: skip
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("FASTDIFF_TORCH", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_auto_builds_cuda_for_a_cuda_torch_with_nvcc(machine: Path) -> None:
    """The toolkit is found behind the script on PATH; no GPU is asked for."""
    tools, message = toolchain.choose()
    assert tools is not None and tools.cuda is not None and message is None
    assert tools.cuda.home == machine / "cuda" and tools.cuda.version == "13.0"


def test_auto_leaves_cuda_out_for_a_cpu_torch(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "torch/version.py").write_text("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n")
    tools, message = toolchain.choose()
    assert tools is not None and tools.cuda is None and message is None
    monkeypatch.setenv("FASTDIFF_BUILD", "cuda")
    tools, _ = toolchain.choose()
    assert tools is not None and tools.cuda is not None


def test_a_toolkit_of_another_major_version_is_not_used(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "torch/version.py").write_text("__version__ = '2.11.0+cu126'\ncuda: Optional[str] = '12.6'\n")
    tools, message = toolchain.choose()
    assert tools is not None and tools.cuda is None
    assert message and "CUDA 13.0" in message and "CUDA 12.6" in message and "CPU part only" in message
    monkeypatch.setenv("FASTDIFF_BUILD", "cuda")
    with pytest.raises(toolchain.BuildError, match="major version"):
        toolchain.choose()


@pytest.mark.parametrize(
    ("listed", "flags"),
    [
        (None, ["compute_80,code=sm_80", "compute_90,code=[sm_90,compute_90]"]),
        ("9.0+PTX", ["compute_90,code=[sm_90,compute_90]"]),
        ("8.6 12.0", ["compute_86,code=sm_86", "compute_120,code=sm_120"]),
    ],
)
def test_architectures(machine: Path, monkeypatch: pytest.MonkeyPatch, listed: str | None, flags: list[str]) -> None:
    """The defaults are trimmed to what nvcc knows, PTX for the last; a list of the user's is taken as it is."""
    if listed:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    cuda = toolchain.find_cuda(toolchain.find_torch())
    assert toolchain.gencode_flags(cuda) == [f"-gencode=arch={flag}" for flag in flags]
