"""DPM-Solver-fast: its orders, equal methods, evaluations, exact moments."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastdiff import EDM, VP, Sampler
from fastdiff.continuous import Flow, SDEProcess
from fastdiff.sde import VPSDE
from fastdiff.solvers.dpm_fast import orders_of
from tests.tolerances import CLOSED_FORM

from .closed_form import FIRST, LAST, Mixture, intervals

F64 = {"dtype": torch.float64}
POINTS = torch.linspace(-9.0, 9.0, 21, dtype=torch.float64)[None]


def model(x, t):
    return 0.3 * torch.sin(3 * x) + 0.1 * x


@pytest.mark.parametrize("evaluations", range(1, 14))
def test_orders_add_up_to_the_evaluations(evaluations):
    orders = orders_of(evaluations)
    assert sum(orders) == evaluations
    assert len(orders) == evaluations // 3 + 1
    assert set(orders[:-2]) <= {3}
    plan = Sampler(model, solver="dpm_fast", sigmas=[20.0, 0.1], evaluations=evaluations).plan()
    assert plan.evaluations == evaluations
    assert len(plan.launches) <= evaluations + 1


@pytest.mark.parametrize(("evaluations", "order"), [(59, 3), (60, 2), (61, 2)])
def test_the_last_step_decides_the_order(evaluations, order):
    """One step of order p costs h^(p + 1): with a last one of order 2 nothing is lost."""
    mixture = Mixture((0.4, 0.6), (-1.0, 0.8), (0.5, 0.3))
    exact = mixture.flow(POINTS, FIRST, LAST)

    def error(evaluations):
        options = {"sigmas": [FIRST, LAST], "evaluations": evaluations, **F64}
        run = Sampler(lambda x, s: mixture.denoise(x, s.item()), solver="dpm_fast", **options)
        return (run(POINTS.shape, x_init=POINTS) - exact).abs().max().item()

    assert math.log2(error(evaluations) / error(evaluations + 60)) / math.log2(
        (evaluations + 60) / evaluations
    ) == pytest.approx(order, abs=0.4)


def test_two_evaluations_are_dpm_solver_2():
    x = torch.linspace(-30, 30, 7, dtype=torch.float64)[:, None]
    ends = {"sigmas": [20.0, 0.5], **F64}
    mine = Sampler(model, solver="dpm_fast", evaluations=2, **ends)(x.shape, x_init=x)
    wanted = Sampler(model, solver="exponential_rk", predict="eps", solver_type="midpoint", **ends)(x.shape, x_init=x)
    assert torch.allclose(mine, wanted, rtol=CLOSED_FORM, atol=CLOSED_FORM)


@pytest.mark.parametrize(
    "options",
    [
        {"process": EDM(), "steps": 9},
        {"process": SDEProcess(VPSDE()), "steps": 9},
        {"process": VP.linear(1000), "steps": 9},
    ],
    ids=["edm", "sde", "vp"],
)
def test_the_evaluations_are_the_levels_and_the_end_is_x0(options):
    sampler = Sampler(model, prediction="x0", solver="dpm_fast", **options, **F64)
    assert sampler.plan().evaluations == sampler.levels.steps
    seen = []
    final = sampler((2, 3), seeds=1, callback=lambda info: seen.append(info.denoised))
    assert torch.equal(final, seen[-1])


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_noise_fills_up_what_a_step_leaves(eta):
    """The standard deviation of a point's states, with one start and one draw at a time: s at every level s."""
    grid = {"sigmas": [20.0, 0.1], "evaluations": 9, "eta": eta}
    told = intervals(Sampler(model, solver="dpm_fast", **grid, **F64, compiled=False))
    rows = torch.eye(len(told) + 1, dtype=torch.float64)
    sampler = Sampler(lambda x, t: torch.zeros_like(x), solver="dpm_fast", **grid, **F64)
    states = sampler(
        (len(rows), 1),
        x_init=20 * rows[:, :1],
        noise=lambda draw, step: rows[:, draw : draw + 1],
        return_trajectory=True,
    )[1]
    levels = np.geomspace(20, 0.1, 5)
    assert states[:, :, 0].square().sum(1).sqrt().numpy() == pytest.approx(levels, rel=CLOSED_FORM)
    assert [[start.sigma_ve, end.sigma_ve] for start, end, _ in told] == pytest.approx(
        np.stack([levels[:-2], levels[1:-1]], 1), rel=1e-12
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluations": 0.5}, "evaluations must be an integer"),
        ({"sigmas": [1.0, 0.0]}, "levels must have two noisy ones"),
        ({"process": Flow(), "prediction": "flow"}, "levels must begin at alpha > 0"),
        ({"process": VP.linear(30)}, "steps must be fewer"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(model, **{"solver": "dpm_fast", "prediction": "x0", **options})
