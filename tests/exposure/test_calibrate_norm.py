"""Norm matching: what is measured, for every prediction and process, in pairs; and when it is refused."""

from __future__ import annotations

import pytest
import torch

import fastdiff
from fastdiff import VP
from fastdiff.exposure import calibrate, match_norms
from fastdiff.prediction import get_prediction

from ..threads import one_thread  # noqa: F401
from .closed_form import Denoiser, Scores, data, frechet, sampler

DATA = data(64)


class Network:
    """The mixture's denoiser as a network of any prediction on any process, told labels it ignores."""

    def __init__(self, process, prediction, bias=1.0):
        self.process, self.prediction, self.denoiser = process, get_prediction(prediction), Denoiser(bias)

    def __call__(self, x, t, labels=None):
        time = float(t[0])
        if self.prediction.name == "edm":
            level = self.process.level_at_sigma(float(torch.tensor(4 * time).exp()))
        else:
            level = (
                self.process.level(round(time)) if isinstance(self.process, VP) else self.process.level_at_sigma(time)
            )
        c_skip, c_out, c_in = self.prediction.coefficients(level)
        u = x / c_in
        x0 = self.denoiser(u / level.alpha, torch.full((len(x),), level.sigma_ve, dtype=torch.float64))
        return (x0 - c_skip * u) / c_out


def by_hand(run, scales):
    """Norms of epsilon along a trajectory with these lambdas, and on data with the same noise."""
    _, states = run.replace(epsilon_scale=scales)(len(DATA), seeds=100, return_trajectory=True)
    start = run.process.prior_std(run.levels[0])
    found = []
    for x, level in zip(states, run.levels[:-1]):
        pair = []
        for state in (x, level.alpha * DATA + level.sigma * states[0] / start):
            exact = Network(run.process, "x0", run.model.denoiser.bias)
            sigma = torch.full((len(state),), level.sigma_ve, dtype=torch.float64)
            x0 = exact.denoiser(state / level.alpha, sigma)
            pair.append(float(((state - level.alpha * x0) / level.sigma).flatten(1).norm(dim=1).mean()))
        found.append(pair)
    return [list(column) for column in zip(*found)]


@pytest.mark.parametrize("prediction", ["x0", "eps", "edm"])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_norms_are_those_of_the_trajectory_and_of_noised_data(prediction, solver):
    process = fastdiff.EDM(0.02, 80.0)
    run = sampler(Network(process, prediction, 1.05), solver, 5, prediction=prediction)
    found = match_norms(run, DATA, seeds=100, batch=64)
    sampling, reference = by_hand(run, found.schedule)
    assert found.sampling == pytest.approx(sampling, rel=1e-6)
    assert found.reference == pytest.approx(reference, rel=1e-6)
    wanted = [min(max(a / b, 0.9), 1.1) for a, b in zip(sampling, reference)]
    assert found.schedule == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
def test_norms_on_a_discrete_chain(prediction):
    process = VP.linear()
    run = fastdiff.Sampler(
        Network(process, prediction), process=process, prediction=prediction, solver="ddim", steps=6, shape=(1,),
        dtype=torch.float64,
    )  # fmt: skip
    found = match_norms(run, DATA, seeds=100)
    sampling, reference = by_hand(run, found.schedule)
    assert found.sampling == pytest.approx(sampling, rel=1e-6)
    assert found.reference == pytest.approx(reference, rel=1e-6)


def test_the_noise_is_paired():
    """The norms of 64 latents vary by a tenth from one set of seeds to the next, their ratios hardly."""
    found, other = (match_norms(sampler(Denoiser(), "heun", 4), DATA, seeds=seed) for seed in (0, 1000))
    assert abs(found.sampling[0] / other.reference[0] - 1) > 0.02
    for one in (found, other):
        assert abs(one.sampling[0] / one.reference[0] - 1) < 0.005


def test_batches_strength_and_clip():
    run = sampler(Denoiser(1.05), "euler", 6)
    full, parts = (match_norms(run, DATA, seeds=3, clip=0.5, batch=batch) for batch in (64, 20))
    assert parts.schedule == pytest.approx(full.schedule, rel=1e-9)
    assert match_norms(run, DATA, seeds=3, strength=0).schedule == (1.0,) * 6
    narrow = match_norms(run, DATA, seeds=3, clip=0.01).schedule
    assert max(abs(scale - 1) for scale in narrow) == pytest.approx(0.01)


def test_guidance_churn_and_labels_pass_through():
    seen = set()

    def term(x, level, labels):
        seen.add(tuple(labels.tolist()))
        return -x / (1 + level.sigma**2)

    model = Network(fastdiff.EDM(0.02, 80.0), "x0")
    model.label_dim = 3
    run = sampler(model, "heun", 6, guidance=term, guidance_scale=0.1, S_churn=3)
    labels = torch.arange(len(DATA)) % 3
    found = match_norms(run, DATA, seeds=0, labels=labels, batch=32)
    assert len(found.schedule) == 6
    assert seen == {tuple(labels[:32].tolist()), tuple(labels[32:].tolist())}
    with pytest.raises(ValueError, match="data_labels must be given"):
        match_norms(run, DATA, seeds=0)


@pytest.mark.filterwarnings("ignore:lambda = 1.05 is an end of the grid")
def test_samples_may_have_levels_of_their_own():
    """The time-shift sampler tells every sample another time; search and norm matching take it as it is."""
    process, seen = VP.linear(), set()

    def network(x, t):
        seen.add(len(t.unique()))
        alpha = torch.as_tensor(process.alphas_cumprod)[t.long()][:, None].sqrt()
        sigma = (1 - alpha**2).sqrt()
        flat = Denoiser(1.04)((x / alpha).reshape(-1, 1), (sigma / alpha).repeat_interleave(x.shape[1]))
        return (x - alpha * flat.reshape(x.shape)) / sigma

    shift, plain = (
        fastdiff.Sampler(
            network, process=process, prediction="eps", solver=solver, steps=10, shape=(4,), dtype=torch.float64
        )
        for solver in ("time_shift", "ddim")
    )
    images = data(80).reshape(20, 4)
    shifted, usual = (match_norms(run, images, seeds=0, strength=-1) for run in (shift, plain))
    assert max(seen) > 1
    assert len(shifted.schedule) == 10
    assert shifted.schedule[0] == pytest.approx(usual.schedule[0], rel=1e-9)  # nothing has been shifted yet
    assert shifted.sampling != pytest.approx(usual.sampling, rel=1e-6)
    found = calibrate(shift, frechet, seeds=[range(50), range(50, 100)], grid=(0.95, 1.0, 1.05), refine=False)
    assert found.epsilon_scale == 1.05


def test_a_schedule_that_is_worse_than_1_is_refused():
    """A denoiser that takes too much noise away lowers the norms; the rule then takes away still more."""
    run = sampler(Denoiser(1.04), "euler", 16)
    seeds = [range(100), range(100, 200)]
    with pytest.warns(RuntimeWarning, match="norm matching was refused"):
        found = calibrate(run, frechet, seeds=seeds, calibrate="norm", data=DATA)
    assert found.refused
    assert found.epsilon_scale == 1.0
    assert "refused" in str(found)
    assert len(found.table) == 2  # what was refused can be read
    assert found.configuration["norm_seeds"] == "200-263"


def test_a_schedule_that_is_better_is_taken():
    """The other sign works against the drift: a strength of -1 undoes this bias by about 1.04 in every step."""
    run = sampler(Denoiser(1.04), "euler", 16)
    seeds = [range(start, start + 200) for start in range(0, 800, 200)]
    found = calibrate(run, frechet, seeds=seeds, calibrate="norm", data=DATA, strength=-1, norm_seeds=range(900, 964))
    assert not found.refused
    assert len(found.epsilon_scale) == 16
    assert max(found.epsilon_scale) > 1.02
    assert found.chosen.mean < found.baseline.mean
    assert found.configuration["strength"] == -1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"clip": 1.0}, ValueError, "clip must be in"),
        ({"strength": float("nan")}, ValueError, "strength must be finite"),
        ({"data": DATA.long()}, TypeError, "data must be a floating-point tensor"),
        ({"data": DATA[:1]}, TypeError, "two or more images"),
        ({"data": torch.zeros(4, 2)}, ValueError, r"data must have shape \[N, 1\]"),
        ({"batch": 0}, ValueError, "batch must be"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        match_norms(sampler(Denoiser()), **{"data": DATA, "seeds": 0, **options})


def test_a_norm_that_is_not_finite():
    run = sampler(lambda x, sigma: x * float("nan"), "euler", 4)
    with pytest.raises(FloatingPointError, match="norm of epsilon in step 0"):
        match_norms(run, DATA, seeds=0)


def test_scores_of_a_check_run_that_is_no_better_are_refused():
    with pytest.warns(RuntimeWarning, match="refused"):
        found = calibrate(
            sampler(Denoiser(), "euler", 4), lambda x: Scores(1.0), seeds=range(8), calibrate="norm", data=DATA
        )
    assert found.refused
