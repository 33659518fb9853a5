"""Single-step exponential integrators: orders, equal methods, exact cases, groups of steps, refusals."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from fastdiff import EDM, VP, Sampler
from fastdiff.continuous import SDEProcess
from fastdiff.process import CLEAN, Level, Levels
from fastdiff.sde import VPSDE
from tests.tolerances import CLOSED_FORM

from .closed_form import FIRST, LAST, Mixture, moments, sigmas

F64 = {"dtype": torch.float64}
POINTS = torch.linspace(-9.0, 9.0, 21, dtype=torch.float64)[None]
MIXTURE = Mixture((0.4, 0.6), (-1.0, 0.8), (0.5, 0.3))
TIMES = np.linspace(1.0, 0.01, 6)


def model(x, t):
    return 0.3 * torch.sin(3 * x) + 0.1 * x


def point(x, t):
    """Data that are all 0.7."""
    return torch.full_like(x, 0.7)


def orders(steps, **options):
    """The order of convergence seen between each number of steps and its double."""
    exact = MIXTURE.flow(POINTS, FIRST, LAST)
    errors = [(sigmas(MIXTURE.denoise, n, **options)(POINTS) - exact).abs().max().item() for n in steps]
    return [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]


@pytest.mark.parametrize("predict", ["x0", "eps"])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_exponential_runge_kutta_has_its_order(order, solver_type, predict):
    seen = orders((48, 96), solver="exponential_rk", order=order, solver_type=solver_type, predict=predict)
    assert seen == pytest.approx([order], abs=0.3)


@pytest.mark.parametrize(("order", "c2"), [(2, 0.3), (2, 1.0), (3, 0.1), (3, 0.6)])
def test_the_first_inner_point_is_free(order, c2):
    assert orders((48, 96), solver="exponential_rk", order=order, c2=c2) == pytest.approx([order], abs=0.3)


@pytest.mark.parametrize("predict", ["x0", "eps"])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_groups_of_grid_steps_have_the_order(order, solver_type, predict):
    options = {"solver": "dpm_singlestep", "order": order, "solver_type": solver_type, "predict": predict}
    assert orders((72, 144), **options) == pytest.approx([order], abs=0.4)


@pytest.mark.parametrize("predict", ["x0", "eps"])
def test_pairs_of_grid_steps_are_the_two_stage_method(predict):
    """With every second level halfway in lambda between its neighbours."""
    fine = np.geomspace(20, 0.05, 9).tolist()
    x = torch.linspace(-30, 30, 7, dtype=torch.float64)[:, None]
    grouped = Sampler(model, solver="dpm_singlestep", sigmas=fine, predict=predict, **F64)
    options = {"solver": "exponential_rk", "solver_type": "midpoint", "predict": predict}
    plain = Sampler(model, sigmas=fine[::2], **options, **F64)
    assert torch.allclose(grouped(x.shape, x_init=x), plain(x.shape, x_init=x), rtol=CLOSED_FORM, atol=CLOSED_FORM)


@pytest.mark.parametrize(
    ("solver", "options", "order"),
    [
        ("exponential_rk", {"order": 3}, 3),
        ("exponential_rk", {"predict": "eps"}, 2),
        ("dpm_singlestep", {"order": 3}, 3),
        ("dpm_singlestep", {"predict": "eps"}, 2),
        ("dpmpp_2s_ancestral", {"eta": 0.0}, 2),
        ("dpmpp_sde", {"eta": 0.0}, 2),
    ],
)
def test_towards_more_noise_the_order_is_the_same(solver, options, order, gaussian):
    u = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    exact = gaussian.ode(u, LAST, FIRST)
    errors = []
    for steps in (24, 48):
        grid = np.geomspace(FIRST, LAST, steps + 1).tolist()
        sampler = Sampler(gaussian.denoise, solver=solver, sigmas=grid, **options, **F64)
        errors.append((sampler.encode(u) - exact).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("process", [EDM(), VP.cosine(100), SDEProcess(VPSDE())], ids=["edm", "vp", "sde"])
def test_first_order_is_ddim(process):
    grid = {"timesteps": TIMES} if isinstance(process, SDEProcess) else {"steps": 6}
    options = {"process": process, "prediction": "x0", **grid, **F64}
    wanted = Sampler(model, solver="ddim", **options)((2, 3), seeds=3)
    for solver in ("exponential_rk", "dpm_singlestep"):
        for predict in ("x0", "eps"):
            mine = Sampler(model, solver=solver, order=1, predict=predict, **options)((2, 3), seeds=3)
            assert torch.allclose(mine, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 7])
def test_any_number_of_steps_ends_at_x0(steps, order, solver_type):
    """Where the official scheduler has NaN or too short a list of orders; x_0 of a point is reached exactly."""
    grid = [*np.geomspace(9, 0.1, steps), 0.0]
    options = {"sigmas": grid, "order": order, "solver_type": solver_type}
    sampler = Sampler(point, solver="dpm_singlestep", **options, **F64)
    assert torch.allclose(sampler((2, 3), seeds=0), torch.full((2, 3), 0.7, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("predict", ["x0", "eps"])
@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_sde_of_a_point_keeps_its_moments(order, eta, predict):
    """Exact for predict="x0"; for "eps", whose predicted noise changes within a step, as the steps get short."""
    steps = 12 if predict == "x0" else 384
    run = sigmas(
        lambda u, s: torch.full_like(u, 0.7), steps, solver="dpm_singlestep", order=order, eta=eta, predict=predict
    )
    mean, std = moments(run, 0.7, FIRST, brownian=True)
    assert mean == pytest.approx(0.7, abs=1e-9)
    assert std == pytest.approx(LAST, rel=CLOSED_FORM if predict == "x0" else 0.05)


@pytest.mark.parametrize("prediction", ["x0", "edm", "eps"])
@pytest.mark.parametrize(
    ("solver", "options"),
    [
        ("exponential_rk", {"order": 3}),
        ("exponential_rk", {"order": 3, "predict": "eps", "solver_type": "midpoint"}),
        ("dpm_singlestep", {"order": 3, "predict": "eps", "solver_type": "heun"}),
        ("dpm_singlestep", {"order": 3, "eta": 1.0, "solver_type": "heun"}),
        ("dpm_fast", {"eta": 0.5}),
        ("dpmpp_2s_ancestral", {}),
        ("dpmpp_sde", {}),
    ],
)
def test_one_launch_per_evaluation(solver, options, prediction):
    plan = Sampler(model, solver=solver, prediction=prediction, steps=9, **options).plan()
    assert len(plan.launches) <= plan.evaluations + 1
    assert max(len(launch.inputs) for launch in plan.launches) <= 8


@pytest.mark.parametrize("order", [2, 3])
def test_levels_that_repeat_and_pure_noise_are_steps_too(order):
    """A grid may repeat a level, and a chain may start at alpha = 0: neither is a second node of a polynomial."""

    def run(levels, **options):
        class Given(VP):
            def levels(self, steps=None, schedule=None, **unused):
                return Levels(levels, self)

        options |= {"order": order, "process": Given.linear(), "prediction": "x0"}
        return Sampler(model, solver="dpm_singlestep", **options, **F64)((2, 3), seeds=1)

    a, b, c = Level(0.5, 0.8, 700.0), Level(0.7, 0.6, 400.0), Level(0.9, 0.3, 100.0)
    assert run([a, a, b, b, c, c, CLEAN], solver_type="heun").isfinite().all()
    assert torch.equal(run([a, a, CLEAN]), run([a, CLEAN]))
    assert run([Level(0.0, 1.0, 999.0), a, b, c, CLEAN]).isfinite().all()


def test_a_sign_of_diffusers_can_be_had():
    """Its third-order Heun SDE subtracts alpha D_2 once too often; other rules are the same."""
    grid = np.geomspace(20, 0.05, 7).tolist()

    def last(quadratic, **options):
        sampler = Sampler(model, solver="dpm_singlestep", order=3, sigmas=grid, quadratic=quadratic, **options, **F64)
        return sampler((2, 3), seeds=1)

    assert not torch.allclose(
        last("exact", solver_type="heun", eta=1.0), last("diffusers", solver_type="heun", eta=1.0)
    )
    for same in ({"solver_type": "midpoint", "eta": 1.0}, {"solver_type": "heun"}):
        assert torch.equal(last("exact", **same), last("diffusers", **same))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "exponential_rk", "order": 4}, "order must be one of 1, 2, 3, got 4"),
        ({"solver": "exponential_rk", "predict": "v"}, "predict must be one of"),
        ({"solver": "exponential_rk", "solver_type": "bh1"}, "solver_type must be one of"),
        ({"solver": "exponential_rk", "c2": 0.0}, "c2 must be in"),
        ({"solver": "exponential_rk", "c2": 1.01}, "c2 must be in"),
        ({"solver": "exponential_rk", "order": 3, "c2": 0.7}, "c2 must be in"),
        ({"solver": "exponential_rk", "order": 1, "c2": 0.5}, "c2 must be in"),
        ({"solver": "dpm_singlestep", "order": 0}, "order must be one of"),
        ({"solver": "dpm_singlestep", "quadratic": "wrong"}, "quadratic must be one of"),
        ({"solver": "dpm_singlestep", "eta": -1.0}, "eta must be a number of at least 0"),
        ({"solver": "exponential_rk", "order": 3, "process": VP.linear(30)}, "the process has no 2 levels between"),
        ({"solver": "dpmpp_sde", "r": 0.0}, "r must be above 0"),
        ({"solver": "dpmpp_sde", "r": 1.5}, "r must be above 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(model, prediction="x0", **options)
