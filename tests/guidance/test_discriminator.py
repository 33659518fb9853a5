"""Discriminator guidance against closed forms and autograd: what is added, and what the discriminator is shown."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff import Sampler
from fastdiff.guidance import DiscriminatorGuidance, vp

from .toys import (
    ROUTE_PARAMS,
    ROUTES,
    SETTINGS,
    SHAPES,
    DensityRatio,
    Gaussian,
    Judge,
    Setting,
    nothing,
    predicted,
    pushed,
    states,
)

EVERYWHERE = {"time_min": 0.0, "time_max": 2.0}
UNCLIPPED = 1e-300


def by_hand(setting, x, judge, labels=None):
    """grad_x of the log ratio that `judge` gives the state x."""
    s = setting.level.sigma_ve
    leaf = x.double().clone().requires_grad_()
    tau = torch.full((len(x),), vp.tau_of_sigma(s), dtype=torch.float64)
    y = leaf / setting.level.alpha * vp.vp_scale(s)
    (gradient,) = torch.autograd.grad(judge(y, tau, labels).sum(), leaf)
    return gradient


@pytest.mark.parametrize("route", ROUTE_PARAMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_perfect_discriminator_makes_a_wrong_model_exact(name, shape, route):
    """s^2 grad log (p_real / p_model) is the difference of the two posterior means (Tweedie)."""
    setting = SETTINGS[name]
    real, wrong = Gaussian(0.3, 0.5, setting.process), Gaussian(-0.2, 0.8, setting.process)
    term = DiscriminatorGuidance(DensityRatio(real, wrong), 1.0, clip=UNCLIPPED)
    x = states(setting, shape)
    t = torch.full(shape[:1], setting.at, dtype=torch.float64)
    got = predicted(setting, x, term, route, model=wrong)
    torch.testing.assert_close(got, real(x, t), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(wrong(x, t), real(x, t), atol=1e-2)


@pytest.mark.parametrize("solver", ["euler", "heun", "ddim", "ddpm"])
def test_a_guided_run_is_a_run_of_the_right_model(solver):
    """With both slopes guided; the second one is not by default."""
    on_vp = solver in ("ddim", "ddpm")
    process = fastdiff.VP.linear(1000) if on_vp else fastdiff.EDM()
    real, wrong = Gaussian(0.3, 0.5, process), Gaussian(0.1, 0.6, process)
    options = {"process": process, "solver": solver, "steps": "8" if on_vp else 8, "dtype": torch.float64}
    disc = DensityRatio(real, wrong)
    want = Sampler(real, **options)((4, 3, 2), seeds=0)

    def run(*weights):
        term = DiscriminatorGuidance(disc, *weights, clip=UNCLIPPED, **EVERYWHERE)
        return Sampler(wrong, guidance=term, **options)((4, 3, 2), seeds=0)

    torch.testing.assert_close(run(1.0, 1.0), want, rtol=1e-9, atol=1e-9)
    assert torch.allclose(run(1.0), want, atol=1e-9) == (solver != "heun")


@pytest.mark.parametrize("route", ROUTE_PARAMS)
@pytest.mark.parametrize("name", SETTINGS)
def test_the_gradient_is_autograds(name, route):
    setting, shape = SETTINGS[name], (4, 3, 2, 2)
    x, judge, labels = states(setting, shape), Judge(12, classes=3), torch.tensor([0, 2, 1, 1])
    got = predicted(setting, x, DiscriminatorGuidance(judge, 1.67), route, labels=labels)
    torch.testing.assert_close(got, 1.67 * pushed(setting, by_hand(setting, x, judge, labels)), rtol=1e-12, atol=1e-12)
    single = predicted(setting, x.float(), DiscriminatorGuidance(judge, 1.67), route, labels=labels)
    torch.testing.assert_close(single, got.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("route", ROUTE_PARAMS)
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_what_the_discriminator_is_shown(route, dtype):
    """The state in VP terms and its VP time, [B] each; the labels of the call, or None, and nothing else of cond."""
    seen = []

    def disc(*arguments):
        seen.append([a.detach() if isinstance(a, torch.Tensor) else a for a in arguments])
        return arguments[0].double().sum((1, 2))

    setting, x = SETTINGS["vp"], states(SETTINGS["vp"], (3, 2, 2))
    s = setting.level.sigma_ve
    for labels in (None, torch.tensor([2, 0, 1])):
        for time, told in (("vp", vp.tau_of_sigma(s)), ("cosine", vp.cosine_time(s))):
            term = DiscriminatorGuidance(disc, time=time, dtype=dtype)
            predicted(setting, x, term, route, labels=labels, cond={"text": 3})
            y, tau, given = seen.pop()
            assert y.dtype == (dtype or x.dtype) and y.shape == x.shape and tau.shape == (3,)
            tolerance = 1e-6 if dtype else 1e-14
            torch.testing.assert_close(y.double(), x / setting.level.alpha * vp.vp_scale(s), rtol=0, atol=tolerance)
            assert tau.tolist() == pytest.approx([told] * 3, rel=1e-6)
            assert given is None if labels is None else given.equal(labels)
    assert not seen


def test_noise_levels_and_vp_times():
    """log(1 + s^2) is the integral of beta; the cosine time has the same signal; both go from 0 to about 1."""
    sigma = torch.logspace(-3, 2.1, 40, dtype=torch.float64).numpy()
    tau = vp.tau_of_sigma(sigma)
    integral = vp.BETA_0 * tau + (vp.BETA_1 - vp.BETA_0) * tau**2 / 2
    torch.testing.assert_close(torch.tensor(integral), torch.tensor(sigma).square().log1p(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(torch.tensor(vp.sigma_of_tau(tau)), torch.tensor(sigma), rtol=1e-9, atol=0)
    t = vp.cosine_time(sigma)
    alpha = [math.cos((u + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2) for u in t]
    assert alpha == pytest.approx((1 / (1 + sigma**2) ** 0.5).tolist(), rel=1e-9)
    assert 0 < tau[0] < 0.01 and 0.9 < tau[-1] < 1 and (tau[1:] > tau[:-1]).all() and (t[1:] > t[:-1]).all()


@pytest.mark.parametrize("route", ROUTE_PARAMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clipped_samples_are_not_moved_at_all(route, dtype):
    setting, shape = SETTINGS["edm"], (5, 4)
    x = states(setting, shape, dtype)
    logits = torch.tensor([0.0, 11.5, 11.52, -11.52, 300.0], dtype=dtype)  # log((1 - 1e-5) / 1e-5) = 11.5129

    def disc(y, tau, labels):
        return logits + y.sum(1) - y.detach().sum(1)

    for output in ("logit", "probability"):
        network = disc if output == "logit" else (lambda *a: disc(*a).sigmoid())
        got = predicted(setting, x, DiscriminatorGuidance(network, output=output), route)
        assert (got[:2] != 0).all() and got[2:].equal(torch.zeros_like(got[2:])), output
    wide = predicted(setting, x, DiscriminatorGuidance(disc, clip=1e-6), route)
    assert (wide[:4] != 0).all() and (wide[4] == 0).all()


def test_logits_probabilities_and_a_last_axis_mean_the_same():
    setting, judge = SETTINGS["edm"], Judge(6)
    x = states(setting, (5, 6))
    want = predicted(setting, x, DiscriminatorGuidance(judge))
    column_of = predicted(setting, x, DiscriminatorGuidance(lambda *a: judge(*a)[:, None]))
    odds = predicted(setting, x, DiscriminatorGuidance(lambda *a: judge(*a).sigmoid(), output="probability"))
    assert column_of.equal(want)
    torch.testing.assert_close(odds, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("route", ROUTE_PARAMS)
def test_nothing_is_called_outside_the_window(route):
    calls = []

    def disc(y, tau, labels):
        calls.append(float(tau[0]))
        return y.sum(1)

    def guided(sigma, **window):
        setting = Setting(fastdiff.EDM(), sigma)
        return bool(predicted(setting, states(setting, (2, 3)), DiscriminatorGuidance(disc, **window), route).any())

    low, high = vp.sigma_of_tau(0.01), vp.sigma_of_tau(1.0)
    assert (low, high) == (pytest.approx(0.0446877, rel=1e-5), pytest.approx(152.17, rel=1e-4))
    assert [guided(s) for s in (low / 1.01, low * 1.01, 1.0, high / 1.01, high * 1.01)] == [0, 1, 1, 1, 0]
    narrow = {"time_min": 0.3, "time_max": 0.5}
    assert [guided(vp.sigma_of_tau(tau), **narrow) for tau in (0.29, 0.31, 0.49, 0.51)] == [0, 1, 1, 0]
    assert len(calls) == 5 and max(calls) <= 1.0


WEIGHTS = {
    "number": (2.0, 0.0, [2, 0, 2, 0, 2]),
    "both": (2.0, 1.5, [2, 1.5, 2, 1.5, 2]),
    "list": ([3.0, 2.0, 1.0], [0.5, 0.25, 7.0], [3, 0.5, 2, 0.25, 1]),
    "list with zeros": ([0.0, 2.0, 0.0], 0.0, [0, 0, 2, 0, 0]),
    "array": (np.array([3.0, 2.0, 1.0]), 0.0, [3, 0, 2, 0, 1]),
    "function": (lambda level: level.sigma / 10, lambda level: 0.0, [8, 0, 3, 0, 0.2]),
}


@pytest.mark.parametrize("route", ROUTE_PARAMS)
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_every_evaluation(name, route):
    """A constant gradient 1 in every evaluation shows its weight in the slope."""
    w_1st, w_2nd, want = WEIGHTS[name]
    grid = [80.0, 30.0, 2.0, 0.0]

    def disc(y, tau, labels):
        m = torch.as_tensor(vp.vp_scale(vp.sigma_of_tau(tau.numpy())))
        return ((y - y.detach()) / m[:, None]).sum(1)  # its gradient with respect to x is 1

    term = DiscriminatorGuidance(disc, w_1st, w_2nd)
    sampler = Sampler(nothing, sigmas=grid, guidance=term, dtype=torch.float64, **ROUTES[route])
    x, want_x = torch.zeros(1, 2, dtype=torch.float64), 0.0
    weights = iter(want)
    for s, t in pairwise(grid):
        d = want_x / s - next(weights) * s
        trial = want_x + (t - s) * d
        if t > 0:
            trial = want_x + (t - s) * (d + trial / t - next(weights) * t) / 2
        want_x = trial
    assert sampler(x.shape, x_init=x)[0, 0].item() == pytest.approx(want_x, rel=1e-9)


def test_no_weight_gradients():
    """The discriminator's parameters take no part, keep their flags and stay without gradients, also after errors."""
    during = []

    class Probe(Judge):
        def forward(self, y, tau, labels=None):
            during.append([p.requires_grad for p in self.parameters()])
            assert y.requires_grad and torch.is_grad_enabled()
            if fail:
                raise RuntimeError("broken")
            return super().forward(y, tau, labels)

    judge, fail = Probe(4), False
    judge.second.requires_grad_(False)
    flags = [p.requires_grad for p in judge.parameters()]
    before = {name: value.clone() for name, value in judge.state_dict().items()}
    sampler = Sampler(nothing, steps=4, guidance=DiscriminatorGuidance(judge), dtype=torch.float64)
    x = sampler((3, 4), seeds=0)
    assert not x.requires_grad and during and not any(any(flags) for flags in during)
    fail = True
    with pytest.raises(RuntimeError, match="broken"):
        sampler((3, 4), seeds=0)
    assert [p.requires_grad for p in judge.parameters()] == flags == [True, False, True]
    assert all(p.grad is None for p in judge.parameters())
    assert all(value.equal(before[name]) for name, value in judge.state_dict().items())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("route", ROUTE_PARAMS)
def test_gradients_in_every_autograd_mode(mode, route):
    judge, labels = Judge(6, classes=3), [0, 1, 2]
    term = DiscriminatorGuidance(judge, **EVERYWHERE)
    sampler = Sampler(nothing, steps=4, guidance=term, dtype=torch.float64, **ROUTES[route])
    want = sampler((3, 6), seeds=0, labels=labels)
    with mode():
        got = sampler((3, 6), seeds=0, labels=labels)
        own = sampler((3, 6), x_init=80 * torch.ones(3, 6), labels=torch.tensor(labels))
    assert got.equal(want) and got.any() and own.any()


def test_a_discriminator_without_a_gradient_is_an_error():
    @torch.no_grad()
    def blind(y, tau, labels):
        return y.sum(1)

    with pytest.raises(ValueError, match="gradient"):
        Sampler(nothing, steps=2, guidance=DiscriminatorGuidance(blind))((2, 3))


@pytest.mark.parametrize(
    ("output", "came"),
    [
        (lambda y: y, r"\[2, 3\]"),
        (lambda y: y.sum(), r"\[\]"),
        (lambda y: y.sum(1)[:1], r"\[1\]"),
        (lambda y: 0.0, "float"),
    ],
)
def test_the_shape_of_what_it_returns(output, came):
    term = DiscriminatorGuidance(lambda y, tau, labels: output(y))
    with pytest.raises(ValueError, match=f"discriminator must return .* got {came}"):
        Sampler(nothing, steps=2, guidance=term)((2, 3))


REFUSED = [
    ({"discriminator": 3}, TypeError, "discriminator"),
    ({"w_1st": float("nan")}, ValueError, "w_1st"),
    ({"w_1st": [1.0, float("inf")]}, ValueError, "w_1st"),
    ({"w_2nd": "much"}, ValueError, "w_2nd"),
    ({"time": "linear"}, ValueError, "time"),
    ({"time_min": 0.5, "time_max": 0.5}, ValueError, "time_min"),
    ({"time_max": float("nan")}, ValueError, "time_max"),
    ({"clip": 0.0}, ValueError, "clip"),
    ({"clip": 0.5}, ValueError, "clip"),
    ({"output": "logits"}, ValueError, "output"),
    ({"boosting": True}, TypeError, "boosting"),
    ({"dtype": torch.int64}, ValueError, "dtype"),
]


@pytest.mark.parametrize(("options", "kind", "name"), REFUSED, ids=lambda v: str(v)[:30])
def test_refused_arguments(options, kind, name):
    with pytest.raises(kind, match=name):
        DiscriminatorGuidance(**{"discriminator": Judge(3), **options})


@pytest.mark.parametrize("field", ["period", "factor_period", "churn", "noise", "factor"])
@pytest.mark.parametrize("value", [-1, float("nan"), "two"])
def test_refused_boosting(field, value):
    with pytest.raises(ValueError, match=field):
        fastdiff.guidance.Boosting(**{field: value})


@pytest.mark.parametrize("weights", [[1.0, 2.0], [1.0] * 5])
def test_a_list_of_weights_has_an_entry_for_every_step(weights):
    with pytest.raises(ValueError, match="w_1st must have one entry per step"):
        Sampler(nothing, steps=4, guidance=DiscriminatorGuidance(Judge(3), weights))


@pytest.mark.parametrize("route", ROUTES)
def test_a_probability_in_bfloat16(route):
    """There 1 - 1e-5 is 1; a probability of 1 is clipped all the same, so its gradient is 0 and not NaN."""

    def disc(y, tau, labels):
        return (y.flatten(1).sum(1) * 20).sigmoid()

    term = DiscriminatorGuidance(disc, output="probability", dtype=torch.bfloat16)
    assert predicted(SETTINGS["edm"], torch.tensor([[4.0, 3.0], [0.0, 0.0]]), term, route).isfinite().all()


@pytest.mark.parametrize("weights", [np.linspace(0.5, 2.0, 4), torch.linspace(0.5, 2.0, 4, dtype=torch.float64)])
def test_weights_from_arrays(weights):
    options = {"steps": 4, "dtype": torch.float64}
    got, want = (
        Sampler(Gaussian(0.1, 0.5), guidance=DiscriminatorGuidance(Judge(6), w), **options)((3, 6), seeds=0)
        for w in (weights, weights.tolist())
    )
    assert got.equal(want)
    one = DiscriminatorGuidance(Judge(6), np.array(1.5)).w_1st
    assert one == 1.5 and isinstance(one, float)


def test_a_function_that_returns_nan():
    with pytest.raises(ValueError, match="w_1st must be finite, got nan"):
        Sampler(Gaussian(0.1, 0.5), guidance=DiscriminatorGuidance(Judge(6), lambda level: float("nan")))
