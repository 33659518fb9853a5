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
    spent = run(job, arguments.workers)
    write(job, arguments.out, _account(job, spent, arguments.workers))


def run(job: Job, workers: int) -> dict[str, float]:
    """All parts, each as soon as those it needs are done. Returns the seconds of clock and CPU."""
    started, cpu = time.perf_counter(), 0.0
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
                print(f"{now / 60:5.1f} min  {' '.join(map(str, part))}: {spent:.0f} CPU seconds", flush=True)
            for ready in list(_ready(job, waiting, done)):
                waiting.remove(ready)
                parts[pool.submit(measure, job, *ready)] = (
                    "sweep",
                    *ready[:2],
                    "with DG" if ready[2] else "without DG",
                )
    return {"clock": time.perf_counter() - started, "cpu": cpu}


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
        shutil.copyfile(file, out / file.name.replace("levels", "discriminator"))
    print(text)


def _ready(job: Job, waiting: list[Any], done: set[tuple[Any, ...]]) -> Iterator[Any]:
    """The sweeps that can begin: lambda is chosen and, for those with guidance, the discriminator trained."""
    for solver, steps, guided in waiting:
        trained = ("discriminator",) in done and job.discriminator.exists()
        if ("lambda", solver, steps) in done and (trained or not guided):
            yield solver, steps, guided


def _account(job: Job, spent: dict[str, float], workers: int) -> dict[str, Any]:
    """How long the job took, earlier runs of a stopped one included, and on what."""
    file = job.folder / "time.json"
    account = json.loads(file.read_text()) if file.exists() else {"clock": 0.0, "cpu": 0.0, "runs": 0}
    if spent["cpu"] > 60:  # a run that only writes the tables anew counts for nothing
        account = {name: account[name] + (spent | {"runs": 1})[name] for name in account}
        file.write_text(json.dumps(account))
    system = describe(torch.device(job.device))
    return {**account, "workers": workers, "device": system["device"], "packages": system["packages"]}


if __name__ == "__main__":
    main()
