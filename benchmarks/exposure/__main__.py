"""`python -m benchmarks.exposure`: which corrections of exposure bias help on the shipped digits, with error bars.

Trains the discriminator, calibrates lambda for every sampler, sweeps Euler and Heun with lambda and w, and writes
tables and plots. Two processes of one thread each; a stopped job goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.exposure.job import QUICK, Job, choose, measure, one_thread, train
from benchmarks.exposure.tables import page
from benchmarks.system import describe
from fastdiff.files import atomic_path
from fastdiff.sweep import csv_text, summarise
from fastdiff.sweep.plots import pictures

HERE = Path(__file__).resolve().parents[1] / "results" / "exposure"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exposure", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=HERE, help="where tables and plots go")
    parser.add_argument("--work", help="where a stopped job goes on from (default: runs/exposure)")
    parser.add_argument("--samples", type=int, help="of every range of seeds (default: 750)")
    parser.add_argument("--device", help="cpu or cuda")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--quick", action="store_true", help="a few minutes: tries the job, finds nothing")
    arguments = parser.parse_args()
    job = QUICK if arguments.quick else Job()
    given = {name: getattr(arguments, name) for name in ("samples", "device", "work") if getattr(arguments, name)}
    job = replace(job, **given)
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # the processes inherit it
    job.folder.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    run(job, arguments.workers)
    write(job, arguments.out, _account(job, arguments.workers))


def run(job: Job, workers: int) -> None:
    """All parts, each as soon as those it needs are done."""
    started, cpu, before = time.perf_counter(), 0.0, _spent(job)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=one_thread) as pool:
        parts: dict[Future[float], tuple[Any, ...]] = {pool.submit(train, job): ("discriminator",)}
        parts |= {pool.submit(choose, job, *pair): ("lambda", *pair) for pair in job.samplers()}
        done: set[tuple[Any, ...]] = set()
        waiting = [(*pair, guided) for pair in job.samplers() for guided in (False, True)]
        while parts:
            for future in wait(parts, return_when=FIRST_COMPLETED).done:
                part = parts.pop(future)
                spent = future.result()
                cpu += spent
                done.add(part)
                now = time.perf_counter() - started
                if cpu > 60:  # a run that only writes the tables anew counts for nothing
                    _spend(job, before, {"clock": now, "cpu": cpu, "runs": 1})
                print(f"{now / 60:5.1f} min  {' '.join(map(str, part))}: {spent:.0f} CPU seconds", flush=True)
            for ready in list(_ready(job, waiting, done)):
                waiting.remove(ready)
                parts[pool.submit(measure, job, *ready)] = (
                    "sweep",
                    *ready[:2],
                    "with DG" if ready[2] else "without DG",
                )


def write(job: Job, out: Path, account: dict[str, Any]) -> None:
    """The page, the table of all cells, the plots, the calibrations and the discriminator's report."""
    results = job.results()
    contents = {"sweep.csv": csv_text(results).encode(), **pictures(summarise(results))}
    text = page(job, results, job.real(), account)
    contents["README.md"] = text.encode()
    for name, content in contents.items():
        with atomic_path(out / name) as temporary:
            temporary.write_bytes(content)
    kept = [job.calibration(*pair) for pair in job.samplers()]
    kept += [job.discriminator.parent / name for name in ("levels.csv", "levels.png")]
    for file in filter(Path.exists, kept):
        with atomic_path(out / file.name.replace("levels", "discriminator")) as temporary:
            shutil.copyfile(file, temporary)
    print(text)


def _ready(job: Job, waiting: list[Any], done: set[tuple[Any, ...]]) -> Iterator[Any]:
    """The sweeps that can begin: lambda is chosen and, for those with guidance, the discriminator trained."""
    for solver, steps, guided in waiting:
        trained = ("discriminator",) in done and job.discriminator.exists()
        if ("lambda", solver, steps) in done and (trained or not guided):
            yield solver, steps, guided


def _spent(job: Job) -> dict[str, float]:
    """Seconds of clock and CPU in how many runs, those of a stopped job included up to the last part it finished."""
    file = job.folder / "time.json"
    return json.loads(file.read_text()) if file.exists() else {"clock": 0.0, "cpu": 0.0, "runs": 0}


def _spend(job: Job, before: dict[str, float], more: dict[str, float]) -> None:
    """Writes down what this run has taken so far, on top of the runs before it."""
    with atomic_path(job.folder / "time.json") as temporary:
        temporary.write_text(json.dumps({name: before[name] + more[name] for name in before}))


def _account(job: Job, workers: int) -> dict[str, Any]:
    """How long the job took, and on what."""
    system = describe(torch.device(job.device))
    return {**_spent(job), "workers": workers, "device": system["device"], "packages": system["packages"]}


if __name__ == "__main__":
    main()
