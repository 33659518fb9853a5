"""`python -m benchmarks.training`: DDPM, input perturbation, gradient penalty, weight decay and DDPM-y on the digits.

Trains each with three seeds, samples with few and many ancestral steps, and writes a table, a plot and the numbers. Two
processes of one thread each; a stopped job goes on where it was.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from benchmarks.training.job import QUICK, Job, one_thread, run_part

HERE = Path(__file__).resolve().parents[1] / "results" / "training"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=HERE, help="where table and plot go")
    parser.add_argument("--work", help="where a stopped job goes on from (default: runs/training)")
    parser.add_argument("--device", help="cpu or cuda")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--quick", action="store_true", help="a minute: tries the job, finds nothing")
    given = parser.parse_args(arguments)
    job = QUICK if given.quick else Job()
    job = replace(job, **{name: getattr(given, name) for name in ("work", "device") if getattr(given, name)})
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # the processes inherit it
    run(job, given.workers)
    from benchmarks.training.tables import write

    print(write(job, given.out, given.workers))


def run(job: Job, workers: int) -> None:
    """All parts, whole seeds first."""
    started = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=one_thread) as pool:
        parts = {pool.submit(run_part, job, *part): part for part in job.parts()}
        for future in as_completed(parts):
            variant, seed = parts[future]
            minutes = (time.perf_counter() - started) / 60
            print(f"{minutes:5.1f} min  {variant}, seed {seed}: {future.result():.0f} CPU seconds", flush=True)


if __name__ == "__main__":
    main()
