"""UniPC: the official formulas, orders with and without the corrector, ends, one launch per evaluation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastdiff import VP, Sampler
from fastdiff.plan import Launch
from fastdiff.schedules import zero_terminal_snr
from tests.tolerances import CLOSED_FORM

from .closed_form import FIRST, LAST, Mixture, sigmas

F64 = {"dtype": torch.float64}
GRID = [8.0, 5.0, 2.4, 1.1, 0.5, 0.17, 0.05]


def model(x, t):
    return 0.3 * torch.sin(3 * x) + 0.4 * x


def published(x, grid, predict, order, solver_type, lower_order_final, disable_corrector):
    """Zhao et al. 2023, Algorithms 1 and 2, on sigmas: D_m / r_m, and the system R a = b of B(h)."""
    lam = [-math.log(s) for s in grid]
    past, last = [], None

    def update(x, i, p, extra):
        """From level i to i + 1 with the p latest values before; `extra`: the value at i + 1."""
        s, t, h = grid[i], grid[i + 1], lam[i + 1] - lam[i]
        hh = -h if predict == "x0" else h
        B = hh if solver_type == "bh1" else math.expm1(hh)
        r = [(lam[i - k] - lam[i]) / h for k in range(1, p)]
        D = [(past[-1 - k] - past[-1]) / r[k - 1] for k in range(1, p)]
        if extra is not None:
            r, D = [*r, 1.0], [*D, extra - past[-1]]
        b, phi = [], math.expm1(hh) / hh - 1
        for k in range(1, len(r) + 1):
            b.append(phi * math.factorial(k) / B)
            phi = phi / hh - 1 / math.factorial(k + 1)
        a = [0.5] if len(r) == 1 else np.linalg.solve([[v**k for v in r] for k in range(len(r))], b) if r else []
        scale = 1.0 if predict == "x0" else t
        carry = t / s if predict == "x0" else 1.0
        return carry * x - scale * math.expm1(hh) * past[-1] - scale * B * sum(c * d for c, d in zip(a, D))

    steps = len(grid) - 1
    for n in range(steps):
        D = model(torch.as_tensor(x), None).numpy()
        m = D if predict == "x0" else (x - D) / grid[n]
        if last is not None and n - 1 not in disable_corrector:
            x = update(last, n - 1, p, m)  # noqa: F821  the order of the last predictor
        past.append(m)
        p = min(order, n + 1, steps - n if lower_order_final else order)
        last, x = x, update(x, n, p, None)
    return x


@pytest.mark.parametrize("predict", ["x0", "eps"])
@pytest.mark.parametrize("solver_type", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("lower", "disabled"), [(True, ()), (False, (0, 3)), (True, range(6))])
def test_the_official_formulas(order, solver_type, predict, lower, disabled):
    start = torch.linspace(-9, 9, 12, **F64).reshape(3, 4)
    wanted = published(start.numpy(), GRID, predict, order, solver_type, lower, disabled)
    options = {"order": order, "solver_type": solver_type, "predict": predict}
    options |= {"lower_order_final": lower, "disable_corrector": disabled}
    for route in ({"compiled": False}, {"backend": "cpu"}):
        sampler = Sampler(model, solver="unipc", sigmas=GRID, prediction="x0", **options, **F64, **route)
        x = sampler((3, 4), x_init=start)
        assert torch.allclose(x, torch.as_tensor(wanted), rtol=CLOSED_FORM, atol=CLOSED_FORM)


@pytest.mark.parametrize("predict", ["x0", "eps"])
@pytest.mark.parametrize("solver_type", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_corrector_adds_one_to_the_order(order, solver_type, predict):
    """Zhao et al. 2023, Theorem 3.1."""
    data, u = Mixture(), torch.linspace(-2, 2, 7, **F64)[:, None] * FIRST
    exact = data.flow(u, FIRST, LAST)
    for gained, disabled in ((0, range(999)), (1, ())):
        options = {"order": order, "solver_type": solver_type, "predict": predict, "disable_corrector": disabled}
        errors = []
        for steps in (48, 96):
            run = sigmas(data.denoise, steps, solver="unipc", lower_order_final=False, **options)
            errors.append((run(u) - exact).abs().max().item())
        assert math.log2(errors[0] / errors[1]) == pytest.approx(order + gained, abs=0.6), errors


@pytest.mark.parametrize("predict", ["x0", "eps"])
@pytest.mark.parametrize("solver_type", ["bh1", "bh2"])
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_last_step_to_clean_data_is_the_corrected_prediction(steps, lower, solver_type, predict):
    """Where the official codes give NaN for bh1, for noise prediction, and for orders above 1."""
    options = {"order": 3, "solver_type": solver_type, "predict": predict, "lower_order_final": lower}
    start, seen = torch.linspace(-9, 9, 6, **F64).reshape(2, 3), []

    def run(end):
        sampler = Sampler(model, solver="unipc", sigmas=[*GRID[:steps], end], prediction="x0", **options, **F64)
        return sampler((2, 3), x_init=start, callback=lambda info: seen.append(info.denoised.clone()))

    x = run(0.0)
    assert x.isfinite().all()
    if predict == "x0":
        assert torch.allclose(x, seen[-1], rtol=CLOSED_FORM, atol=CLOSED_FORM)
    if lower:  # a limit, by a last step of first order
        assert torch.allclose(x, run(1e-13), rtol=CLOSED_FORM, atol=CLOSED_FORM)


def test_a_start_from_pure_noise_and_a_repeated_level():
    process = VP(zero_terminal_snr(VP.linear(100).betas))
    options = {"process": process, "prediction": "v", "steps": 6, **F64}
    first = Sampler(model, solver="ddim", **options)((2, 3), seeds=4, return_trajectory=True)[1]
    states = Sampler(model, solver="unipc", order=3, **options)((2, 3), seeds=4, return_trajectory=True)[1]
    assert states.isfinite().all()
    assert torch.allclose(states[:2], first[:2], rtol=CLOSED_FORM, atol=CLOSED_FORM)

    def repeated(n, **_):
        return np.array([8.0, 2.0, 2.0, 0.5, 0.0])

    x = Sampler(model, solver="unipc", schedule=repeated, steps=4, prediction="x0", **F64)((2, 3), seeds=1)
    assert x.isfinite().all()


@pytest.mark.parametrize("prediction", ["edm", "eps"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("predict", ["x0", "eps"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_one_launch_per_evaluation(order, predict, clip, prediction):
    process = "edm" if prediction == "edm" else VP.linear(100)
    options = {"solver": "unipc", "order": order, "predict": predict, "clip_denoised": clip}
    sampler = Sampler(model, process=process, prediction=prediction, steps=9, **options)
    launches = [item for item in sampler.plan().items if isinstance(item, Launch)]
    assert len(launches) <= 9 + 1 and max(len(launch.inputs) for launch in launches) <= 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 4}, "order must be one of 1, 2, 3, got 4"),
        ({"predict": "v"}, "predict must be one of x0, eps"),
        ({"solver_type": "midpoint"}, "solver_type must be one of bh1, bh2"),
        ({"disable_corrector": True}, "disable_corrector must be a list of numbers of steps, got True"),
        ({"disable_corrector": ["all"]}, "disable_corrector must be a list of numbers of steps"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(model, solver="unipc", steps=4, prediction="x0", **options)((2, 3), seeds=1)
