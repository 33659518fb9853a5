"""The time-shift sampler's published rule against its own lines, its limits, what it refuses; PNDM's order."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff import VP, Sampler
from fastdiff.guidance import AutoGuidance, DiscriminatorGuidance
from fastdiff.ops import native
from fastdiff.solvers import ts_dpm_timesteps
from fastdiff.solvers.time_shift import NearestVariance, with_variance
from tests.tolerances import CLOSED_FORM

from .threads import one_thread

__all__ = ["one_thread"]

SHAPE = (5, 3, 4, 4)
PROCESS = VP.linear(1000)
ABAR = torch.tensor(PROCESS.alphas_cumprod)
SHIFTED = {"window": 90, "cutoff": 250}
ROUTES = [{"compiled": False}, {"backend": "reference"}]
ROUTES += [{"backend": "cpu"}] if native.available("cpu") else []
VARIANTS = [
    {"solver": "time_shift", "steps": "ddim10"},
    {"solver": "time_shift", "steps": "ddim10", "eta": 1.0},
    {"solver": "time_shift", "steps": "ddim10", "eta": 1.0, "rule": "ts_adm"},
    {"solver": "time_shift", "timesteps": ts_dpm_timesteps(10), "rule": "ts_dpm", "normalize_variance": True},
    {"solver": "s_pndm", "steps": "ddim10"},
    {"solver": "f_pndm", "steps": "ddim10"},
    {"solver": "f_pndm", "timesteps": ts_dpm_timesteps(10), "rule": "ts_dpm"},
]


@cache
def abar_on(device: torch.device) -> torch.Tensor:
    """Copied once: a copy from the host cannot be captured in a graph."""
    return ABAR.to(device)


def biased(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The predicted noise of N(0.2, 0.3^2) data, with an error that leaves samples at variances of their own."""
    abar = abar_on(x.device)[t.long()].reshape(-1, *(1,) * (x.ndim - 1))
    exact = (1 - abar).sqrt() * (x - 0.2 * abar.sqrt()) / (0.09 * abar + 1 - abar)
    return exact + 0.1 * torch.sin(2 * x + x.flatten(1).mean(1).reshape(abar.shape))


def sampler(model=biased, **options) -> Sampler:
    options = {"process": PROCESS, "prediction": "eps", "dtype": torch.float64, **options}
    return Sampler(model, **options)


def published(x: torch.Tensor, times: list[int], window: int, cutoff: int, eta: float, noise) -> torch.Tensor:
    """Algorithm 3 of Li et al. 2024 with DDIM's step, one sample at a time: x [...]."""
    shifted = None
    for n, (t, following) in enumerate(zip(times, [*times[1:], None])):
        now = t if shifted is None else shifted
        a, b = ABAR[now], torch.tensor(1.0) if following is None else ABAR[following]
        e = biased(x[None], torch.tensor([now]))[0]
        std = eta * ((1 - b) / (1 - a) * (1 - a / b).clamp(min=0)).sqrt()
        x = b.sqrt() * (x - (1 - a).sqrt() * e) / a.sqrt() + (1 - b - std**2).sqrt() * e + std * noise(n)
        shifted = None
        if t > cutoff and following is not None:
            window_times = np.arange(max(0, following - window // 2), min(999, following + window // 2) + 1)
            shifted = int(window_times[(x.var() - (1 - ABAR[window_times])).abs().argmin()])
    return x


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_published_rule(route, eta):
    times = list(range(900, -1, -100))
    z = torch.randn(11, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    run = sampler(solver="time_shift", timesteps=times, eta=eta, **SHIFTED, **route)
    got = run(SHAPE, x_init=z[0], noise=lambda draw, step: z[1 + step])
    for b, x in enumerate(z[0]):
        want = published(x, times, SHIFTED["window"], SHIFTED["cutoff"], eta, lambda n, b=b: z[1 + n, b])
        torch.testing.assert_close(got[b], want, rtol=1e-11, atol=1e-11)


def test_model_is_told_the_time_that_a_samples_variance_says():
    """Data that is a point: 1 - alpha_bar is the variance of x exactly, if the step that led there was as large."""
    told = []

    def point(x, t):
        told.append(t.clone())
        return x / (1 - ABAR[t.long()]).sqrt().reshape(-1, 1)  # of data that is 0

    z = torch.randn(3, 400, dtype=torch.float64)
    z = (z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True)
    ratio = torch.tensor([0.97, 1.0, 1.02], dtype=torch.float64)[:, None]
    start = z * (1 - ABAR[900]).sqrt() * ratio
    sampler(point, solver="time_shift", steps="ddim10", window=90, cutoff=0)(start.shape, x_init=start)
    assert told[0].tolist() == [900, 900, 900]
    variances = (1 - ABAR[800]) * ratio.flatten() ** 2
    times = torch.arange(755, 846)
    assert told[1].tolist() == [int(times[(v - (1 - ABAR[times])).abs().argmin()]) for v in variances]
    assert told[1][1] == 800 and told[1][0] < 800 < told[1][2]


@pytest.mark.parametrize("rule", ["paper", "ts_adm"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("limits", [{"window": 0}, {"window": 1}, {"window": 90, "cutoff": 1000}], ids=str)
def test_without_a_window_it_is_ddim(rule, eta, limits, backend, device):
    options = {"steps": "ddim10", "eta": eta, "clip_denoised": True, "backend": backend, "device": device}
    want = sampler(solver="ddim", **options)(SHAPE, seeds=3)
    got = sampler(solver="time_shift", rule=rule, **limits, **options)(SHAPE, seeds=3)
    torch.testing.assert_close(got, want, rtol=CLOSED_FORM, atol=CLOSED_FORM)


@pytest.mark.parametrize("extra", [{}, {"clip_denoised": (-1.0, 1.0), "epsilon_scale": 1.01}], ids=str)
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_compiled_run_is_the_readable_one(options, extra, backend, device):
    options = {**options, **SHIFTED, **extra}
    want = sampler(compiled=False, **options)(SHAPE, seeds=7)
    got = sampler(backend=backend, device=device, **options)(SHAPE, seeds=7)
    torch.testing.assert_close(got.cpu(), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_samples_choose_by_themselves(options, backend, device):
    run = sampler(backend=backend, device=device, **options, **SHIFTED)
    whole = run(SHAPE, seeds=range(10, 15))
    alone = torch.cat([run((1, *SHAPE[1:]), seeds=[seed]) for seed in (14, 10)])
    torch.testing.assert_close(alone, whole[[4, 0]], rtol=CLOSED_FORM, atol=CLOSED_FORM)
    plain = sampler(backend=backend, device=device, **{**options, "window": 0})(SHAPE, seeds=range(10, 15))
    assert (whole - plain).abs().amax((1, 2, 3)).min() > 1e-4, "every sample was shifted"


@pytest.mark.parametrize("options", [VARIANTS[0], VARIANTS[3], VARIANTS[5]], ids=str)
def test_guidance_and_denoised_fn_compose(options):
    """A discriminator that is told the time each sample chose, a second opinion, and a function of x_0."""
    told = []

    def discriminator(y, tau, labels):
        told.append(tau)
        return -(0.3 * y.square().flatten(1).sum(1)) * (1 - tau)

    terms = [DiscriminatorGuidance(discriminator, w_1st=1.5), AutoGuidance(lambda x, t: 0.9 * x, 1.4)]
    options = {**options, **SHIFTED, "guidance": terms, "denoised_fn": torch.tanh}
    got, want = sampler(**options)(SHAPE, seeds=2), sampler(compiled=False, **options)(SHAPE, seeds=2)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    chosen = any(len(tau.unique()) > 1 for tau in told if len(tau) == SHAPE[0])
    assert chosen == (options["solver"] == "f_pndm" or options.get("rule") is None)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("rule", ["paper", "ts_dpm", "ts_adm"])
def test_where_the_official_codes_fail(rule, eta):
    """A window beyond both ends of the process and wider than a step: an AttributeError, wrapped indices, NaN there."""
    options = {"timesteps": ts_dpm_timesteps(8), "rule": rule, "eta": eta, "window": 1500, "cutoff": 0}
    assert sampler(solver="time_shift", **options)(SHAPE, seeds=0).isfinite().all()


def test_any_number_of_process_steps_and_rescaled_times():
    process = VP.linear(200, rescale_timesteps=True)
    told = []

    def model(x, t):
        told.append(t)
        return 0.9 * x

    sampler(model, process=process, solver="f_pndm", steps=10, window=8, cutoff=0)(SHAPE, seeds=0)
    assert len(told) == 3 * 4 + 7
    assert told[0].tolist() == [995.0] * 5, "times are scaled to 1000"
    halves = torch.stack(told) / 5
    assert ((halves * 2) % 1).abs().max() < 1e-9, "those half-way between two steps too"


@pytest.mark.parametrize(("solver", "order"), [("time_shift", 1), ("s_pndm", 2), ("f_pndm", 2)])
def test_order_of_convergence(solver, order, gaussian):
    """Against the exact probability-flow solution; Liu et al. 2022 prove order 2 for S-PNDM and F-PNDM."""
    process = VP.linear(16000)
    alpha = torch.tensor(process.alphas_cumprod).sqrt()
    s = ((1 - alpha**2).sqrt() / alpha).numpy()

    def model(x, t):
        a = alpha[t].reshape(-1, 1)
        return (x - a * gaussian.denoise(x / a, torch.tensor(s)[t])) / (1 - a**2).sqrt()

    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    errors = []
    for steps in (16, 32):
        times = list(range(8000, 3999, -4000 // steps))
        run = sampler(model, process=process, solver=solver, timesteps=times, window=0)
        _, states = run(z.shape, x_init=z, return_trajectory=True)
        want = gaussian.ode(z / alpha[8000], s[8000], s[4000]) * alpha[4000]
        errors.append((states[-2] - want).abs().max().item())
    assert np.log2(errors[0] / errors[1]) > order - 0.3, errors


def test_official_grid():
    assert ts_dpm_timesteps(10) == [801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert len(ts_dpm_timesteps(20)) == 19 and ts_dpm_timesteps(2, T=50) == [1]
    for steps in (1, 51):
        with pytest.raises(ValueError, match="steps must be"):
            ts_dpm_timesteps(steps, T=50)


def test_variance_of_samples():
    x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    variances = x.flatten(1).double().var(1)
    nearest = NearestVariance()
    assert nearest(x, variances.float()).tolist() == [0, 1, 2, 3]
    assert nearest(x, torch.tensor([100.0, 0.0])).tolist() == [1, 1, 1, 1]
    if native.host_function("nearest_variance") is not None:
        for like in (x, x.double(), x[:1], x[:0]):
            assert nearest.small(like, variances.tolist()) == [0, 1, 2, 3][: len(like)]
        for other in (x.half(), x.mT, x[:, 0, 0], x[..., :0]):
            assert nearest.small(other, variances.tolist()) is None
    wanted = torch.tensor([0.5, 1.0, 2.0, 4.0])
    torch.testing.assert_close(with_variance(x, wanted).flatten(1).var(1), wanted)


def test_plan_has_no_launch_more():
    """The choice is a call; launches, reads and evaluations are those of DDIM, and one choice serves a whole step."""
    plain = sampler(solver="ddim", steps="ddim10").plan()
    plan = sampler(solver="time_shift", steps="ddim10", **SHIFTED).plan()
    assert len(plan.launches) == len(plain.launches) and plan.evaluations == plain.evaluations
    assert [len(a.inputs) for a in plan.launches] == [len(a.inputs) for a in plain.launches]
    assert len(plan.functions) == 7
    pndm = sampler(solver="f_pndm", steps="ddim10", **SHIFTED).plan()
    assert pndm.evaluations == 19 and len(pndm.launches) == 20 and len(pndm.functions) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"process": "edm", "prediction": "x0"}, "process must be a VP"),
        ({"prediction": "previous_x"}, "previous_x"),
        ({"window": 2.5}, "window must be an integer"),
        ({"window": -2}, "window must be a number of at least 0"),
        ({"cutoff": -1}, "cutoff must be a number of at least 0"),
        ({"rule": "ts"}, "rule must be one of paper, ts_dpm, ts_adm"),
        ({"eta": 1.5}, "eta must be from 0"),
        ({"rule": "ts_dpm", "steps": "ddim10"}, "timesteps must be above 0 for rule 'ts_dpm'"),
        ({"solver": "s_pndm", "steps": 1}, "steps must be at least 2"),
        ({"solver": "f_pndm", "steps": 3}, "steps must be at least 4"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        sampler(**{"solver": "time_shift", **options})


def test_a_sample_of_one_number_has_no_variance():
    with pytest.raises(ValueError, match="at least 2 elements"):
        sampler(solver="time_shift", steps="ddim10", **SHIFTED)((4, 1), seeds=0)
    assert fastdiff.Sampler(lambda x, t: x, process=PROCESS, solver="f_pndm", steps=5)((4, 1), seeds=0).shape == (4, 1)


@pytest.mark.parametrize("route", ROUTES, ids=str)
@pytest.mark.parametrize("variant", [VARIANTS[0], VARIANTS[3]], ids=lambda v: v.get("rule", "paper"))
def test_no_samples_at_all(variant, route):
    sampler = Sampler(biased, process=PROCESS, prediction="eps", **SHIFTED, **variant, **route)
    assert sampler((0, 3, 4, 4), seeds=0).shape == (0, 3, 4, 4)


def test_what_no_launch_can_hold_runs_on_tensors():
    """A clipped sum of many guided outputs: refused when compiled, and what it is as a readable run."""
    guides = [AutoGuidance(lambda x, t, k=k: 0.1 * k * x.cos(), 1.1) for k in range(1, 5)]
    options = {"process": PROCESS, "prediction": "eps", "solver": "f_pndm", "clip_denoised": True, "guidance": guides}
    options |= {"steps": "ddim10", **SHIFTED}
    with pytest.raises(NotImplementedError, match="more than 8 tensors"):
        Sampler(biased, **options)
    assert Sampler(biased, **options, compiled=False)(SHAPE, seeds=0).isfinite().all()
