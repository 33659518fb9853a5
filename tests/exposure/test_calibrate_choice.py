"""The file of a choice: what comes back, what is refused, and what is printed."""

from __future__ import annotations

import copy
import json
import math
import os

import pytest

import fastdiff
from fastdiff.exposure import Calibration, LinearScale, load_scale
from fastdiff.exposure.choice import Candidate
from fastdiff.exposure.schedules import epsilon_scales

BASE = Candidate(1.0, (5.0, 5.4), (0.5, 0.52), (0.8, 0.82))


def calibration(scale=0.97, **changes):
    row = Candidate(scale, (4.0, 4.2), (0.6, 0.62), (0.7, 0.72))
    broken = Candidate(0.5, (math.inf, 1e300), (math.nan, 0.1), (math.nan, 0.1))
    settings = {
        "difference": -1.1, "difference_error": 0.1, "distinguishable": True, "errors": {"lambda": 0.004},
        "interval": (0.95, 0.99), "configuration": {"solver": "euler", "steps": 3, "seeds": ["0-9", "10-19"]},
    }  # fmt: skip
    return Calibration("search", scale, (broken, row, BASE), **{**settings, **changes})


@pytest.mark.parametrize("scale", [0.97, LinearScale(k=0.001, b=0.99), (0.97, 0.98, 1.01)])
def test_a_choice_survives_its_file_and_a_sampler_takes_either(scale, tmp_path):
    path, choice = tmp_path / "lambda.json", calibration(scale)
    choice.save(path)
    assert os.listdir(tmp_path) == ["lambda.json"]
    read = Calibration.load(path)
    assert str(read) == str(choice)
    assert (read.epsilon_scale, read.errors, read.interval) == (scale, choice.errors, choice.interval)
    assert read.chosen == choice.chosen
    assert load_scale(path) == (list(scale) if isinstance(scale, tuple) else scale)
    wanted = epsilon_scales(scale, 3)
    for given in (choice, path, str(path)):
        sampler = fastdiff.Sampler(lambda x, t: x, steps=3, shape=(1,), epsilon_scale=given)
        assert sampler.denoiser(None, sampler.levels).epsilon_scale == wanted


def test_the_file_is_strict_json(tmp_path):
    path = tmp_path / "lambda.json"
    calibration().save(path)

    def refuse(name):
        raise AssertionError(name)

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content["epsilon_scale"] == 0.97
    assert content["table"][0]["frechet"][0] is None


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "{}", '{"calibration": 2}', '{"calibration": 1}', '{"calibration": 1, "epsilon_scale": "x"}',
     '{"calibration": 1, "epsilon_scale": {"k": 1}}', '{"calibration": 1, "epsilon_scale": [1, null]}'],
)  # fmt: skip
def test_another_file_is_refused_by_name(text, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(text)
    for read in (load_scale, Calibration.load):
        with pytest.raises(ValueError, match=r"other\.json"):
            read(path)
    with pytest.raises(ValueError, match=r"missing\.json: cannot be read"):
        load_scale(tmp_path / "missing.json")


def test_recall_stands_beside_every_distance():
    text = str(calibration())
    head, *rows = text.splitlines()[1:5]
    assert head.split()[-2:] == ["precision", "recall"]
    assert "not finite" in rows[0]
    assert rows[1].split()[:5] == ["*", "0.97", "4.1", "+-", "0.1"]
    assert rows[1].split()[-2:] == ["0.610", "0.710"]
    assert "-21.2 +- 1.9 %" in rows[1]
    assert "precision +0.100, recall -0.100" in text
    assert "differs from lambda = 1" in text


def test_it_says_when_1_is_not_distinguishable():
    assert "IS NOT DISTINGUISHABLE from lambda = 1" in str(calibration(distinguishable=False))
    assert "is not known" in str(calibration(distinguishable=None, difference_error=None))
    assert "refused" in str(calibration(refused=True))
    assert "a better one may lie beyond" in str(calibration(edge=True))
    assert "no candidate was better" in str(Calibration("search", 1.0, (BASE,), 0.0, 0.0, False))


def test_differences_name_what_was_not_calibrated():
    found = calibration().differences({"solver": "heun", "steps": 3, "unknown": 1})
    assert found == ["solver: calibrated for euler, got heun"]


def test_a_row_that_is_not_there():
    with pytest.raises(KeyError, match="was not scored"):
        calibration().row(0.3)


def test_a_sampler_reads_the_file_once(tmp_path):
    """A copy, or the same sampler with another argument, has the lambda of the first, whatever is saved meanwhile."""
    path = tmp_path / "lambda.json"
    calibration(1.05).save(path)
    sampler = fastdiff.Sampler(lambda x, t: 0.5 * x, steps=3, epsilon_scale=path)
    path.unlink()
    assert sampler.replace(guidance_scale=2.0).epsilon_scale == copy.deepcopy(sampler).epsilon_scale == 1.05
