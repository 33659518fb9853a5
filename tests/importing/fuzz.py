"""Loads thousands of damaged and hostile checkpoint files, under limits of memory and time.

    python -m tests.importing.fuzz --count 10000 --memory 2G

Every file must give a network or a ModelFileError, in at most `--seconds` of CPU time; the process must not die. While
a file is being read, an audit hook watches what Python does: an import, anything compiled or executed, a process
started, any file opened but the checkpoint, is a finding, and so is a marker file that the hostile calls would leave.
The same seeds make the same files as long as the bases are the same: those of `made`, and with `--fixtures` the files
of the conformance folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fastdiff.importing import load
from fastdiff.models import ModelFileError
from fastdiff.models.io import save
from fastdiff.models.network import build

from ..conformance.cases import ROOT
from . import made
from .mutations import mutated

STALL = 120.0  # seconds without a sign of the worker, however busy the machine is
WATCHED = frozenset(
    "exec compile import pickle.find_class marshal.loads os.system os.exec os.fork os.posix_spawn os.spawn "
    "subprocess.Popen ctypes.dlopen ctypes.dlsym socket.__new__ os.remove os.rename os.mkdir os.link os.symlink "
    "os.truncate shutil.copyfile shutil.rmtree urllib.Request code.__new__".split()
)


@dataclass
class Outcome:
    """What came of one file: "loaded", "refused", or a finding ("error", "slow", "executed", "died", "hung")."""

    seed: int
    base: str
    done: str
    outcome: str
    seconds: float
    message: str


class Watch:
    """Notes what the interpreter is asked to do while it is armed. An audit hook stays for the life of the process."""

    def __init__(self) -> None:
        self.armed, self.file = False, ""
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event == "open":
            if arguments[0] != self.file and str(arguments[0]) != self.file:
                self.seen.append(f"open {arguments[0]!r}")
        elif event in WATCHED:
            self.seen.append(f"{event} {str(arguments[:1])[:200]}")

    @contextlib.contextmanager
    def over(self, file: Path) -> Iterator[None]:
        self.armed, self.file = True, str(file)
        try:
            yield
        finally:
            self.armed = False


def made_bases() -> dict[str, tuple[bytes, Mapping[str, Any] | None]]:
    """Files of every format, and what `load` needs to be told of them."""
    torch.manual_seed(7)
    network = build(made.CONFIG["architecture"], {k: v for k, v in made.CONFIG.items() if k != "architecture"}, "cpu")
    tensors = {name: torch.randn_like(tensor) for name, tensor in network.state_dict().items()}
    found = {name: (data, None if "edm" in name else made.CONFIG) for name, data in made.files(tensors).items()}
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "own", network, {})
        return found | {"own.safetensors": ((Path(folder) / "own").read_bytes(), None)}


def fixture_bases(largest: int = 400_000) -> dict[str, tuple[bytes, Mapping[str, Any] | None]]:
    """The checkpoints of the conformance folder that are not too large."""
    found = {}
    for file in sorted((ROOT / "checkpoints").glob("*/*")):
        beside = [file.parent / name for name in ("kwargs.json", "config.json")]
        config = next((json.loads(path.read_text("utf-8")) for path in beside if path.is_file()), None)
        is_one = file.suffix in (".pkl", ".pt", ".pth", ".safetensors") and file.name != "expected.safetensors"
        if is_one and file.stat().st_size <= largest:
            found[f"{file.parent.name}/{file.name}"] = (file.read_bytes(), config)
    return found


def try_file(file: Path, config: Mapping[str, Any] | None, seconds: float, watch: Watch) -> tuple[str, float, str]:
    """(outcome, seconds of CPU time, message) of one file."""

    rung: list[bool] = []

    def late(*_: object) -> None:
        rung.append(True)
        raise TimeoutError

    signal.signal(signal.SIGPROF, late)
    watch.seen.clear()
    start = time.process_time()
    outcome, message = "loaded", ""
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        with watch.over(file):
            load(file, config=config)
    except ModelFileError as error:
        outcome, message = "refused", str(error)
    except BaseException as error:
        outcome, message = "error", "".join(traceback.format_exception(error))[-1500:]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    spent = time.process_time() - start
    if rung or spent > seconds:  # the timer's clock and this one differ by a tick
        outcome = "slow"
    if watch.seen or Path(made.MARKER).exists() or list(Path.cwd().glob("MALICIOUS_MARKER_*")):
        outcome, message = "executed", f"{watch.seen[:5]} {message}"
    return outcome, spent, message


def _work(seeds: range, bases: Any, seconds: float, memory: int, out: int) -> None:
    """In a process of its own: one line for every seed when it begins, one when it ends."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    watch = Watch()
    bytes_of = {name: data for name, (data, _) in bases.items()}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        file = Path(folder) / "checkpoint"
        for data, config in bases.values():  # what is imported late is imported now
            file.write_bytes(data)
            for told in (config, None):
                with contextlib.suppress(ModelFileError):
                    load(file, config=told)
        for seed in seeds:
            name, done, data = mutated(seed, bytes_of)
            file.write_bytes(data)
            begun = {"seed": seed, "base": name, "done": done}
            os.write(out, (json.dumps(begun) + "\n").encode())
            outcome, spent, message = try_file(file, bases[name][1], seconds, watch)
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            line = {**begun, "outcome": outcome, "seconds": spent, "message": message[:1500], "most": most}
            os.write(out, (json.dumps(line) + "\n").encode())
        os.chdir("/")


def run(seeds: range, bases: Any, *, seconds: float, memory: int) -> tuple[list[Outcome], int]:
    """(the outcome of every seed, the most memory that a process had resident, in KiB)."""
    outcomes: list[Outcome] = []
    most = 0
    while len(outcomes) < len(seeds):
        left = seeds[len(outcomes) :]
        source, sink = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(source)
            try:
                _work(left, bases, seconds, memory, sink)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        os.close(sink)
        begun: dict[str, Any] = {}
        why = "died"
        with os.fdopen(source, "rb", buffering=0) as lines:
            buffer = b""
            while True:
                if not select.select([lines], [], [], STALL)[0]:
                    os.kill(child, signal.SIGKILL)
                    why = "hung"
                    break
                got = lines.read(1 << 16)
                if not got:
                    break
                *whole, buffer = (buffer + got).split(b"\n")
                for line in whole:
                    told = json.loads(line)
                    if "outcome" in told:
                        most = max(most, told.pop("most"))
                        outcomes.append(Outcome(**told))
                        begun = {}
                    else:
                        begun = told
        _, status = os.waitpid(child, 0)
        if begun:
            outcomes.append(Outcome(**begun, outcome=why, seconds=0.0, message=f"status {status}"))
        elif len(outcomes) < len(seeds):
            raise RuntimeError(f"the worker ended before it read anything (status {status})")
    return outcomes, most


def bad(outcomes: list[Outcome]) -> list[Outcome]:
    return [each for each in outcomes if each.outcome not in ("loaded", "refused")]


def _bytes(text: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--memory", type=_bytes, default="2G", help="address space of the process, e.g. 2G")
    parser.add_argument("--seconds", type=float, default=2.0, help="CPU time of one file")
    parser.add_argument("--fixtures", action="store_true", help="also of the conformance folder's files")
    parser.add_argument("--report", type=Path, help="a file for the outcomes, JSON lines")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bases = made_bases() | (fixture_bases() if arguments.fixtures else {})
    seeds = range(arguments.first, arguments.first + arguments.count)
    start = time.perf_counter()
    outcomes, most = run(seeds, bases, seconds=arguments.seconds, memory=arguments.memory)
    if arguments.report:
        arguments.report.write_text("".join(json.dumps(asdict(each)) + "\n" for each in outcomes), encoding="utf-8")
    counts = Counter(each.outcome for each in outcomes)
    slowest = max(outcomes, key=lambda each: each.seconds)
    print(f"{len(outcomes)} files of {len(bases)} bases, {time.perf_counter() - start:.0f} s: {dict(counts)}")
    print(
        f"slowest {slowest.seconds:.2f} s of CPU time (seed {slowest.seed}); most memory {most / 1024:.0f} MiB resident"
    )
    for each in bad(outcomes)[:20]:
        print(f"\nseed {each.seed} ({each.base}, {each.done}): {each.outcome}\n{each.message}")
    return 1 if bad(outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
