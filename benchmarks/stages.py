"""The stages of `benchmarks/gpu.sh`: build, tests, compute-sanitizer, benchmarks -> benchmarks/results/GPU.json.

Each stage runs in processes of its own with a time limit. One that fails is recorded and the next one runs; the file is
written after every stage, and the exit status is 1 if any failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
TOTAL = 505.0  # seconds for everything; the benchmarks may exceed theirs by half a minute
LIMITS = {"build": 150.0, "operators": 110.0, "graphs": 70.0, "interpreter": 45.0, "sanitizer": 90.0, "forward": 45.0}
LEAST = 90.0  # seconds the benchmarks get in any case; they take all that is left
WORKERS = max(1, min(12, (os.cpu_count() or 1) - 2))  # for tests that compile more than they run
TOOLS = ("memcheck", "racecheck", "initcheck")

Stage = dict[str, Any]


class Process:
    """A command in the project's folder that is killed, with what it started, when its time is up."""

    def __init__(self, command: Sequence[str], limit: float, **environment: str):
        self._start, self._limit = time.monotonic(), limit
        self._log = tempfile.TemporaryFile("w+", errors="replace")
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self) -> Stage:
        """Its status (passed, failed, timeout), seconds, and the end of what it printed."""
        left = self._limit - (time.monotonic() - self._start)
        try:
            code: int | None = self._process.wait(max(0.1, left))
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            code = None
        seconds = time.monotonic() - self._start
        self._log.seek(0)
        output = self._log.read()
        self._log.close()
        status = "timeout" if code is None else "failed" if code else "passed"
        return {"status": status, "code": code, "seconds": seconds, "output": output}


def shortened(stage: Stage, lines: int) -> Stage:
    """A stage with the last lines of its output only; fewer if it passed."""
    kept = lines if stage["status"] != "passed" else min(lines, 3)
    return stage | {"output": stage["output"].strip().splitlines()[-kept:]}


def build(limit: float, capability: str) -> Stage:
    """Compile for the GPU that is there."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    found = {} if os.environ.get("CUDA_HOME") or shutil.which("nvcc") else {"CUDA_HOME": "/usr/local/cuda"}
    return Process(command, limit, FASTDIFF_BUILD="cuda", TORCH_CUDA_ARCH_LIST=capability, **found).wait()


def tests(limit: float, marks: str, paths: Sequence[str], workers: int = 1, **environment: str) -> Stage:
    """Tests by mark, with the numbers of passed, failed and skipped ones; several at once if pytest-xdist is there."""
    if not paths:
        return {"status": "skipped", "seconds": 0.0, "output": "there are no such tests"}
    report = Path(tempfile.mkdtemp()) / "report.xml"
    options = ["-q", "-m", marks, "-p", "no:cacheprovider", f"--junitxml={report}", "--durations=5"]
    if workers > 1 and importlib.util.find_spec("xdist") is not None:
        options += ["-n", str(workers)]
    stage = Process([sys.executable, "-m", "pytest", *options, *paths], limit, **environment).wait()
    if report.is_file():
        suite = ElementTree.parse(report).getroot()[0].attrib
        counts = {name: int(suite[name]) for name in ("tests", "failures", "errors", "skipped")}
        stage["counts"] = counts | {"passed": counts["tests"] - sum(list(counts.values())[1:])}
        if counts["tests"] == counts["skipped"]:
            stage["status"] = "failed"  # nothing ran: that is no success
    shutil.rmtree(report.parent)
    return stage


def sanitizer(limit: float) -> Stage:
    """compute-sanitizer's tools on `benchmarks.sanitize`, all at once: they are slow, and the GPU is large."""
    program = find_tool("compute-sanitizer")
    if program is None:
        return {"status": "skipped", "seconds": 0.0, "output": "compute-sanitizer was not found"}
    helped = subprocess.run([program, "--help"], capture_output=True, text=True, check=False).stdout
    option = "--kernel-name" if "--kernel-name" in helped else "--kernel-regex"  # its name before 2023
    import_filters = "from benchmarks.sanitize import filters; print(*filters())"
    found = subprocess.run(
        [sys.executable, "-c", import_filters], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if found.returncode:
        return {"status": "failed", "seconds": 0.0, "output": found.stderr}
    filters = [part for name in found.stdout.split() for part in (option, name)]
    running = {}
    for tool in TOOLS:
        for mode in ("eager", "graph"):
            checked = [program, "--tool", tool, "--error-exitcode", "1", *filters]
            alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if mode == "eager" else {}
            command = [*checked, sys.executable, "-m", "benchmarks.sanitize", mode]
            running[f"{tool} {mode}"] = Process(command, limit, **alone)
    runs, unsupported = {}, []
    for name, process in running.items():
        run = process.wait()
        unsupported.append("Device not supported" in run["output"])  # on some virtual machines
        summary = re.search(r"(?:ERROR|RACECHECK) SUMMARY: .*", run["output"])
        run["summary"] = summary.group(0) if summary else "no summary"
        if summary is None and run["status"] == "passed":
            run["status"] = "failed"
        findings = [line for line in run["output"].splitlines() if line.startswith("=========")]
        runs[name] = shortened(run, 40) | {"findings": findings[:60]}
    bad = [name for name, run in runs.items() if run["status"] != "passed"]
    if all(unsupported):
        return {"status": "skipped", "seconds": 0.0, "output": "compute-sanitizer does not support this device"}
    seconds = max(run["seconds"] for run in runs.values())
    output = f"not clean: {', '.join(bad)}" if bad else "clean"
    return {"status": "failed" if bad else "passed", "seconds": seconds, "runs": runs, "output": output}


def matrix(limit: float, out: Path, extra: Sequence[str]) -> Stage:
    """The benchmarks; they stop by themselves when their time is up."""
    seconds = ["--seconds", str(limit - 15)]
    return Process([sys.executable, "-m", "benchmarks.matrix", *seconds, "--out", str(out), *extra], limit + 30).wait()


def forward(limit: float, out: Path) -> Stage:
    """Forward time of a published network, what takes no compiling; its numbers go to a file of their own."""
    eager = ["SongUNet, float32, NCHW", "SongUNet, channels_last", "SongUNet, channels_last, bfloat16"]
    options = ["--device", "cuda", "--batch", "64", "--seconds", str(limit / 3), "--only", *eager]
    return Process([sys.executable, "-m", "benchmarks.forward", *options, "--out", str(out)], limit).wait()


def described() -> dict[str, Any]:
    """`benchmarks.system` of a process of its own."""
    run = Process([sys.executable, "-m", "benchmarks.system"], 60).wait()
    return json.loads(run["output"].splitlines()[-1]) if run["status"] == "passed" else {"error": run["output"]}


def find_tool(name: str) -> str | None:
    """A program of the CUDA toolkit: on PATH, beside nvcc, in CUDA_HOME or in the usual place."""
    nvcc = shutil.which("nvcc")
    folders = [Path(nvcc).resolve().parent] if nvcc else []
    folders += [Path(home) / "bin" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    return shutil.which(name) or next((str(f / name) for f in folders if (f / name).is_file()), None)


def main(arguments: list[str] | None = None) -> int:
    import torch  # late: a mistake in the arguments should not wait for it

    from benchmarks import system

    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description="See the head of benchmarks/gpu.sh.")
    parser.add_argument("--seconds", type=float, default=TOTAL, help="for everything")
    parser.add_argument(
        "--stages", default="build,operators,graphs,interpreter,sanitizer,forward,benchmarks", help="some of them only"
    )
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/GPU.json")
    given, extra = parser.parse_known_args(arguments)  # the rest goes to benchmarks.matrix
    start, wanted = time.monotonic(), given.stages.split(",")
    device = torch.device("cuda", torch.cuda.current_device())
    out = (given.out or ROOT / "benchmarks" / "results" / f"{system.slug(device)}.json").resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    capability = "{}.{}".format(*torch.cuda.get_device_capability(device))
    compiling = [str(path) for path in ("tests/gpu", "tests/ops") if (ROOT / path).is_dir()]
    triton = sorted(map(str, (ROOT / "tests" / "ops").glob("test_triton*.py")))
    steps = {
        "build": lambda limit: build(limit, capability),
        "operators": lambda limit: tests(limit, "cuda", compiling, WORKERS),
        "graphs": lambda limit: tests(limit, "cuda", ["tests/graphs"]),
        "interpreter": lambda limit: tests(limit, "not cuda", triton, WORKERS, CUDA_VISIBLE_DEVICES=""),
        "sanitizer": sanitizer,
        "forward": lambda limit: forward(limit, out.with_name(f"forward-{out.name}")),
        "benchmarks": lambda limit: matrix(limit, out.with_suffix(".part.json"), extra),
    }
    result: dict[str, Any] = {"stages": {}}
    for name, step in steps.items():
        if name not in wanted:
            continue
        print(f"== {name}", flush=True)
        left = given.seconds - (time.monotonic() - start)
        limit = min(LIMITS[name], max(10.0, left - LEAST)) if name in LIMITS else max(LEAST, left)
        try:
            stage = step(limit)
        except Exception as error:  # what stops one stage must not stop the others
            stage = {"status": "failed", "seconds": 0.0, "output": f"{type(error).__name__}: {error}"}
        short = shortened(stage, 60)
        print("\n".join(short["output"]), f"\n{name}: {stage['status']}, {stage['seconds']:.0f} s", flush=True)
        result["stages"][name] = short
        part = out.with_suffix(".part.json")
        if part.is_file():
            result |= json.loads(part.read_text())
            part.unlink()
        if "system" not in result:  # not before the build, which replaces what it would load
            result["system"] = described()
        out.write_text(json.dumps(result, indent=1) + "\n")
    bad = [name for name, stage in result["stages"].items() if stage["status"] not in ("passed", "skipped")]
    print(f"{out}: {'failed: ' + ', '.join(bad) if bad else 'all stages passed or skipped'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
