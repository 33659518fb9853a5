"""The comparison of remedies at training time: its configurations, a tiny run, and what its page says of given rows."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from benchmarks.training.job import BASELINE, QUICK, VARIANTS, Job, run_part
from benchmarks.training.tables import REMEDIES, Row, Table, page, picture, read, reading, write
from fastdiff.data import digits16
from fastdiff.evaluation import Evaluator, Scores

ACCOUNT = {"seconds": 600.0, "workers": 2, "device": {"name": "some"}, "packages": {"torch": "2"}}
REAL = Scores(0.3, 0.79, 0.86, 10)


def rows(**ratios):
    """DDPM's distances are 1, 2 and 3; a remedy's are these times its ratio, give or take a hundredth."""
    found = []
    for variant in VARIANTS:
        for seed in range(3):
            base = 1.0 + seed
            ratio = ratios.get(variant.replace("DDPM-", "").replace(" ", "").replace(".", ""), 1.0) - 0.01 * (seed - 1)
            distance = base if variant == BASELINE else base * ratio
            found += [Row(variant, seed, steps, distance, 0.5, 0.75, 0.05) for steps in (5, 10)]
    return found


def test_whole_seeds_come_first():
    parts = Job().parts()
    assert [seed for _, seed in parts] == sorted(seed for _, seed in parts)
    assert {variant for variant, seed in parts if seed == 2} == set(VARIANTS)


def test_variants_differ_from_the_baseline_in_their_remedy_only():
    job = Job()
    base = job.config(BASELINE, 1).as_dict()
    wanted = {
        "DDPM-IP 0.1": {"gamma": [0.1]},
        "DDPM-IP 0.15": {"gamma": [0.15]},
        "DDPM-GP": {"gradient_penalty": 1e-6},
        "DDPM-WD": {},
        "DDPM-y": {"gamma": [0.1], "perturbed_target": True},
    }
    for variant, changes in wanted.items():
        config = job.config(variant, 1).as_dict()
        decay = {"optimizer": "adamw", "weight_decay": 1.0} if variant == "DDPM-WD" else {}
        assert config == {**base, **decay, "objective": {**base["objective"], **changes}}
    assert set(wanted) == set(REMEDIES)


def test_the_folder_depends_on_the_settings_but_not_on_where_it_is():
    assert Job(samples=11).folder != Job().folder
    assert Job(work="elsewhere").folder.name == Job().folder.name


def test_training_seeds_have_sampling_seeds_of_their_own():
    job = Job(seeds=(4, 7))
    assert [cell.range for cell in job.cells(4)] == [0] * 4
    assert [cell.range for cell in job.cells(7)] == [1] * 4


def test_a_part_is_done_once_and_read_back(tmp_path, monkeypatch):
    few = Evaluator(digits16("test").images[:50])
    monkeypatch.setattr("benchmarks.training.job.evaluator", lambda device: few)
    job = replace(QUICK, iterations=2, train_batch=8, seeds=(3,), steps=(2,), samples=10, work=str(tmp_path / "work"))
    run_part(job, "DDPM-IP 0.1", 3)
    before = job.seconds(job.parts())
    assert before > 0
    monkeypatch.setattr("benchmarks.training.job.Trainer", lambda *a, **k: pytest.fail("trained again"))
    run_part(job, "DDPM-IP 0.1", 3)
    assert job.seconds(job.parts()) == before
    (row,) = read(job).rows
    assert (row.variant, row.seed, row.steps) == ("DDPM-IP 0.1", 3, 2)
    assert row.frechet > 0 and row.heldout_loss > 0
    text = write(job, tmp_path / "out", 2)
    assert (tmp_path / "out" / "README.md").read_text() == text
    assert f"{row.frechet:.3f}" in text


def test_differences_are_paired_by_seed():
    table = Table(rows(GP=0.8))
    found = table.against("DDPM-GP", 5)
    differences = torch.tensor([1 * -0.19, 2 * -0.2, 3 * -0.21], dtype=torch.float64)
    assert found.difference == pytest.approx(differences.mean().item())
    assert found.error == pytest.approx(differences.std().item() / 3**0.5)
    assert found.ratio == pytest.approx(0.8)
    assert found.count == 3
    assert table.against("DDPM-GP", 20) is None


def test_a_cell_that_is_not_finite_drops_its_pair():
    broken = [replace(row, frechet=None) if (row.variant, row.seed) == ("DDPM-y", 0) else row for row in rows()]
    assert Table(broken).against("DDPM-y", 5).count == 2


def test_verdicts_follow_students_t():
    table = Table(rows(GP=0.5, WD=1.5))
    verdicts = {variant: table.against(variant, 5).verdict for variant in REMEDIES}
    # 3 seeds ask for 4.3 standard errors: -0.5, -1.0, -1.5 are 3.5 of them.
    assert set(verdicts.values()) == {"not told apart"}
    even = [replace(row, frechet=row.frechet / (1 + row.seed)) for row in table.rows]
    assert Table(even).against("DDPM-GP", 5).verdict == "better"
    assert Table(even).against("DDPM-WD", 5).verdict == "worse"


@pytest.mark.parametrize(("ratio", "sentence"), [(0.5, "held"), (1.0, "did NOT hold"), (1.5, "did NOT hold")])
def test_the_page_says_whether_the_papers_claims_held(ratio, sentence):
    even = [replace(row, frechet=row.frechet / (1 + row.seed)) for row in rows(IP01=ratio, y=2 - ratio)]
    text = page(Job(), Table(even), REAL, ACCOUNT)
    assert f"DDPM-IP 0.1 lowers the distance at every number of steps: {sentence}." in text
    wanted = "did NOT hold" if ratio == 1.5 else "held"
    assert f"DDPM-y helps at no number of steps: {wanted}." in text
    assert "10 minutes of CPU time" in text


def test_a_reading_is_shown_for_its_own_numbers_only(tmp_path):
    table = Table(rows())
    file = tmp_path / "reading.md"
    assert reading(file, table.digest) == ""
    file.write_text(f"<!-- {table.digest} -->\n\nIt did not help.\n")
    assert reading(file, table.digest) == "It did not help."
    assert reading(file, Table(rows(GP=0.9)).digest) == ""
    assert re.search(r"## Reading\n\nIt did not", page(Job(), table, REAL, ACCOUNT, "It did not help."))


def test_the_plot_is_a_picture():
    assert picture(Table(rows(GP=0.9))).startswith(b"\x89PNG")
