"""Adaptive DPM-Solver: tolerances, samples that do not know of each other, the controller, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastdiff import VP, Sampler
from fastdiff.adaptive import Controller
from fastdiff.continuous import Flow, SDEProcess
from fastdiff.interpolating import InterpolatingVP
from fastdiff.sde import subVPSDE
from tests.tolerances import CLOSED_FORM, FLOAT32_STATE

F64 = {"dtype": torch.float64}
ENDS = [20.0, 0.05]
TOLERANCES = (0.1, 0.03, 0.005)


def rough(x, t):
    """A denoiser that asks for shorter steps where samples are large."""
    s = t.reshape(-1, *[1] * (x.ndim - 1))
    return (0.25 * x + s**2 * (0.3 + 0.2 * torch.tanh(4 * x / (1 + s)))) / (0.25 + s**2)


def run(shape=(5, 3), *, model=rough, seeds=2, sigmas=ENDS, **options):
    trials = []
    sampler = Sampler(model, solver="dpm_adaptive", sigmas=sigmas, watch=trials.append, **{**F64, **options})
    return sampler(shape, seeds=seeds), trials


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("norm", ["sample", "batch"])
def test_the_error_follows_the_tolerance(order, norm, gaussian):
    x = 20 * torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    exact = gaussian.ode(x, *ENDS)
    errors, counts = [], []
    for tolerance in TOLERANCES:
        trials = []
        options = {"order": order, "norm": norm, "rtol": tolerance, "atol": tolerance, "watch": trials.append}
        sampler = Sampler(gaussian.denoise, solver="dpm_adaptive", sigmas=ENDS, **options, **F64)
        errors.append((sampler(x.shape, x_init=x) - exact).abs().max().item())
        counts.append(trials[-1].evaluations)
    assert all(error < 20 * tolerance for error, tolerance in zip(errors, TOLERANCES))
    assert counts[0] <= counts[1] < counts[2]


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_a_sample_is_the_same_in_any_batch(eta, backend, device):
    together, trials = run(seeds=[7, 8, 9, 10, 11], eta=eta, backend=backend, device=device)
    shuffled, _ = run(seeds=[11, 9, 7, 10, 8], eta=eta, backend=backend, device=device)
    assert torch.equal(shuffled, together[[4, 2, 0, 3, 1]])
    for b in range(5):
        alone, own = run((1, 3), seeds=7 + b, eta=eta, backend=backend, device=device)
        assert torch.allclose(alone[0], together[b], rtol=CLOSED_FORM, atol=CLOSED_FORM)
        assert [trial.accepted[0] for trial in own] == [trial.accepted[b] for trial in trials[: len(own)]]
    steps = sum(np.stack([trial.accepted for trial in trials]))
    assert len(set(steps.tolist())) > 1, "the samples should need different numbers of steps"


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("norm", ["sample", "batch"])
def test_the_plan_is_the_solvers_own_lines(norm, eta, backend, device):
    mine, _ = run(norm=norm, eta=eta, backend=backend, device=device)
    readable, _ = run(norm=norm, eta=eta, compiled=False, device=device)
    assert torch.allclose(mine, readable, rtol=1e-10, atol=1e-10)


def test_one_sample_is_a_batch():
    assert torch.equal(run((1, 3), norm="batch")[0], run((1, 3), norm="sample")[0])


def test_a_float32_run_stays_close():
    single, double = (run(dtype=dtype, norm="batch")[0] for dtype in (torch.float32, torch.float64))
    assert (single - double).abs().max() <= FLOAT32_STATE * double.abs().max() * 10


@pytest.mark.parametrize(
    "process",
    [SDEProcess(subVPSDE()), InterpolatingVP(VP.linear().betas)],
    ids=["sde", "interpolating"],
)
def test_every_process_leads_along_the_same_flow(process, gaussian):
    """In VE terms the flow of a Gaussian is that of any process."""
    levels = process.levels(3)
    by_time = {level.time: level for level in levels}

    def model(x, t):
        found = [by_time.get(time) or process.level_at_sigma(sigma_of[time]) for time in t.tolist()]
        alpha, s = (torch.tensor(v, dtype=x.dtype) for v in zip(*((level.alpha, level.sigma_ve) for level in found)))
        return gaussian.denoise(x / alpha[:, None], s)

    class Spy(type(process)):
        def level_at_sigma(self, sigma_ve):
            level = super().level_at_sigma(sigma_ve)
            sigma_of[level.time] = sigma_ve
            return level

    sigma_of = {}
    spied = object.__new__(Spy)
    vars(spied).update(vars(process))
    first, last = levels[0], levels[-2]
    x = first.sigma * torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    options = {"process": spied, "prediction": "x0", "steps": 3, "rtol": 1e-4, "atol": 1e-4}
    states = Sampler(model, solver="dpm_adaptive", **options, **F64)(x.shape, x_init=x, return_trajectory=True)[1]
    exact = gaussian.ode(x / first.alpha, first.sigma_ve, last.sigma_ve)
    assert torch.allclose(states[-2] / last.alpha, exact, atol=1e-2)


def test_noise_keeps_the_variance(gaussian):
    """With eta = 1 and the exact denoiser, samples have the data's mean and standard deviation."""
    options = {"eta": 1.0, "rtol": 0.02, "atol": 0.005, "sigmas": [40.0, 0.01, 0.0], "norm": "batch"}
    x, _ = run((8000, 2), model=gaussian.denoise, seeds=0, **options)
    assert x.mean().item() == pytest.approx(gaussian.mean, abs=5 * gaussian.std / math.sqrt(16000) + 0.01)
    assert x.std().item() == pytest.approx(gaussian.std, abs=5 * gaussian.std / math.sqrt(32000) + 0.01)


def test_with_one_brownian_path_the_tolerance_refines_a_sample():
    """The draws of a run are increments of a path that does not depend on the steps; those of others are fresh."""
    options = {"norm": "batch", "eta": 1.0, "sigmas": [20.0, 0.01]}
    apart = {}
    for noise in ("brownian", "independent"):
        coarse, fine = (run((40, 2), noise=noise, rtol=t, atol=t, **options)[0] for t in (0.01, 0.001))
        apart[noise] = (coarse - fine).square().mean().sqrt()
    assert apart["brownian"] < 0.5 * apart["independent"]
    with pytest.raises(ValueError, match="norm must be 'batch' with noise='brownian'"):
        run(noise="brownian", eta=0.5)
    run(noise="brownian")


def test_a_clean_end_is_the_predicted_x0():
    noisy, _ = run(norm="batch")
    clean, _ = run(norm="batch", sigmas=[*ENDS, 0.0])
    assert torch.equal(clean, rough(noisy, torch.full((5,), ENDS[1], dtype=torch.float64)))


@pytest.mark.parametrize("norm", ["sample", "batch"])
def test_observers_see_the_steps_that_are_taken(norm):
    plain, trials = run(norm=norm, sigmas=[*ENDS, 0.0])
    seen = []
    sampler = Sampler(rough, solver="dpm_adaptive", sigmas=[*ENDS, 0.0], norm=norm, **F64)
    final, states = sampler((5, 3), seeds=2, callback=seen.append, return_trajectory=True)
    taken = [trial for trial in trials if trial.accepted.any()]
    assert torch.equal(final, plain)
    assert torch.equal(states[-1], plain)
    assert len(states) == len(taken) + 2
    assert all(torch.equal(state, trial.x) for state, trial in zip(states[1:], taken))
    assert [info.step for info in seen] == list(range(len(seen)))
    assert [info.level.sigma_ve for info in seen] == sorted((info.level.sigma_ve for info in seen), reverse=True)
    assert torch.equal(seen[-1].denoised, plain)


def test_guidance_and_clipping_are_applied():
    def pull(x, level):
        return -x

    options = {"sigmas": [*ENDS, 0.0], "clip_denoised": (-0.2, 0.2)}
    clipped, _ = run(**options)
    assert clipped.abs().max() <= 0.2
    assert not torch.allclose(run(norm="batch")[0], run(norm="batch", guidance=pull)[0], atol=1e-3)
    with pytest.raises(ValueError, match=r"guidance must be a fastdiff\.guidance\.Gradient"):
        run(guidance=pull)


def test_an_empty_batch():
    assert run((0, 3), seeds=[])[0].shape == (0, 3)


# --- the controller ---------------------------------------------------------------------------------------------------


def test_the_controller_shortens_and_lengthens():
    controller = Controller(np.array([1.0, 1.0, 1.0]), (0.0, 1.0, 0.0), 2, 0.81)
    accepted = controller.accept(np.array([4.0, 0.25, 4.0]), np.array([True, True, False]))
    assert accepted.tolist() == [False, True, False]
    assert controller.h == pytest.approx([1 + math.atan(0.5 - 1), 1 + math.atan(2 - 1), 1.0], rel=1e-6)


def test_the_controller_remembers_errors_of_good_steps_only():
    """PID: e1^b1 e2^b2 e3^b3 with b = (p + i + d, -(p + 2 d), d) / order."""
    p, i, d = 0.2, 0.7, 0.1
    controller = Controller(np.ones(1), (p, i, d), 1, 0.5)
    everything = np.array([True])
    for error in (0.5, 40.0, 0.8):
        controller.accept(np.array([error]), everything)
    factors = [2 ** (i - 0.0 * p), 0, 0]
    factors[0] = (2 ** (p + i + d)) * (2 ** -(p + 2 * d)) * 2**d
    factors[1] = (40**-1) ** (p + i + d) * 2 ** -(p + 2 * d) * 2**d
    factors[2] = 0.8 ** -(p + i + d) * 2 ** -(p + 2 * d) * 2**d
    assert controller.h[0] == pytest.approx(math.prod(1 + math.atan(f - 1) for f in factors), rel=1e-6)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 1}, "order must be one of 2, 3"),
        ({"norm": "image"}, "norm must be one of sample, batch"),
        ({"atol": 0.0}, "atol must be positive"),
        ({"h_init": 0.0}, "h_init must be positive"),
        ({"process": VP.linear(), "steps": 10}, "process must have a level at every sigma"),
        ({"process": Flow(), "prediction": "flow", "steps": 5}, "levels must begin at alpha > 0"),
        ({"sigmas": [1.0, 0.0]}, "levels must have two noisy ones"),
        ({"sigmas": [3.0, 1.0, 0.1], "epsilon_scale": [1.0, 1.1]}, "epsilon_scale must be one number"),
    ],
)
def test_refusals(options, message):
    options = {"prediction": "x0", **options}
    if not {"steps", "sigmas"} & set(options):
        options["sigmas"] = ENDS
    sampler = Sampler(rough, solver="dpm_adaptive", **options)
    with pytest.raises(ValueError, match=message):
        sampler((2, 3), seeds=0)


def test_it_has_no_plan_and_takes_no_mask():
    sampler = Sampler(rough, solver="dpm_adaptive", sigmas=ENDS)
    with pytest.raises(ValueError, match="solver 'dpm_adaptive' has no plan"):
        sampler.plan()
    with pytest.raises(ValueError, match="must be left out for solver 'dpm_adaptive'"):
        sampler((2, 3), seeds=0, image=torch.zeros(2, 3), mask=torch.ones(2, 3))
    with pytest.raises(ValueError, match="to encode"):
        sampler.encode(torch.zeros(2, 3))


def test_observing_single_samples_is_refused():
    sampler = Sampler(rough, solver="dpm_adaptive", sigmas=ENDS, compiled=False)
    with pytest.raises(ValueError, match="norm must be 'batch' to observe"):
        sampler((2, 3), seeds=0, return_trajectory=True)


def test_an_error_that_is_not_finite_is_named():
    with pytest.raises(FloatingPointError, match="not finite at sigma / alpha"):
        run(model=lambda x, t: x * math.nan)


def test_a_tolerance_below_rounding_is_named():
    noise = torch.Generator().manual_seed(0)
    with pytest.raises(FloatingPointError, match=r"has made 20 trial steps.*rtol=1e-09"):
        run(
            model=lambda x, t: torch.randn(x.shape, generator=noise, dtype=x.dtype), rtol=1e-9, atol=1e-9, max_trials=20
        )
