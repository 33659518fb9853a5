"""DPM-Solver++ 2S ancestral and SDE: what they equal without noise, exact moments, intervals of their draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastdiff import EDM, VP, Sampler
from fastdiff.continuous import SDEProcess
from fastdiff.process import CLEAN, Level, Levels
from fastdiff.sde import VPSDE
from tests.tolerances import CLOSED_FORM

from .closed_form import FIRST, LAST, intervals, moments, sigmas

F64 = {"dtype": torch.float64}
SOLVERS = ["dpmpp_2s_ancestral", "dpmpp_sde"]


def model(x, t):
    return 0.3 * torch.sin(3 * x) + 0.1 * x


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("process", "grid"),
    [
        (EDM(), {"sigmas": np.geomspace(20, 0.1, 5).tolist()}),
        (SDEProcess(VPSDE()), {"timesteps": np.linspace(1, 0.01, 5)}),
        (VP.linear(1000), {"timesteps": [800, 400, 100]}),
    ],
    ids=["edm", "sde", "vp"],
)
def test_without_noise_it_is_the_two_stage_method(solver, process, grid):
    options = {"process": process, "prediction": "x0", **grid, **F64}
    mine = Sampler(model, solver=solver, eta=0.0, **options)((2, 3), seeds=3)
    wanted = Sampler(model, solver="exponential_rk", solver_type="midpoint", **options)((2, 3), seeds=3)
    assert torch.allclose(mine, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_the_moments_of_a_point_are_exact(solver, eta):
    """Data that are all 0.7: N(0.7, s^2) at every level s, in steps of any length."""
    run = sigmas(lambda u, s: torch.full_like(u, 0.7), 4, solver=solver, eta=eta)
    assert moments(run, 0.7, FIRST) == pytest.approx((0.7, LAST), rel=CLOSED_FORM)


@pytest.mark.parametrize("solver", SOLVERS)
def test_draws_name_their_intervals(solver):
    """The SDE's two draws of a step begin together; the inner level is at theta = r in lambda."""
    options = {"r": 0.25} if solver == "dpmpp_sde" else {}
    told = intervals(Sampler(model, solver=solver, sigmas=[16.0, 1.0, 0.0], eta=0.5, compiled=False, **options, **F64))
    seen = [(start.sigma_ve, end.sigma_ve, clock) for start, end, clock in told]
    inner = [(16.0, pytest.approx(8.0), 0.25)] if solver == "dpmpp_sde" else []
    assert seen == [*inner, (16.0, 1.0, 0.25)]


@pytest.mark.parametrize("solver", SOLVERS)
def test_s_noise_0_draws_nothing(solver):
    assert intervals(Sampler(model, solver=solver, steps=4, S_noise=0.0, compiled=False, **F64)) == []


@pytest.mark.parametrize("solver", SOLVERS)
def test_from_pure_noise_one_evaluation_says_all(solver):
    """At alpha = 0 nothing is known but x_0: the first step is that of the first order."""

    class ZeroTerminal(VP):
        def levels(self, steps=None, schedule=None, **options):
            return Levels([Level(0.0, 1.0, 999.0), Level(0.6, 0.8, 500.0), CLEAN], self)

    sampler = Sampler(model, process=ZeroTerminal.linear(), prediction="x0", solver=solver, S_noise=0.0, **F64)
    z = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    states = sampler(z.shape, x_init=z, return_trajectory=True)[1]
    assert torch.allclose(states[1], 0.6 * model(z, None), atol=1e-12)


@pytest.mark.parametrize("r", [0.2, 0.5, 1.0])
def test_the_inner_point_of_the_sde_is_free(r):
    """One step from 16 to 1 by hand, with the two ancestral splits."""
    x = torch.tensor([[8.0, -16.0]], dtype=torch.float64)
    z = torch.tensor([[[0.3, -0.4]], [[-1.1, 0.2]]], dtype=torch.float64)
    sampler = Sampler(model, solver="dpmpp_sde", sigmas=[16.0, 1.0], r=r, **F64)
    got = sampler((1, 2), x_init=x, noise=lambda draw, step: z[draw - 1])
    s, t, m = 16.0, 1.0, 16.0 ** (1 - r)
    down = [e * e / s for e in (m, t)]
    up = [math.sqrt(e * e - d * d) for e, d in zip((m, t), down)]
    first = model(x, None)
    inner = down[0] / s * x + (1 - down[0] / s) * first + up[0] * z[0]
    d = (1 - 1 / (2 * r)) * first + 1 / (2 * r) * model(inner, None)
    assert torch.allclose(got, down[1] / s * x + (1 - down[1] / s) * d + up[1] * z[1], rtol=1e-12)
