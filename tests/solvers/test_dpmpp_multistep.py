"""Multistep DPM-Solver(++): the published formulas, orders, first and last steps, one launch per evaluation."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from fastdiff import VP, Sampler
from fastdiff.plan import Launch
from fastdiff.process import Level
from fastdiff.schedules import zero_terminal_snr
from tests.tolerances import CLOSED_FORM

from .closed_form import FIRST, LAST, Mixture, intervals, moments, sigmas

F64 = {"dtype": torch.float64}
GRID = [8.0, 5.0, 2.4, 1.1, 0.5, 0.17, 0.05]


def model(x, t):
    return 0.3 * torch.sin(3 * x) + 0.4 * x


def published(x, grid, noise, predict, order, eta, solver_type):
    """The update formulas of Lu et al. 2022a and b on sigmas, for eta 0 or 1, step after step."""
    past: list[np.ndarray] = []
    for n, (s, t) in enumerate(pairwise(grid)):
        D = model(torch.as_tensor(x), None).numpy()
        past.append(D if predict == "x0" else (x - D) / s)
        h = math.log(s / t)
        p = min(order, len(past))
        m0 = past[-1]
        D1 = D2 = 0 * m0
        r0 = r1 = math.nan
        if p >= 2:
            r0 = math.log(grid[n - 1] / s) / h
            D1 = (m0 - past[-2]) / r0
        if p == 3:
            r1 = math.log(grid[n - 2] / grid[n - 1]) / h
            older = (past[-2] - past[-3]) / r1
            D1, D2 = D1 + r0 / (r0 + r1) * (D1 - older), (D1 - older) / (r0 + r1)
        H = h * (1 + eta)
        if predict == "x0":
            first, second, third = 1 - math.exp(-H), (math.exp(-H) - 1) / H + 1, 0.5 - (math.exp(-H) - 1 + H) / H**2
            carry, std = math.exp(-H), t * math.sqrt(1 - math.exp(-2 * eta * h))
        else:
            e = math.exp(h)
            first, second, third = (-(1 + eta) * t * f for f in (e - 1, (e - 1) / h - 1, (e - 1 - h) / h**2 - 0.5))
            carry, std = 1.0, t * math.sqrt(eta * (e**2 - 1))
        if p == 2 and solver_type == "midpoint":
            second = first / 2
        x = carry * x + first * m0 + second * D1 + third * D2 + std * noise[n]
    return x


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("predict", ["x0", "eps"])
@pytest.mark.parametrize(("order", "solver_type"), [(1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint")])
def test_the_published_formulas(order, solver_type, predict, eta):
    options = {"order": order, "solver_type": solver_type, "predict": predict, "eta": eta, "lower_order_final": False}
    start = torch.linspace(-9, 9, 12, **F64).reshape(3, 4)
    draws = torch.linspace(-1, 1.3, 6 * 12, **F64).reshape(6, 3, 4).sin()
    wanted = published(start.numpy(), GRID, draws.numpy(), predict, order, eta, solver_type)
    for route in ({"compiled": False}, {"backend": "cpu"}):
        sampler = Sampler(model, solver="dpm_multistep", sigmas=GRID, prediction="x0", **options, **F64, **route)
        x = sampler((3, 4), x_init=start, noise=lambda draw, step: draws[draw - 1])
        assert torch.allclose(x, torch.as_tensor(wanted), rtol=CLOSED_FORM, atol=CLOSED_FORM)


@pytest.mark.parametrize("predict", ["x0", "eps"])
@pytest.mark.parametrize(
    ("order", "options"),
    [
        (1, {"order": 1}),
        (2, {"order": 2}),
        (2, {"order": 2, "solver_type": "heun"}),
        (2, {"order": 3}),
        (3, {"order": 3, "quadratic": "exact", "solver_type": "heun"}),
    ],
    ids=lambda value: ",".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_order_of_convergence(order, options, predict):
    """The published third-order formula is of second order: its quadratic term has half the weight of the exact one."""
    data, u = Mixture(), torch.linspace(-2, 2, 7, **F64)[:, None] * FIRST
    exact = data.flow(u, FIRST, LAST)
    errors = []
    for steps in (48, 96):
        run = sigmas(data.denoise, steps, solver="dpm_multistep", predict=predict, lower_order_final=False, **options)
        errors.append((run(u) - exact).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.5), errors


@pytest.mark.parametrize("predict", ["x0", "eps"])
@pytest.mark.parametrize(("order", "weak"), [(1, 1), (2, 2), (3, 2)])
def test_weak_order_of_the_sde_forms(order, weak, predict, gaussian):
    """Moments of Gaussian data, whose denoiser is linear, at eta = 1."""
    errors = []
    for steps in (64, 128):
        # The published quadratic term's error passes through 0 here for "eps", and shows no order.
        options = {"predict": predict, "order": order, "eta": 1.0, "quadratic": "exact", "lower_order_final": False}
        run = sigmas(lambda u, s: gaussian.denoise(u, s), steps, solver="dpm_multistep", **options)
        mean, std = moments(run, gaussian.mean, math.hypot(gaussian.std, FIRST))
        errors.append(abs(mean - gaussian.mean) + abs(std - math.hypot(gaussian.std, LAST)))
    assert math.log2(errors[0] / errors[1]) > weak - 0.2


@pytest.mark.parametrize("predict", ["x0", "eps"])
def test_on_a_brownian_path_a_sample_refines(predict):
    """More steps with noise="brownian" change a sample less and less: strong order 1 for additive noise."""
    data, ends = Mixture(), []
    for steps in (16, 32, 64):
        grid = np.geomspace(FIRST, LAST, steps + 1)
        options = {"solver": "dpm_multistep", "predict": predict, "eta": 1.0, "noise": "brownian"}
        ends.append(Sampler(data.denoise, sigmas=grid, prediction="x0", **options, **F64)((300, 1), seeds=0))
    coarse, fine = ((a - b).abs().median().item() for a, b in pairwise(ends))
    assert fine < 0.7 * coarse < 0.03


@pytest.mark.parametrize("predict", ["x0", "eps"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_last_step_to_clean_data_is_the_prediction(steps, order, eta, predict):
    """Also a run of one step, where k-diffusion's SDE samplers crash, and noise prediction, which diffusers refuses."""
    grid = [*GRID[:steps], 0.0]
    options = {"order": order, "eta": eta, "predict": predict, "lower_order_final": False}
    sampler = Sampler(model, solver="dpm_multistep", sigmas=grid, prediction="x0", **options, **F64)
    seen = []
    x = sampler((2, 3), seeds=1, callback=lambda info: seen.append(info.denoised.clone()))
    assert len(seen) == steps and torch.allclose(x, seen[-1], rtol=CLOSED_FORM, atol=CLOSED_FORM)
    assert [(a.sigma_ve, b.sigma_ve) for a, b, _ in intervals(sampler)] == list(pairwise(GRID[:steps])) * (eta > 0)


def test_draws_name_the_time_of_their_brownian_path():
    for predict, clock in (("x0", 0.5), ("eps", -1.0)):
        sampler = Sampler(model, solver="dpm_multistep", sigmas=GRID, prediction="x0", eta=0.5, predict=predict)
        assert {eta for *_, eta in intervals(sampler)} == {clock}


def orders(**options):
    """The order of every step, by how many past values it reads."""
    changed, base = [], Sampler(model, solver="dpm_multistep", prediction="x0", compiled=False, **F64, **options)
    x = torch.full((1, 2), 3.0, **F64)
    steps, calls = base.levels.steps, []

    def run(bumped):
        count = [0]

        def bump(y, t):
            count[0] += 1
            return torch.full_like(y, 1.0 + (count[0] - 1 == bumped))

        sampler = Sampler(bump, solver="dpm_multistep", prediction="x0", compiled=False, **F64, **options)
        calls.append(count)
        return sampler((1, 2), x_init=x, return_trajectory=True)[1][1:, 0, 0]

    plain, levels = run(-1), base.levels
    for n in range(steps):
        difference = run(n) - plain
        own = difference - torch.tensor(  # what the linear part carries on is no new reading
            [0.0, *[difference[i] * levels[i + 2].sigma / levels[i + 1].sigma for i in range(steps - 1)]], **F64
        )
        changed.append(own.abs() > 1e-12)
    return torch.stack(changed).sum(0).tolist()


def test_lower_orders_at_the_end():
    grid, long = GRID[:6], np.geomspace(8, 0.05, 16).tolist()
    assert orders(sigmas=grid, order=3) == [1, 2, 3, 2, 1]
    assert orders(sigmas=grid, order=2) == [1, 2, 2, 2, 1]
    assert orders(sigmas=grid, order=3, lower_order_final=False) == [1, 2, 3, 3, 3]
    assert orders(sigmas=grid, order=3, lower_order_final=False, euler_at_final=True) == [1, 2, 3, 3, 1]
    assert orders(sigmas=long, order=3) == [1, 2, *[3] * 13]
    assert orders(sigmas=[*grid[:-1], 0.0], order=3, lower_order_final=False) == [1, 2, 3, 3, 1]


def test_a_start_from_pure_noise():
    """Zero terminal SNR: lambda = -inf at the first level, which is no node of a later polynomial."""
    process = VP(zero_terminal_snr(VP.linear(100).betas))
    options = {"process": process, "prediction": "v", "steps": 6, **F64}
    first = Sampler(model, solver="ddim", **options)((2, 3), seeds=4, return_trajectory=True)[1]
    for eta in (0.0, 1.0):
        sampler = Sampler(model, solver="dpm_multistep", order=3, eta=eta, **options)
        assert sampler.levels[0].alpha == 0
        states = sampler((2, 3), seeds=4, return_trajectory=True)[1]
        assert states.isfinite().all()
        if eta == 0:
            assert torch.allclose(states[:2], first[:2], rtol=CLOSED_FORM, atol=CLOSED_FORM)
    with pytest.raises(ValueError, match='predict must be "x0"'):
        Sampler(model, solver="dpm_multistep", predict="eps", **options)((2, 3), seeds=4)


def test_a_repeated_level_changes_nothing():
    class Grid:
        def __init__(self, values):
            self.values = np.array(values)

        def __call__(self, n, **options):
            return self.values

    options = {"solver": "dpm_multistep", "prediction": "x0", "order": 2, "lower_order_final": False, **F64}
    plain, repeated = (
        Sampler(model, schedule=Grid(values), steps=len(values) - 1, **options)((2, 3), seeds=1)
        for values in ([8.0, 2.0, 0.5, 0.1, 0.0], [8.0, 2.0, 2.0, 0.5, 0.1, 0.0])
    )
    assert torch.allclose(plain, repeated, rtol=CLOSED_FORM, atol=CLOSED_FORM)


@pytest.mark.parametrize("predict", ["x0", "eps"])
@pytest.mark.parametrize(("solver", "order"), [("dpm_multistep", 2), ("dpm_multistep", 3), ("unipc", 1), ("unipc", 2)])
def test_towards_more_noise(solver, order, predict):
    """The same steps with h below 0: at order 3 the exact ones, and UniPC's corrector gains one."""
    data, u = Mixture(), torch.linspace(-1.5, 1.5, 7, **F64)[:, None]
    options = {"solver": solver, "order": order, "predict": predict, "lower_order_final": False}
    options |= {"quadratic": "exact"} if solver == "dpm_multistep" else {}
    exact, errors = data.flow(u, LAST, FIRST), []
    for steps in (48, 96):
        t = np.linspace(0, 1, steps + 1) ** 2  # the first steps, of lower orders, are short
        grid = [*(LAST * (FIRST / LAST) ** t)[::-1], 0.0]
        sampler = Sampler(data.denoise, sigmas=grid, prediction="x0", compiled=False, **options, **F64)
        errors.append((sampler.encode(u) - exact).abs().max().item())
    assert math.log2(errors[0] / errors[1]) > order + (solver == "unipc") - 0.4, errors


@pytest.mark.parametrize("prediction", ["edm", "eps"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"solver": "dpmpp_2m"},
        {"solver": "dpmpp_2m_sde"},
        {"solver": "dpmpp_3m_sde"},
        {"solver": "dpm_multistep", "order": 3, "predict": "eps", "eta": 1.0},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_one_launch_per_evaluation(options, clip, prediction):
    process = "edm" if prediction == "edm" else VP.linear(100)
    sampler = Sampler(model, process=process, prediction=prediction, steps=9, clip_denoised=clip, **options)
    launches = [item for item in sampler.plan().items if isinstance(item, Launch)]
    assert len(launches) <= 9 + 1 and max(len(launch.inputs) for launch in launches) <= 5


@pytest.mark.parametrize("predict", ["x0", "eps"])
@pytest.mark.parametrize("quadratic", ["published", "diffusers", "exact"])
def test_weights_of_the_quadratic_term(quadratic, predict):
    """diffusers' sde-dpmsolver++ has -1/2 where the published formula has +1/2; nothing else of it differs."""
    from fastdiff.solvers.dpmpp_multistep import multistep_moments
    from fastdiff.solvers.exponential import Exponential

    for eta in (0.0, 1.0):
        step = Exponential(Level(0.5, 0.8, 0.0), Level(0.7, 0.4, 0.0), predict, eta)
        exact = [step.moment(k) for k in range(3)]
        wanted = exact[2] if quadratic == "exact" else exact[2] / 2
        if quadratic == "diffusers" and predict == "x0" and eta:
            H = 2 * step.h
            wanted = step.end.alpha * ((1 - math.exp(-H) - H) / H**2 - 0.5)
        assert multistep_moments(step, 3, "midpoint", quadratic) == pytest.approx([*exact[:2], wanted], rel=1e-13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 4}, "order must be one of 1, 2, 3, got 4"),
        ({"predict": "v"}, "predict must be one of x0, eps"),
        ({"solver_type": "taylor"}, "solver_type must be one of midpoint, heun"),
        ({"quadratic": "cubic"}, "quadratic must be one of published, exact, diffusers"),
        ({"eta": math.inf}, "eta must be finite"),
        ({"eta": -1.0}, "eta must be a number of at least 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(model, solver="dpm_multistep", steps=4, prediction="x0", **options)((2, 3), seeds=1)
