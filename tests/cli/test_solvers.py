"""`fastdiff solvers`."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from fastdiff.cli import main
from fastdiff.solvers import FACTS, SOLVERS


def listed(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["solvers", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_every_solver_has_a_row():
    header, *rows = listed().splitlines()
    assert header.split()[:2] == ["name", "order"]
    assert [row.split()[0] for row in rows] == sorted(SOLVERS)
    for row in rows:
        name, order = row.split()[:2]
        assert order == ("-" if FACTS[name].order is None else str(FACTS[name].order))
        assert row.endswith(FACTS[name].source)


def test_words_choose_by_name_and_source():
    _, *rows = listed("SDE", "k-diffusion").splitlines()
    names = [row.split()[0] for row in rows]
    assert "dpmpp_2m_sde" in names
    assert "dpmpp_2m" not in names


def test_one_solver_is_shown_with_its_options():
    text = listed("lms")
    assert "options: order=4" in text
    assert "du/ds" in text
    assert "srk_heun" not in listed("heun"), "a whole name is that solver's alone"


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_json_says_everything(name):
    (entry,) = json.loads(listed("--json", name))
    facts = FACTS[name]
    assert (entry["order"], entry["stochastic"], entry["source"]) == (facts.order, facts.stochastic, facts.source)
    assert entry["documentation"]
    assert "denoise" not in entry["options"]


def test_json_says_defaults():
    (heun,) = json.loads(listed("--json", "heun"))
    assert heun["options"] == {"S_churn": 0.0, "S_min": 0.0, "S_max": "inf", "S_noise": 1.0}


def test_no_such_solver():
    result = CliRunner().invoke(main, ["solvers", "nonesuch"])
    assert result.exit_code == 2
    assert "no solver's name or source holds nonesuch" in result.output
