"""Several terms at once, with epsilon scaling, clipping and weights; what a run with guidance still promises."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import fastdiff
from fastdiff import Sampler
from fastdiff.guidance import (
    AutoGuidance,
    Boosting,
    ClassifierFree,
    ClassifierGuidance,
    DiscriminatorGuidance,
    Gradient,
    vp,
)

from .toys import ROUTE_PARAMS, ROUTES, SETTINGS, Classes, DensityRatio, Gaussian, Judge, predicted, pushed, states

SHAPE = (4, 3, 2, 2)
LABELS = torch.tensor([2, 0, 1, 2])


def network(classes):
    """Class 3 is none."""

    def net(x, t, labels):
        told = labels.clamp(max=2)
        return torch.where((labels == 3).reshape(-1, *[1] * (x.ndim - 1)), classes(x, t), classes(x, t, told))

    return net


def all_terms(setting, batched=False):
    """(terms, what each does to x_0 by itself: (conditional x_0, x, t) -> push) of one setting."""
    classes, process = Classes(setting.process), setting.process
    net, bad = network(classes), Gaussian(0.0, 0.9, process)
    disc = DensityRatio(Gaussian(0.3, 0.5, process), Gaussian(0.1, 0.6, process))
    terms = [
        DiscriminatorGuidance(disc, 1.67),
        ClassifierGuidance(classes.classifier, 0.7),
        ClassifierFree(2.0, null={"labels": 3}, batched=batched),
        AutoGuidance(bad, 1.5),
        lambda x, level, **cond: -x / (1 + level.sigma**2),
    ]
    return net, bad, classes, terms


@pytest.mark.parametrize("route", ROUTE_PARAMS)
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_every_kind_of_term_adds_up(name, batched, route):
    """Each pushes the network's x_0 by itself, in any order, with its weight times the sampler's."""
    setting = SETTINGS[name]
    net, bad, classes, terms = all_terms(setting, batched)
    x = states(setting, SHAPE)
    t = torch.full((4,), setting.at, dtype=torch.float64)
    weights = [1.0, 2.0, 0.5, 1.0, -0.3]
    own, none = classes(x, t, LABELS), classes(x, t)
    real, model = Gaussian(0.3, 0.5, setting.process), Gaussian(0.1, 0.6, setting.process)
    want = own + 1.67 * (real(x, t) - model(x, t)) + 2 * 0.7 * (own - none) + 0.5 * (own - none)
    want = want + 0.5 * (own - bad(x, t)) + pushed(setting, 0.3 * x / (1 + setting.level.sigma**2))
    for order in ([0, 1, 2, 3, 4], [4, 2, 3, 0, 1]):
        chosen, scales = [terms[i] for i in order], [weights[i] for i in order]
        got = predicted(setting, x, chosen, route, model=net, labels=LABELS, guidance_scale=scales)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("route", ROUTE_PARAMS)
def test_epsilon_scaling_leaves_gradients_alone(route):
    """SEDM-G++: x_0 = x - (x - D) / lambda + w s^2 grad, also beside classifier-free guidance, which it scales."""
    setting = SETTINGS["edm"]
    net, _, classes, terms = all_terms(setting)
    x = states(setting, SHAPE)
    t = torch.full((4,), setting.at, dtype=torch.float64)
    guided = classes(x, t) + 2 * (classes(x, t, LABELS) - classes(x, t))
    step = 1.67 * (Gaussian(0.3, 0.5)(x, t) - Gaussian(0.1, 0.6)(x, t))
    got = predicted(setting, x, [terms[0], terms[2]], route, model=net, labels=LABELS, epsilon_scale=1.05)
    torch.testing.assert_close(got, x - (x - guided) / 1.05 + step, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("route", ROUTE_PARAMS)
@pytest.mark.parametrize("rule", ["x0", "eps"])
def test_clipping_comes_after_gradients_or_before(rule, route):
    setting = SETTINGS["vp"]
    classes = Classes(setting.process)
    x = states(setting, SHAPE)
    t = torch.full((4,), setting.at, dtype=torch.float64)
    term = ClassifierGuidance(classes.classifier, 3.0, rule=rule)
    net = lambda x, t, labels=None: 1.5 * classes(x, t)  # noqa: E731
    push = 3.0 * (classes(x, t, LABELS) - classes(x, t))
    clipped = 1.5 * classes(x, t)
    want = (clipped + push).clamp(-0.4, 0.4) if rule == "x0" else clipped.clamp(-0.4, 0.4) + push
    got = predicted(setting, x, term, route, model=net, labels=LABELS, clip_denoised=(-0.4, 0.4))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    doubled = predicted(
        setting, x, term, route, model=net, labels=LABELS, clip_denoised=(-0.4, 0.4), denoised_fn=lambda x0: 2 * x0
    )
    want = (2 * (clipped + push)).clamp(-0.4, 0.4) if rule == "x0" else (2 * clipped).clamp(-0.4, 0.4) + push
    torch.testing.assert_close(doubled, want, rtol=1e-10, atol=1e-10)


def run_by_hand(x, grid, slope_x0, lam):
    """Heun's method with x_0 from `slope_x0(x, s, order)`."""
    for s, t in pairwise(grid):
        d = (x - slope_x0(x, s, 0, lam)) / s
        trial = x + (t - s) * d
        if t > 0:
            trial = x + (t - s) * (d + (trial - slope_x0(trial, t, 1, lam)) / t) / 2
        x = trial
    return x


@pytest.mark.parametrize("route", ROUTE_PARAMS)
def test_a_whole_run_with_everything(route):
    """Heun with a discriminator in both slopes, a classifier, a contrast, epsilon scaling and boosting of nobody."""
    setting = SETTINGS["edm"]
    net, bad, classes, terms = all_terms(setting)
    judge = Judge(12, shift=-50.0)  # takes all samples for real
    terms = [
        DiscriminatorGuidance(judge, 1.2, 0.4, clip=1e-40, boosting=Boosting(period=1, factor_period=1)),
        *terms[1:4],
    ]
    options = {"labels": LABELS, "x_init": 80 * torch.ones(SHAPE, dtype=torch.float64)}
    sampler = Sampler(net, steps=6, guidance=terms, epsilon_scale=1.01, dtype=torch.float64, **ROUTES[route])

    def x0(x, s, order, lam):
        t = torch.full((4,), s, dtype=torch.float64)
        leaf = x.clone().requires_grad_()
        tau = torch.full((4,), vp.tau_of_sigma(s), dtype=torch.float64)
        (g,) = torch.autograd.grad(judge(leaf * vp.vp_scale(s), tau).sum(), leaf)
        own, none = classes(x, t, LABELS), classes(x, t)
        contrasted = own + (own - none) + 0.5 * (own - bad(x, t))
        weight = (1.2, 0.4)[order] if vp.tau_of_sigma(s) >= 0.01 else 0.0
        return x - (x - contrasted) / lam + 0.7 * (own - none) + weight * s**2 * g

    want = run_by_hand(options["x_init"], sampler.levels.sigmas.tolist(), x0, 1.01)
    got = sampler(SHAPE, **options)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("route", [p for p in ROUTE_PARAMS if p.values[0] != "readable"])
def test_samples_depend_on_their_seeds_only(route):
    setting = SETTINGS["edm"]
    net, _, _, terms = all_terms(setting, batched=True)
    boosted = DiscriminatorGuidance(Judge(12), boosting=Boosting(period=2))
    options = {"S_churn": 3.0, "steps": 6, "dtype": torch.float64, "guidance": [boosted, *terms[1:4]]}
    sampler = Sampler(net, **options, **ROUTES[route])
    seeds = [5, 17, 5, 3]
    whole = sampler(SHAPE, seeds=seeds, labels=LABELS)
    assert whole[0].equal(whole[2]) is False, "labels differ"
    alone = sampler((1, *SHAPE[1:]), seeds=[17], labels=LABELS[1:2])
    torch.testing.assert_close(alone, whole[1:2], rtol=1e-12, atol=1e-12)
    turned = sampler(SHAPE, seeds=seeds[::-1], labels=LABELS.flip(0))
    torch.testing.assert_close(turned.flip(0), whole, rtol=1e-12, atol=1e-12)
    assert sampler(SHAPE, seeds=seeds, labels=LABELS).equal(whole), "what a run remembers is its own"


def test_float32_stays_close():
    setting = SETTINGS["edm"]
    net, _, _, terms = all_terms(setting)
    wide, narrow = (
        Sampler(net, steps=8, guidance=[DiscriminatorGuidance(Judge(12)), *terms[1:]], dtype=dtype)(
            SHAPE, seeds=0, labels=LABELS
        )
        for dtype in (torch.float64, torch.float32)
    )
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=1e-4)


def test_weight_0_calls_nothing():
    def never(*arguments, **cond):
        raise AssertionError("called")

    terms = [
        DiscriminatorGuidance(never, 0.0),
        DiscriminatorGuidance(never, boosting=Boosting()),
        ClassifierGuidance(never, 0.0),
        ClassifierFree(1.0),
        ClassifierFree(3.0, null=never),
        AutoGuidance(never, 2.0),
        never,
    ]
    scales = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    net = Gaussian(0.1, 0.5)
    for route in ROUTES:
        got = Sampler(net, steps=7, guidance=terms, guidance_scale=scales, dtype=torch.float64, **ROUTES[route])
        want = Sampler(net, steps=7, dtype=torch.float64, **ROUTES[route])
        assert got((2, 3), seeds=0).equal(want((2, 3), seeds=0))


def test_gradients_with_a_prediction_of_the_previous_x():
    """There the network's output is the mean, so a push of x_0 must reach it or be refused; it is not ignored."""
    options = {"process": fastdiff.VP.linear(50), "prediction": "previous_x", "solver": "ddpm", "dtype": torch.float64}
    net, term = (lambda x, t: 0.9 * x), DiscriminatorGuidance(Judge(6), 2.0)
    try:
        guided = Sampler(net, guidance=term, **options)((3, 6), seeds=0)
    except ValueError as error:
        assert "previous_x" in str(error)
    else:
        assert not guided.equal(Sampler(net, **options)((3, 6), seeds=0))


@pytest.mark.parametrize("scale", [[1.0], [1.0, 2.0, 3.0]])
def test_one_weight_for_each_term(scale):
    terms = [DiscriminatorGuidance(Judge(3)), AutoGuidance(Gaussian(0.1, 0.5), 2.0)]
    with pytest.raises(ValueError, match="guidance_scale must have one weight per guidance term"):
        Sampler(Gaussian(0.1, 0.5), guidance=terms, guidance_scale=scale)


@pytest.mark.parametrize("term", [3, "discriminator", [None]])
def test_terms_must_be_callable(term):
    with pytest.raises(TypeError, match="guidance must be callable"):
        Sampler(Gaussian(0.1, 0.5), guidance=term)


def test_lists_of_weights_begin_at_the_noisiest_step_of_an_inversion_too():
    """Like lambda's: entry i is for the level at which sampling makes step i."""
    seen = []

    def disc(y, tau, labels):
        seen.append(float(tau[0]))
        return y.flatten(1).sum(1)

    term = DiscriminatorGuidance(disc, [1.0, 0.0, 0.0, 0.0], time_max=2.0)
    options = {"process": "vp", "prediction": "x0", "steps": 4, "guidance": term}
    net = Gaussian(0.1, 0.5, fastdiff.VP.linear())
    Sampler(net, solver="ddim", **options)((2, 3), seeds=0)
    Sampler(net, solver="ddim_inversion", terminal=True, **options)((2, 3), x_init=torch.zeros(2, 3))
    assert len(seen) == 2 and seen[0] == seen[1]


def test_epsilon_scale_of_first_evaluations_is_not_applied_again_in_later_ones():
    term = ClassifierGuidance(Classes().classifier, 0.0, rule="eps", scaled_again=True, shared=False)
    called = ClassifierGuidance(lambda x, t: 0.0 * x, 1.0, rule="eps", scaled_again=True, shared=False)
    options = {"sigmas": [3.0, 1.0, 0.5], "dtype": torch.float64}
    x, net = torch.ones(2, 3, dtype=torch.float64), Gaussian(0.1, 0.5)
    arguments = {"epsilon_scale": [1.1, 1.0], "epsilon_scale_mode": "first", **options}
    got = Sampler(net, guidance=called, **arguments)((2, 3), x_init=x, labels=1)
    twice = {**arguments, "epsilon_scale": [1.21, 1.0], "guidance": term}
    torch.testing.assert_close(got, Sampler(net, **twice)((2, 3), x_init=x, labels=1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", ["eps", "X0"])
def test_a_rule_nobody_knows(rule):
    class Term(Gradient):
        pass

    term = Term()
    term.rule = rule
    with pytest.raises(ValueError, match="rule must be one of x0, clipped, mean"):
        Sampler(Gaussian(0.1, 0.5), guidance=term)


def test_a_network_of_a_term_that_is_exchanged_is_another_graph(graphs):
    """A term has one place for what it calls, which graphs watch."""
    judges = [Judge(48, seed=seed).to(graphs.device) for seed in (0, 1)]
    term = DiscriminatorGuidance(judges[0])
    sampler = graphs.sampler(guidance=term)
    first = sampler(2, seeds=0)
    term.called = judges[1]
    second = sampler(2, seeds=0)
    assert not second.equal(first) and sampler.stats().captures == 2
    assert second.equal(sampler.replace(graph="off")(2, seeds=0))
