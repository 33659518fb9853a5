"""What is made of results: paired ratios with errors, the best of every method, CSV and pictures."""

from __future__ import annotations

import csv
import math
import sys

import pytest

from fastdiff.sweep import Cell, Result, best, best_table, csv_text, summarise, write_report


def result(cell, frechet, recall=0.8):
    return Result(cell, 9, (cell.range * 10, 10), frechet, None if frechet is None else 0.6, recall, "key")


def results():
    found = []
    distances = {
        (1.0, 0.0): (10.0, 20.0, 40.0), (1.05, 0.0): (5.0, 12.0, 24.0), (1.1, 0.0): (20.0, None, 20.0),
        (1.0, 1.0): (9.0, 18.0, 44.0), (1.05, 1.0): (4.0, 8.0, 16.0),
    }  # fmt: skip
    for (scale, weight), values in distances.items():
        for r, value in enumerate(values):
            found.append(result(Cell("heun", 5, w_1st=weight, epsilon_scale=scale, range=r), value))
    return found


def test_ratios_are_paired_range_by_range():
    summaries = {(s.setting.epsilon_scale, s.setting.w_1st): s for s in summarise(results())}
    scaled = summaries[1.05, 0.0]
    assert scaled.ratio == pytest.approx((0.5 + 0.6 + 0.6) / 3)
    assert scaled.ratio_error == pytest.approx(math.sqrt(((0.2 / 3) ** 2 + 2 * (0.1 / 3) ** 2) / 2 / 3))
    assert scaled.errors_below_one == pytest.approx((1 - scaled.ratio) / scaled.ratio_error)
    assert scaled.frechet == pytest.approx(41 / 3)
    assert summaries[1.0, 1.0].errors_below_one < 1  # (.9, .9, 1.1)
    assert summaries[1.1, 0.0].frechet is None  # one range was not finite
    assert summaries[1.1, 0.0].ratio is None


def test_no_baseline_no_ratio():
    (summary,) = summarise([result(Cell("heun", 5, epsilon_scale=1.05), 5.0)])
    assert summary.ratio is None
    assert summary.frechet_error is None
    assert summary.errors_below_one is None


def test_best_of_each_method():
    summaries = summarise(results())
    found = {name: best(summaries, name, "heun", 5) for name in ("EDM", "EDM-ES", "EDM-G++", "SEDM-G++")}
    assert {name: s.setting.epsilon_scale for name, s in found.items()} == {
        "EDM": 1.0, "EDM-ES": 1.05, "EDM-G++": 1.0, "SEDM-G++": 1.05,
    }  # fmt: skip
    assert best(summaries, "EDM", "euler", 5) is None
    lines = best_table(summaries).splitlines()
    assert lines[0] == "### Heun, 5 steps"
    assert [line.split(" | ")[0] for line in lines[4:8]] == ["| EDM", "| EDM-ES", "| EDM-G++", "| SEDM-G++"]
    assert "0.567 ± 0.033 | 13.0" in lines[5]
    assert "0.800" in lines[5]  # recall beside the distance


def test_the_csv_is_tidy():
    rows = list(csv.DictReader(csv_text(results()).splitlines()))
    assert len(rows) == 15
    assert rows[3] == {
        "solver": "heun", "steps": "5", "nfe": "9", "S_churn": "0.0", "w_1st": "0.0", "w_2nd": "0.0",
        "epsilon_scale": "1.05", "range": "0", "first_seed": "0", "samples": "10", "frechet": "5.0",
        "precision": "0.6", "recall": "0.8", "key": "key",
    }  # fmt: skip
    assert rows[7]["frechet"] == ""


def test_the_report_is_the_same_every_time(tmp_path):
    pytest.importorskip("matplotlib")
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        written = write_report(results(), tmp_path / name)
        assert [path.name for path in written] == ["sweep.csv", "best.md", "lambda_heun.png", "weight_heun.png"]
        contents.append([path.read_bytes() for path in written])
    assert contents[0] == contents[1]
    assert contents[0][2][:4] == b"\x89PNG"


def test_without_matplotlib_there_are_tables_and_a_word(tmp_path, monkeypatch):
    for name in ("matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.warns(RuntimeWarning, match=r"plots were not drawn: .*pip install 'fastdiff\[plots\]'"):
        written = write_report(results(), tmp_path)
    assert [path.name for path in written] == ["sweep.csv", "best.md"]
