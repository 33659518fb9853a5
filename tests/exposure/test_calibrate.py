"""Choosing lambda: the closed-form check, and what `calibrate` refuses."""

from __future__ import annotations

import math

import pytest
import torch

import fastdiff
from fastdiff.exposure import calibrate, load_scale
from fastdiff.exposure.calibration import describe

from ..threads import one_thread  # noqa: F401
from . import closed_form
from .closed_form import Denoiser, frechet, sampler, wasserstein

SEEDS = [range(start, start + 400) for start in range(0, 1600, 400)]
COARSE = (0.95, 1.0, 1.05)


def chosen(model, **options):
    return calibrate(sampler(model), frechet, seeds=SEEDS, batch=400, **{"tolerance": 0.005, **options})


def test_on_the_exact_denoiser_it_returns_1_within_its_error():
    found = chosen(Denoiser())
    low, high = found.interval
    assert low < 1 < high
    assert high - low < 0.1
    assert found.distinguishable is False
    assert not found.edge
    assert wasserstein(sampler(Denoiser(), epsilon_scale=found)) < 0.03  # it does no harm either


@pytest.mark.parametrize("bias", [0.96, 1.04])
def test_it_finds_the_factor_that_a_biased_denoiser_is_off_by(bias):
    found = chosen(Denoiser(bias))
    low, high = found.interval
    assert low < bias < high
    assert abs(found.epsilon_scale - bias) < 0.015
    assert not low < 1 < high
    plain, scaled = (wasserstein(sampler(Denoiser(bias), epsilon_scale=scale)) for scale in (1.0, found))
    assert scaled < 0.35 * plain
    assert found.chosen.mean < 0.5 * found.baseline.mean


@pytest.mark.parametrize("wrong", [-0.1, 0.1])
def test_it_lowers_the_true_error_where_no_lambda_removes_it(wrong):
    model = Denoiser(wrong=wrong)
    found = chosen(model, grid=(0.93, 0.97, 1.0, 1.03, 1.08))
    assert wasserstein(sampler(model, epsilon_scale=found)) < 0.5 * wasserstein(sampler(model))


def test_a_slope_is_found_and_loses_nothing():
    truth = fastdiff.LinearScale(k=0.008, b=0.99)

    class Sloped(Denoiser):
        """Each level's noise too large by the factor of a slope in the step."""

        def __call__(self, x, sigma):
            scales = truth.scales(12)
            at = int((levels - float(sigma[0])).abs().argmin())
            return x - scales[min(at, 11)] * (x - super().__call__(x, sigma))

    levels = torch.tensor(sampler(Denoiser(), "euler").levels.sigmas[:-1])
    run = sampler(Sloped(), "heun", 12)
    constant, found = (
        calibrate(run, frechet, seeds=SEEDS, batch=400, calibrate=how, refine=False) for how in ("search", "linear")
    )
    assert isinstance(found.epsilon_scale, fastdiff.LinearScale)
    assert found.chosen.mean <= constant.chosen.mean
    assert set(found.errors) == {"mean", "k"}
    assert "against the best constant" in str(found)


def test_every_candidate_has_the_same_seeds_and_is_drawn_once():
    calls = []

    def draw(run, seeds):
        calls.append((run.epsilon_scale, tuple(seeds)))
        return torch.tensor(seeds, dtype=torch.float64)[:, None]

    found = calibrate(sampler(Denoiser()), frechet, seeds=[[3, 1], [7, 5]], grid=COARSE, refine=False, draw=draw)
    assert len(calls) == len(set(calls)) == 6
    assert {seeds for _, seeds in calls} == {(3, 1), (7, 5)}
    assert {scale for scale, _ in calls} == set(COARSE)
    assert found.epsilon_scale == 1.0  # all the same: the one nearest to 1
    assert found.difference == 0
    assert found.distinguishable is False
    assert found.configuration["seeds"] == ["3,1", "7,5"]


def test_it_is_the_same_every_time_and_in_any_batch():
    one, two = (
        calibrate(sampler(Denoiser(1.02)), frechet, seeds=SEEDS[:2], batch=batch, grid=COARSE, refine=False)
        for batch in (400, 150)
    )
    assert one.epsilon_scale == two.epsilon_scale
    assert one.table[0].frechet == pytest.approx(two.table[0].frechet, rel=1e-9)


def test_the_edge_of_the_grid_is_a_warning():
    with pytest.warns(RuntimeWarning, match=r"lambda = 1\.01 is an end of the grid"):
        found = chosen(Denoiser(1.06), grid=(0.99, 1.0, 1.01))
    assert found.edge
    assert found.interval is None
    assert found.errors == {}  # resamples agree for want of a choice
    assert "end of its grid" in str(found)


def test_one_range_gives_no_errors_and_says_so():
    found = calibrate(
        sampler(Denoiser(1.05)), frechet, seeds=range(300), batch=300, grid=(0.95, 1.0, 1.05, 1.1), refine=False
    )
    assert found.epsilon_scale == 1.05
    assert found.interval is None
    assert found.distinguishable is None
    assert "is not known" in str(found)


def test_a_lambda_that_breaks_down_is_only_a_row_of_the_table():
    def draw(run, seeds):
        if run.epsilon_scale == 0.95:
            raise FloatingPointError
        return fastdiff.evaluation.generate(run, seeds)

    found = calibrate(sampler(Denoiser(1.02)), frechet, seeds=SEEDS[:2], grid=COARSE, draw=draw)
    assert found.row(0.95).mean == math.inf
    assert "not finite" in str(found)
    assert abs(found.epsilon_scale - 1.02) < 0.03
    with pytest.raises(FloatingPointError, match="lambda = 1"):
        calibrate(sampler(Denoiser()), lambda x: closed_form.Scores(math.nan), seeds=SEEDS, grid=COARSE)


@pytest.mark.filterwarnings("ignore:lambda = 1.2 is an end of the grid")
def test_guidance_churn_and_the_rest_of_the_sampler_stay_as_they_are(tmp_path):
    def pull(x, level, **_):
        return -x / (1 + level.sigma**2)

    run = sampler(Denoiser(), "heun", 6, guidance=pull, guidance_scale=0.3, S_churn=4, epsilon_scale=1.3)
    found = calibrate(run, frechet, seeds=SEEDS[:2], grid=(0.95, 1.0, 1.05, 1.1, 1.2), refine=False)
    by_hand = sampler(Denoiser(), "heun", 6, guidance=pull, guidance_scale=0.3, S_churn=4, epsilon_scale=1.05)
    again = frechet(fastdiff.evaluation.generate(by_hand, SEEDS[1]))
    assert found.row(1.05).frechet[1] == again.frechet
    configuration = found.configuration
    assert configuration["solver"] == "heun"
    assert configuration["options"] == {"S_churn": 4}
    assert configuration["guidance_scale"] == [0.3]
    assert "pull" in str(configuration["guidance"])
    found.save(tmp_path / "lambda.json")
    assert load_scale(tmp_path / "lambda.json") == found.epsilon_scale
    assert not found.differences(describe(run))
    (other,) = found.differences(describe(run.replace(S_churn=2)))
    assert other.startswith("options: ")


def test_candidates_share_the_samplers_graphs():
    run, seen = sampler(Denoiser()), []

    def draw(candidate, seeds):
        seen.append(candidate._graphs is run._graphs)
        return torch.zeros(len(seeds), 1)

    calibrate(run, frechet, seeds=SEEDS[:1], grid=COARSE, refine=False, draw=draw)
    assert all(seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibrate": "golden"}, "calibrate must be one of search, linear, norm"),
        ({"seeds": []}, "seeds must be ranges"),
        ({"seeds": [range(5), range(4, 9)]}, "must not come twice"),
        ({"seeds": [range(5), 9]}, "all ranges or all numbers"),
        ({"seeds": [[0.5, 1]]}, "seeds must be integers"),
        ({"seeds": [[1]]}, "at least two in every range"),
        ({"grid": (1.0, 1.1)}, "grid must have two or more lambdas beside 1"),
        ({"grid": (0.0, 1.1, 1.2)}, "grid must be positive"),
        ({"tolerance": 0}, "tolerance must be positive"),
        ({"batch": 0}, "batch must be an integer"),
        ({"labels": "all"}, "labels must be 'cycle'"),
        ({"calibrate": "norm"}, "data must be given"),
    ],
)
def test_bad_arguments(options, message):
    def score(_):
        raise AssertionError("work was done")

    with pytest.raises(ValueError, match=message):
        calibrate(sampler(Denoiser()), score, **{"seeds": SEEDS, **options})


def test_a_mode_in_which_lambda_does_nothing_is_refused():
    with pytest.raises(ValueError, match="no lambda to choose"):
        calibrate(sampler(Denoiser(), epsilon_scale_mode="eps"), frechet, seeds=SEEDS)


def test_a_score_without_recall_is_refused():
    with pytest.raises(TypeError, match="frechet, precision and recall"):
        calibrate(sampler(Denoiser()), lambda x: object(), seeds=SEEDS)
