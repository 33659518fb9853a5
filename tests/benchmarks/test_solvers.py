"""The table of launches, bytes and operations per step."""

from __future__ import annotations

import pytest
import torch

from benchmarks import solvers
from benchmarks.counting import count
from fastdiff.solvers import SOLVERS, Driver


def test_operations_bytes_and_reads_are_counted():
    x, small = torch.ones(4, 8), torch.ones(4)

    def work():
        y = x.view(32)[4:].detach()  # views, and memory that is not written: nothing
        torch.empty_like(x)
        z = y * 2.0  # 28 elements read and written, too few to count as traffic
        x.add_(1.0)  # 32 read, 32 written
        small.sum()
        return z, x.sum().item()

    found = count(work, 32)
    assert found.operations == 4
    assert found.bytes == 4 * (32 + 32 + 32)
    assert found.reads == 1


@pytest.mark.parametrize("name", sorted(name for name, solver in SOLVERS.items() if not isinstance(solver, Driver)))
def test_every_solver_has_a_run(name):
    sampler, run = solvers.own(name, 4)
    assert run().shape == solvers.SHAPE
    assert solvers.traffic(sampler.plan(x_init=name == "ddim_inversion")) > 0


def test_a_row_and_the_table():
    pytest.importorskip("diffusers")
    row = solvers.measure("ddim", 0.01)
    assert row["fastdiff launches"] == row["fastdiff evaluations"] == 1
    assert row["fastdiff bytes"] == 4 * 3  # x and F in, x out
    assert row["diffusers operations"] > 10
    line = solvers.table([row]).splitlines()[-1]
    assert line.startswith("| ddim | 1.0 | 1.0 | 12 |")
