"""Sweeps: samplers compared over a grid of solver, steps, lambda, weights, churn and seed ranges.

    sweep = Sweep(sampler, evaluator, grid(solver=["euler"], steps=[9, 13], epsilon_scale=[0.97, 1.0]), "runs/sweep")
    sweep.run()
    write_report(sweep.results(), "runs/sweep")

Every cell is a file named by a hash of everything that decides it, so that a sweep goes on where it was stopped and is
split over processes by nothing but a folder.
"""

from __future__ import annotations

from .cells import Cell, grid, share
from .config import SweepConfig, load_sweep_config, open_sweep
from .report import Summary, best, best_table, csv_text, summarise, write_report
from .runner import Result, Sweep, digest_of

__all__ = [
    "Cell",
    "Result",
    "Summary",
    "Sweep",
    "SweepConfig",
    "best",
    "best_table",
    "csv_text",
    "digest_of",
    "grid",
    "load_sweep_config",
    "open_sweep",
    "share",
    "summarise",
    "write_report",
]
