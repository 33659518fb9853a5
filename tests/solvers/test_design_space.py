"""EDM's design space: its corners are solvers of their own, its orders are those of the methods."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from fastdiff import EDM, VP, Sampler, schedules
from fastdiff.guidance import Boosting, DiscriminatorGuidance
from fastdiff.solvers.design_space import Coordinates
from tests.tolerances import CLOSED_FORM, NUMERICAL_DERIVATIVE

F64 = {"dtype": torch.float64}
BETAS = {
    "usual": (19.9, 0.1),
    "of EDM's limits": schedules.vp_betas(0.002, 80.0),
    "no beta_d": (0.0, 2.0),
    "of a large sigma_min": schedules.vp_betas(0.1, 80.0),  # beta_d below 0: sigma(t) bends, and grows up to t = 1
}


def model(x, t):
    return 0.3 * torch.sin(3 * x) + 0.1 * x


def run(**options):
    return Sampler(model, steps=6, **F64, **options)((2, 3), seeds=5)


@pytest.mark.parametrize("process", ["edm", "vp"])
@pytest.mark.parametrize("churn", [{}, {"S_churn": 8.0, "S_min": 0.05, "S_noise": 1.003}])
def test_its_defaults_are_heun_and_its_first_order_is_euler(process, churn):
    for solver, order in (("heun", 2), ("euler", 1)):
        mine = run(process=process, solver="edm_design_space", order=order, **churn)
        assert torch.allclose(mine, run(process=process, solver=solver, **churn), rtol=CLOSED_FORM, atol=CLOSED_FORM)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("alpha", [1 / 2, 2 / 3, 1.0])
@pytest.mark.parametrize("scaling", ["none", "vp"])
@pytest.mark.parametrize("time", ["linear", "ve", "vp"])
def test_order_of_convergence(time, scaling, alpha, order, gaussian):
    x = 10.0 * torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    options = {"solver": "edm_design_space", "time": time, "scaling": scaling, "alpha": alpha, "order": order}
    errors = []
    for steps in (80, 160):
        sigmas = np.linspace(10**0.2, 0.1**0.2, steps + 1) ** 5
        final = Sampler(gaussian.denoise, sigmas=sigmas, compiled=False, **options, **F64)((9, 1), x_init=x)
        errors.append((final - gaussian.ode(x, 10.0, 0.1)).abs().max().item())
    assert math.log2(errors[0] / errors[1]) > order - 0.2  # the midpoint in t = sigma is of third order on a Gaussian


@pytest.mark.parametrize("alpha", [1 / 2, 2 / 3])
def test_a_stage_between_the_steps_of_a_table_keeps_the_order(alpha, gaussian):
    """The level nearest to the stage is not at alpha of the step; with its own alpha the method is of second order."""
    process = VP.linear(1000)
    sigmas = np.sqrt(1 / process.alphas_cumprod - 1)

    def network(x, t):
        level = torch.as_tensor(sigmas)[t]
        return gaussian.denoise(x * (1 + level[:, None] ** 2).sqrt(), level)

    def error(stride, **options):
        x, steps = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None], list(range(500, 99, -stride))
        sampler = Sampler(network, process=process, timesteps=steps, compiled=False, **options, **F64)
        u, first, last = x / sampler.levels[0].alpha, sampler.levels[0].sigma_ve, sampler.levels[-2].sigma_ve
        states = sampler((5, 1), x_init=x, return_trajectory=True)[1]
        return (states[-2] / sampler.levels[-2].alpha - gaussian.ode(u, first, last)).abs().max().item()

    def midpoint_of_a_fixed_alpha(denoise, x, levels, noise):
        to = Coordinates("vp", "none", 19.9, 0.1)
        for level, following in pairwise(levels):
            u, t = x / level.alpha, to.t(level.sigma_ve)
            h = (to.t(following.sigma_ve) if following.sigma > 0 else 0.0) - t
            d = to.slope(u, denoise(x, level), level.sigma_ve)
            if following.sigma > 0:
                middle = levels.at_sigma(to.sigma(t + alpha * h))
                v = u + alpha * h * d
                slope = to.slope(v, denoise(middle.alpha * v, middle), middle.sigma_ve)
                d = (1 - 1 / (2 * alpha)) * d + slope / (2 * alpha)
            x = following.alpha * (u + h * d)
            yield x

    wide, narrow = (error(stride, solver="edm_design_space", time="vp", alpha=alpha) for stride in (10, 5))
    assert math.log2(wide / narrow) == pytest.approx(2, abs=0.3)
    assert narrow < 0.6 * error(5, solver=midpoint_of_a_fixed_alpha)


def test_a_table_without_a_level_in_between_leaves_heun():
    process = VP.linear(100)
    options = {"process": process, "timesteps": [9, 8, 7], **F64}
    near = Sampler(model, solver="edm_design_space", alpha=0.1, **options)((2, 3), seeds=1)
    assert torch.allclose(near, Sampler(model, solver="heun", **options)((2, 3), seeds=1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("betas", BETAS.values(), ids=BETAS)
@pytest.mark.parametrize("time", ["linear", "ve", "vp"])
def test_times_and_levels_are_inverse_and_the_rate_is_the_derivative(time, betas):
    to = Coordinates(time, "vp", *betas)
    for sigma in (0.003, 0.05, 1.0, 70.0):
        t = float(to.t(sigma))
        assert to.sigma(t) == pytest.approx(sigma, rel=1e-9)
        step = 1e-6 * t
        slope = float(to.sigma(t + step) - to.sigma(t - step)) / (2 * step)
        assert float(to.rate(sigma)) == pytest.approx(slope, rel=NUMERICAL_DERIVATIVE)


def test_vp_betas_reach_the_limits():
    beta_d, beta_min = schedules.vp_betas(0.01, 90.0, 1e-2)
    assert schedules.sigma_vp(1e-2, beta_d, beta_min) == pytest.approx(0.01, rel=1e-9)
    assert schedules.sigma_vp(1.0, beta_d, beta_min) == pytest.approx(90.0, rel=1e-9)


def test_the_last_step_in_ve_time_goes_half_way():
    """sigma = sqrt(t): Euler's step from t = sigma^2 to 0 ends at (x + x_0) / 2."""
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    options = {"solver": "edm_design_space", "time": "ve", "sigmas": [2.0, 0.0], **F64}
    final = Sampler(lambda x, t: 0.5 * x, **options)((1, 2), x_init=x)
    assert torch.allclose(final, 0.75 * x)


def test_mixed_epsilon_divides_the_scaled_state_minus_x0():
    """One step to 0 ends at x_0 = y - (y - D) / L with y = u / sqrt(1 + sigma^2): EDM-ES with scaling 'vp'."""
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    options = {"solver": "edm_design_space", "scaling": "vp", "sigmas": [2.0, 0.0], "epsilon_scale": 1.25, **F64}
    y, d = x / 5**0.5, 0.5 * x
    slope_times_h = -(1 / 5**0.5) * (y / 5**0.5 - (y - (y - d) / 1.25))  # h = -sigma
    final = Sampler(lambda x, t: 0.5 * x, mixed_epsilon=True, **options)((1, 2), x_init=x)
    assert torch.allclose(final, y + slope_times_h, rtol=CLOSED_FORM, atol=CLOSED_FORM)
    plain = Sampler(lambda x, t: 0.5 * x, **options)((1, 2), x_init=x)
    slope_times_h = -(1 / 5**0.5) * (y / 5**0.5 - (x - (x - d) / 1.25))
    assert torch.allclose(plain, y + slope_times_h, rtol=CLOSED_FORM, atol=CLOSED_FORM)


def test_stages_are_where_the_method_has_them_and_churned_levels_where_the_model_knows_them():
    """EDM rounds the grid and churned levels to the network's own, and no stage between."""
    seen = []
    options = {"process": EDM(round_sigma=lambda sigma: float(round(sigma))), "sigmas": [9.0, 4.0, 1.0], **F64}

    def watched(x, t):
        seen.append(t[0].item())
        return 0.1 * x

    Sampler(watched, solver="edm_design_space", alpha=0.5, S_churn=0.4, **options)((1, 2), seeds=1)
    assert seen[0::2] == [11.0, 5.0] and seen[1::2] == [7.5, 3.0]


@pytest.mark.parametrize("scaling", ["none", "vp"])
@pytest.mark.parametrize("churn", [0.0, 30.0])
def test_one_launch_an_evaluation_and_trial_points_are_never_written(scaling, churn):
    sampler = Sampler(model, solver="edm_design_space", time="vp", scaling=scaling, alpha=0.5, steps=8, S_churn=churn)
    plan = sampler.plan()
    assert len(plan.launches) == plan.evaluations + 1 == 16
    assert all(len(launch.inputs) <= 8 and len(launch.draws) <= 2 for launch in plan.launches)
    assert sum(len(launch.draws) for launch in plan.launches) == (1 if churn == 0 else 9)


@pytest.mark.parametrize("process", ["edm", "vp"])
@pytest.mark.parametrize(
    "solver",
    [
        {"solver": "dpm_2"},
        {"solver": "edm_design_space", "alpha": 0.5, "time": "vp", "scaling": "vp"},
        {"solver": "edm_design_space", "order": 1, "scaling": "vp"},
    ],
)
def test_samples_may_choose_their_churn(solver, process):
    """Stages between the steps are then at levels of their own, too."""
    guidance = DiscriminatorGuidance(lambda y, t, labels=None: 9 * y.sum(1) - 0.3, boosting=Boosting(2))
    options = {"process": process, "prediction": "x0", "steps": 6, "guidance": guidance, **solver, **F64}
    compiled, lines = Sampler(model, **options), Sampler(model, compiled=False, **options)
    assert torch.allclose(compiled((4, 3), seeds=1), lines((4, 3), seeds=1), rtol=CLOSED_FORM, atol=CLOSED_FORM)
    calm = Sampler(model, **{**options, "guidance": DiscriminatorGuidance(guidance.called)})
    assert not torch.allclose(compiled((4, 3), seeds=1), calm((4, 3), seeds=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 3}, "order must be one of 1, 2, got 3"),
        ({"alpha": 0.0}, "alpha must be above 0 and at most 1, got 0.0"),
        ({"alpha": 1.5}, "alpha must be above 0 and at most 1, got 1.5"),
        ({"time": "cosine"}, "time must be one of linear, ve, vp, got 'cosine'"),
        ({"scaling": "ve"}, "scaling must be one of none, vp, got 've'"),
        ({"time": "vp", "betas": (-1.0, 3.0)}, r"betas must be of a sigma\(t\) that reaches every level"),
        ({"time": "vp", "betas": (1.0, -3.0)}, r"betas must be of a sigma\(t\) that grows"),
        ({"process": "flow"}, "alpha > 0 at every level .* use solver 'ddim'"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(model, solver="edm_design_space", steps=4, **options)
