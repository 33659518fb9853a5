"""The exposure job without its work: which part follows which, and what its page says of given results."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.exposure.__main__ import _ready, _spend, _spent
from benchmarks.exposure.job import Job
from benchmarks.exposure.tables import Found, Ratio, page
from fastdiff.evaluation import Scores
from fastdiff.exposure.choice import Calibration, Candidate
from fastdiff.sweep import Cell, Result

ACCOUNT = {
    "clock": 600.0, "cpu": 1100.0, "runs": 1, "workers": 2, "device": {"name": "some"}, "packages": {"torch": "2"},
}  # fmt: skip


REAL = Scores(0.3, 0.79, 0.86, 10)


@pytest.fixture
def job(tmp_path):
    """Euler 13 with a calibrated lambda of 0.97."""
    job = Job(solvers=("euler",), steps=(13,), samples=10, weights=(1.0, 1.67), work=str(tmp_path))
    job.folder.mkdir(parents=True)
    rows = tuple(Candidate(scale, (scale, scale), (0.5, 0.5), (0.5, 0.5)) for scale in (0.97, 1.0))
    Calibration("search", 0.97, rows, -0.1, 0.01, True, {"lambda": 0.004}).save(job.calibration("euler", 13))
    return job


def results(job, **ratios):
    """EDM's distances are 1, 2 and 3; the others are these times ratios: es, g (both weights), s (both weights)."""
    found = []
    for guided in (False, True):
        for cell in job.cells("euler", 13, guided):
            name = ("s" if cell.epsilon_scale != 1 else "g") if cell.guided else "es" if cell.epsilon_scale != 1 else ""
            ratio = ratios.get(name, 1.0) + 0.01 * (cell.range - 1)
            distance = (1.0 + cell.range) * (ratio if name else 1.0)
            found.append(Result(cell, 13, (cell.range * 10, 10), distance, 0.5, 0.75, "key"))
    return found


def test_cells_are_the_grid_and_the_chosen_lambda(job):
    plain, guided = job.cells("euler", 13, False), job.cells("euler", 13, True)
    assert {cell.epsilon_scale for cell in plain} == {0.97, 1.0, 1.03}
    assert {(cell.epsilon_scale, cell.w_1st) for cell in guided} == {(0.97, 1.0), (0.97, 1.67), (1.0, 1.0), (1.0, 1.67)}
    assert len(plain) == 9
    assert len(guided) == 12


def test_the_folder_depends_on_the_settings(job):
    assert replace(job, samples=11).folder != job.folder
    assert replace(job, samples=10).folder == job.folder


def test_the_time_of_a_stopped_run_counts(job):
    nothing = _spent(job)
    for clock in (10.0, 20.0):  # a run that is killed after its second part
        _spend(job, nothing, {"clock": clock, "cpu": 2 * clock, "runs": 1})
    _spend(job, _spent(job), {"clock": 5.0, "cpu": 9.0, "runs": 1})
    assert _spent(job) == {"clock": 25.0, "cpu": 49.0, "runs": 2}


def test_parts_wait_for_what_they_need(job):
    waiting = [("euler", 13, False), ("euler", 13, True)]
    assert list(_ready(job, waiting, set())) == []
    assert list(_ready(job, waiting, {("lambda", "euler", 13)})) == [("euler", 13, False)]
    both = {("lambda", "euler", 13), ("discriminator",)}
    assert list(_ready(job, waiting, both)) == [("euler", 13, False)]  # the training refused to write one
    job.discriminator.parent.mkdir()
    job.discriminator.write_text("")
    assert list(_ready(job, waiting, both)) == waiting


def test_ratios_are_paired_and_judged(job):
    found = Found(job, results(job, es=0.5, g=1.2, s=0.999))
    judged = {name: found.ratio(cell, cell.baseline) for name, cell in found.methods("euler", 13)}
    assert judged["EDM-ES"].mean == pytest.approx(0.5)
    assert judged["EDM-ES"].error == pytest.approx(0.01 / 3**0.5)
    verdicts = {name: ratio.verdict for name, ratio in judged.items() if name != "EDM"}
    assert verdicts == {"EDM-ES": "better", "EDM-G++": "worse", "SEDM-G++": "not told apart"}
    assert Ratio(0.9, 0.05, 3).verdict == "not told apart"  # 2 errors of 3 ranges: Student's t asks for 4.3


def test_the_page_says_what_helped_with_recall_beside_every_distance(job):
    job.refusal.parent.mkdir()
    job.refusal.write_text("held-out loss\n")
    text = page(job, results(job, es=0.5, g=1.2, s=0.9), REAL, ACCOUNT)
    assert "10 minutes and 18 minutes of CPU time" in text
    assert "10 held-out real images have distance 0.300, precision 0.790 and recall 0.860" in text
    assert "| Euler | EDM-ES | 1 | 0 | 0 | 0.50 to 0.50 | 86.6 to 86.6 |" in text
    assert "| Euler | EDM-G++, w 1.67 | 0 | 1 | 0 | 1.20 to 1.20 | -34.6 to -34.6 |" in text
    assert "Euler 13, EDM-ES: at most 0.90 of EDM; 0.500 ± 0.006 was measured, as expected" in text
    assert "Euler 13, SEDM-G++, w 1: at most 0.85 of EDM; 0.900 ± 0.006 was measured, NOT as expected" in text
    assert "| EDM | 1 |  | 2.000 ± 0.577 | 0.500 ± 0.000 | 0.750 ± 0.000 |" in text
    assert "lambda 0.97 ± 0.004 (bootstrap)." in text
    assert "| Euler 13 | 1.67 | 1.8" in text  # against EDM-ES
    assert "None: held-out loss" in text


def test_a_range_that_was_not_finite_gives_no_ratio(job):
    broken = results(job, es=0.5)
    index = next(i for i, result in enumerate(broken) if result.cell == Cell("euler", 13, epsilon_scale=0.97))
    broken[index] = replace(broken[index], frechet=None)
    found = Found(job, broken)
    assert found.ratio(Cell("euler", 13, epsilon_scale=0.97), Cell("euler", 13)) is None
    assert "not finite" in page(job, broken, REAL, ACCOUNT)
