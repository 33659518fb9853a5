"""Ancestral steps and DPM-2: how a step is split, what they are equal to, and what they keep."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from fastdiff import EDM, VP, Sampler
from fastdiff.solvers import SOLVERS
from fastdiff.solvers.ancestral import split
from tests.tolerances import CLOSED_FORM

F64 = {"dtype": torch.float64}
SOLVERS_HERE = ["euler_ancestral", "dpm_2", "dpm_2_ancestral"]


def model(x, t):
    return 0.3 * torch.sin(3 * x) + 0.1 * x


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0, 1.7])
@pytest.mark.parametrize("end", [8.0, 7.9999, 0.5, 0.0])
def test_a_split_step_ends_at_its_level(end, eta):
    down, up = split(8.0, end, eta)
    assert math.hypot(down, up) == pytest.approx(end, abs=1e-14)
    assert up == pytest.approx(min(end, eta * end * math.sqrt((8 - end) * (8 + end)) / 8), abs=1e-14)


def test_a_split_step_at_eta_1_is_the_posteriors():
    """q(x_t | x_s, x_0) of a VE process has the variance t^2 (s^2 - t^2) / s^2; from pure noise there is no other."""
    assert split(8.0, 2.0, 1.0) == pytest.approx((0.5, math.sqrt(4 * 60 / 64)), rel=1e-14)
    assert split(math.inf, 2.0, 1.0) == (0.0, 2.0)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("process", [EDM(), VP.cosine(100)], ids=["edm", "vp"])
def test_euler_ancestral_is_ddim_with_eta(process, eta):
    options = {"process": process, "prediction": "x0", "steps": 7, **F64}
    mine = Sampler(model, solver="euler_ancestral", eta=eta, **options)((2, 3), seeds=3)
    ddim = Sampler(model, solver="ddim", eta=eta, **options)((2, 3), seeds=3)
    assert torch.allclose(mine, ddim, rtol=1e-9, atol=1e-9)


def test_without_noise_dpm_2_ancestral_is_dpm_2_and_draws_nothing():
    options = {"steps": 7, **F64}
    mine = Sampler(model, solver="dpm_2_ancestral", eta=0.0, **options)
    plain = Sampler(model, solver="dpm_2", **options)
    assert torch.equal(mine((2, 3), seeds=3), plain((2, 3), seeds=3))
    assert sum(len(launch.draws) for launch in mine.plan().launches) == 1


def test_dpm_2_is_the_midpoint_method_of_the_geometric_mean():
    """One step from 4 to 1 of x_0 = x / 2: d = x / 8 at 4, then u_m = x (1 - 2 / 8), d = u_m / 4 at 2."""
    x = torch.tensor([[8.0, -16.0]], dtype=torch.float64)
    seen = []

    def half(x, t):
        seen.append(t[0].item())
        return x / 2

    final = Sampler(half, solver="dpm_2", sigmas=[4.0, 1.0], **F64)((1, 2), x_init=x)
    assert seen == [4.0, 2.0]
    assert torch.allclose(final, x - 3 * (0.75 * x / 4))


def test_dpm_2_is_of_second_order(gaussian):
    x = 10.0 * torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    errors = []
    for steps in (80, 160):
        sigmas = (torch.linspace(10**0.2, 0.1**0.2, steps + 1, dtype=torch.float64) ** 5).tolist()
        final = Sampler(gaussian.denoise, solver="dpm_2", sigmas=sigmas, **F64)((9, 1), x_init=x)
        errors.append((final - gaussian.ode(x, 10.0, 0.1)).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("solver", ["euler_ancestral", "dpm_2_ancestral"])
def test_the_data_distribution_is_kept(solver, eta, gaussian):
    """With the exact denoiser of a Gaussian and enough steps the samples have its mean and standard deviation."""
    steps = 200 if solver == "euler_ancestral" else 60
    x = Sampler(gaussian.denoise, solver=solver, steps=steps, eta=eta, **F64)((20_000, 1), seeds=0)
    assert x.mean().item() == pytest.approx(gaussian.mean, abs=5 * gaussian.std / 200 + 0.005)
    assert x.std().item() == pytest.approx(gaussian.std, abs=5 * gaussian.std / 200 / 2**0.5 + 0.01)


def test_an_eta_that_leaves_no_signal_still_ends_at_its_level():
    """down = 0: a step is to x_0, then all of the next level's noise, for both solvers."""
    options = {"sigmas": [80.0, 2.0], "eta": 5.0, **F64}
    x = torch.zeros(20_000, 1, dtype=torch.float64)
    for solver in ("euler_ancestral", "dpm_2_ancestral"):
        final = Sampler(lambda x, t: 0 * x + 0.5, solver=solver, **options)(x.shape, x_init=x, seeds=0)
        assert final.mean().item() == pytest.approx(0.5, abs=0.06)
        assert final.std().item() == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("solver", ["euler_ancestral", "dpm_2_ancestral"])
def test_noise_is_told_the_interval_that_it_drives(solver):
    """Small ancestral steps are those of the SDE whose noise is a Brownian motion in sigma^(-2 eta^2)."""
    sampler = Sampler(model, solver=solver, steps=5, eta=0.5, **F64)
    told, x = [], torch.zeros(1, 2, dtype=torch.float64)

    def noise(start, end, eta=1.0):
        told.append((start, end, eta))
        return torch.zeros_like(x)

    class Engine:
        network = staticmethod(lambda x, *_: (0.1 * x, None, None))

    denoise = sampler.denoiser(Engine(), sampler.levels)
    for _ in SOLVERS[solver](denoise, x, sampler.levels, noise, eta=0.5):
        denoise.finish_step()
    assert told == [(a, b, 0.25) for a, b in pairwise(sampler.levels[:-1])]


def test_euler_ancestral_starts_from_pure_noise_and_dpm_2_refuses_to():
    """At alpha = 0 the first step is x_0 and fresh noise; DPM-2's midpoint would be at an infinite level."""
    options = {"process": "flow", "steps": 4, **F64}
    first = Sampler(lambda x, t: 0 * x + 0.5, solver="euler_ancestral", **options)((4, 6), seeds=2)
    assert torch.allclose(first, torch.full_like(first, 0.5), rtol=CLOSED_FORM, atol=CLOSED_FORM)
    for solver in ("dpm_2", "dpm_2_ancestral"):
        with pytest.raises(ValueError, match=r"alpha > 0 at every level .* 'euler_ancestral'"):
            Sampler(model, solver=solver, **options)


@pytest.mark.parametrize("solver", SOLVERS_HERE)
def test_a_step_of_no_length_changes_nothing(solver):
    """As at the end of a grid whose last level comes twice."""
    process = EDM()
    levels = process.levels_at([5.0, 1.0])
    twice = type(levels)([*levels, levels[-1]], process)

    class Engine:
        network = staticmethod(lambda x, *_: (0.1 * x, None, None))

    def never(*_):
        raise AssertionError("drew noise")

    x = torch.ones(1, 2, dtype=torch.float64)
    denoise = Sampler(model, solver=solver, **F64).denoiser(Engine(), twice)
    denoise.levels = type(levels)(twice[1:], process)
    (final,) = SOLVERS[solver](denoise, x, denoise.levels, never)
    assert torch.allclose(final, x, rtol=CLOSED_FORM, atol=CLOSED_FORM)


def test_dpm_2_runs_from_data_to_noise_and_back(gaussian):
    sampler = Sampler(gaussian.denoise, solver="dpm_2", steps=60, sigma_max=10.0, **F64)
    data = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    noise = sampler.encode(data)
    assert torch.allclose(noise, gaussian.ode(data, 0.002, 10.0), rtol=0.01, atol=0)
    assert torch.allclose(sampler(noise.shape, x_init=noise), data, rtol=0, atol=0.001)


@pytest.mark.parametrize("solver", SOLVERS_HERE)
def test_one_launch_an_evaluation(solver):
    plan = Sampler(model, solver=solver, steps=8).plan()
    assert plan.evaluations == (8 if solver == "euler_ancestral" else 15)
    assert len(plan.launches) == plan.evaluations + 1
    assert all(len(launch.inputs) <= 8 and len(launch.draws) <= 2 for launch in plan.launches)
    assert sum(len(launch.draws) for launch in plan.launches) == (1 if solver == "dpm_2" else 8)
