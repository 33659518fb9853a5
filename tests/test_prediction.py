"""Predictions of EDM's preconditioners: Karras et al. 2022, Table 1, and the times that raw networks are told."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.prediction import EDMPrediction, IDDPMPrediction, VEPrediction, VPPrediction
from fastdiff.process import Level
from fastdiff.schedules import LevelTable, iddpm_table, sigma_vp
from fastdiff.symbols import Buffer, Chosen
from tests.tolerances import CLOSED_FORM

U = iddpm_table(M=40, C_1=1e-4)
SIGMAS = (0.01, 0.7, 30.0)
EXPECTED = {
    "edm": (EDMPrediction(2.0), lambda s: (4 / (s * s + 4), 2 * s / math.hypot(s, 2), 1 / math.hypot(s, 2))),
    "vp": (VPPrediction(19.9, 0.1, 1000), lambda s: (1.0, -s, 1 / math.sqrt(s * s + 1))),
    "ve": (VEPrediction(), lambda s: (1.0, s, 1.0)),
    "iddpm": (IDDPMPrediction(U), lambda s: (1.0, -s, 1 / math.sqrt(s * s + 1))),
}  # fmt: skip
TIMES = {
    "edm": lambda s: math.log(s) / 4,
    "vp": lambda s: 999 * (math.sqrt(0.01 + 39.8 * math.log1p(s * s)) - 0.1) / 19.9,
    "ve": lambda s: math.log(s / 2),
    "iddpm": lambda s: 39 - np.abs(U.astype(np.float32) - np.float32(s)).argmin(),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_coefficients_and_times(name):
    prediction, wanted = EXPECTED[name]
    for s in SIGMAS:
        alpha = 1 / math.sqrt(1 + s * s)  # a process whose state is alpha u
        skip, out, scale = wanted(s)
        assert prediction.coefficients(Level(1.0, s, s)) == pytest.approx((skip, out, scale), rel=CLOSED_FORM)
        state = Level(alpha, alpha * s, 17.0)
        assert prediction.coefficients(state) == pytest.approx((skip / alpha, out, scale / alpha), rel=CLOSED_FORM)
        assert prediction.time(state) == pytest.approx(TIMES[name](s), rel=CLOSED_FORM, abs=CLOSED_FORM)


@pytest.mark.parametrize("name", EXPECTED)
def test_times_tell_the_level(name):
    prediction = EXPECTED[name][0]
    levels = U[[2, 20, -2]] if name == "iddpm" else SIGMAS
    for s in levels:
        assert prediction.sigma_at(prediction.time(Level(1.0, s, s))) == pytest.approx(s, rel=1e-6)


@pytest.mark.parametrize("name", EXPECTED)
def test_levels_that_samples_choose(name):
    prediction, rows = EXPECTED[name][0], Buffer("rows")
    chosen = Chosen(SIGMAS, rows)
    time = prediction.time(Level(1.0, chosen, chosen))
    coefficients = prediction.coefficients(Level(1.0, chosen, chosen))
    for i, s in enumerate(SIGMAS):
        assert time.values[i] == prediction.time(Level(1.0, s, s))
        for got, want in zip(coefficients, prediction.coefficients(Level(1.0, s, s))):
            assert (got.values[i] if isinstance(got, Chosen) else got) == pytest.approx(want, rel=CLOSED_FORM)


@pytest.mark.parametrize("name", EXPECTED)
def test_pure_noise_is_refused_and_their_times_are_their_own(name):
    prediction = EXPECTED[name][0]
    with pytest.raises(ValueError, match="alpha = 0"):
        prediction.coefficients(Level(0.0, 1.0, 1.0))
    sampler = fastdiff.Sampler(lambda x, t: x, process="vp", prediction=prediction, solver="ddim", steps=3)
    assert sampler.time_dtype == torch.float32
    assert sampler.replace(prediction="eps").time_dtype == torch.int64


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: VPPrediction(beta_d=0), "beta_d"),
        (lambda: VPPrediction(beta_min=-1), "beta_min"),
        (lambda: VPPrediction(M=1), "M"),
        (lambda: IDDPMPrediction([1.0, 2.0, 0.0]), "u must be"),
        (lambda: IDDPMPrediction([2.0, 1.0]), "u must be"),
    ],
)
def test_bad_arguments(make, argument):
    with pytest.raises(ValueError, match=argument):
        make()


def test_a_table_rounds_to_the_nearest_level_in_float32():
    table = LevelTable([8.0, 2.0, 0.5, 0.0])
    assert [table.index(s) for s in (100, 5.1, 4.9, 1.2, 0.26, 0.24)] == [0, 0, 1, 2, 2, 3]
    assert table.round(1.3) == 2.0 and len(table) == 4 and table[-2] == 0.5


def test_the_vp_preconditioners_times_are_those_of_its_schedule():
    for t in (1e-5, 0.3, 1.0):
        s = float(sigma_vp(t))
        assert VPPrediction().time(Level(1.0, s, s)) == pytest.approx(999 * t, rel=1e-9)
