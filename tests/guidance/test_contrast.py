"""Classifier-free guidance and autoguidance: their formulas, what is called, intervals and the rescaled variant."""

from __future__ import annotations

import pytest
import torch

import fastdiff
from fastdiff import Sampler
from fastdiff.guidance import AutoGuidance, ClassifierFree, ClassifierGuidance

from .toys import ROUTE_PARAMS, SETTINGS, SHAPES, Classes, Gaussian, column, nothing, predicted, states

LABELS = torch.tensor([2, 0, 1, 2])
SHAPE = (4, 3, 2, 2)


class Counted:
    """A conditional network that counts its calls and their sizes; label 3 is the null class."""

    def __init__(self, bias=0.0):
        self.bias, self.sizes = bias, []

    def __call__(self, x, t, labels=None, text=None):
        self.sizes.append(len(x))
        classes = torch.full((len(x),), 3) if labels is None else labels
        y = (0.3 + 0.1 * column(classes, x)) * x + 0.2 * column(classes, x) * x.cos() + self.bias
        return y if text is None else y + 0.1 * text.flatten(1).mean(1).reshape(-1, *[1] * (x.ndim - 1))


def both(x, t=None, **text):
    """(conditional, null) outputs."""
    net = Counted()
    return net(x, t, LABELS[: len(x)], **text), net(x, t, torch.full((len(x),), 3), **text)


@pytest.mark.parametrize("route", ROUTE_PARAMS)
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_formula(name, batched, route):
    """x_0 = null + w (conditional - null), in one call of twice the batch or in two."""
    setting, net = SETTINGS[name], Counted()
    x = states(setting, SHAPE)
    got = predicted(
        setting, x, ClassifierFree(2.5, null={"labels": 3}, batched=batched), route, model=net, labels=LABELS
    )
    cond, null = both(x)
    torch.testing.assert_close(got, null + 2.5 * (cond - null), rtol=1e-12, atol=1e-12)
    assert net.sizes == [8] if batched else net.sizes == [4, 4]


@pytest.mark.parametrize("prediction", ["eps", "v", "score", "x0"])
@pytest.mark.parametrize("batched", [False, True])
def test_every_prediction_type(prediction, batched):
    """Guiding the output is guiding x_0: both are linear."""
    setting, level = SETTINGS["vp"], SETTINGS["vp"].level
    x = states(setting, SHAPE)
    term = ClassifierFree(3.0, null={"labels": 3}, batched=batched)
    got = predicted(setting, x, term, model=Counted(), labels=LABELS, prediction=prediction)
    cond, null = both(x)
    plain = predicted(setting, x, None, model=lambda x, t: null + 3 * (cond - null), prediction=prediction)
    torch.testing.assert_close(got, plain, rtol=1e-11, atol=1e-11 / level.alpha)


@pytest.mark.parametrize("solver", ["heun", "euler", "ddim", "ddpm"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_call_or_two_are_the_same_run(solver, shape):
    on_vp = solver in ("ddim", "ddpm")
    options = {"process": "vp", "prediction": "eps", "steps": "6"} if on_vp else {"steps": 6, "S_churn": 5.0}
    labels, text = LABELS.repeat(2)[: shape[0]], torch.linspace(0, 1, shape[0])[:, None]
    runs, nets = [], [Counted(), Counted()]
    for net, batched in zip(nets, (False, True)):
        term = ClassifierFree(2.0, null={"labels": 3}, batched=batched)
        sampler = Sampler(net, solver=solver, guidance=term, dtype=torch.float64, **options)
        runs.append(sampler(shape, seeds=0, labels=labels, cond={"text": text}))
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-12, atol=1e-12)
    assert sum(nets[0].sizes) == sum(nets[1].sizes) and len(nets[0].sizes) == 2 * len(nets[1].sizes)


@pytest.mark.parametrize("route", ROUTE_PARAMS)
def test_what_the_null_is(route):
    """A value for every sample, a tensor, nothing at all, or a function of the conditioning."""
    setting = SETTINGS["edm"]
    x = states(setting, SHAPE)
    text = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(4, 1)
    cond, null = both(x, text=text)
    want = null + 2 * (cond - null)
    for nothing_said in (
        {"labels": 3},
        {"labels": torch.full((4,), 3)},
        {"labels": None},
        None,
        lambda given: {**given, "labels": torch.full_like(given["labels"], 3)},
    ):
        for batched in (False, True):
            if batched and (nothing_said is None or nothing_said == {"labels": None}):
                continue
            term = ClassifierFree(2.0, null=nothing_said, batched=batched)
            got = predicted(setting, x, term, route, model=Counted(), labels=LABELS, cond={"text": text})
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    term = ClassifierFree(2.0, null={"labels": 3, "text": 0.0}, batched=True)
    got = predicted(setting, x, term, route, model=Counted(), labels=LABELS, cond={"text": text})
    null = Counted()(x, None, torch.full((4,), 3), torch.zeros(4, 1))
    torch.testing.assert_close(got, null + 2 * (cond - null), rtol=1e-12, atol=1e-12)


def test_a_batched_null_must_fill_what_it_replaces():
    with pytest.raises(ValueError, match=r"null must give a value for labels when batched=True"):
        Sampler(Counted(), steps=2, guidance=ClassifierFree(2.0, batched=True))((4, 3), labels=LABELS)


@pytest.mark.parametrize("scale", [1.0, [1.0] * 4, lambda level: 1.0])
def test_scale_1_calls_nothing(scale):
    for term in (ClassifierFree(scale, null={"labels": 3}), AutoGuidance(nothing, scale)):
        net = Counted()
        sampler = Sampler(net, steps=4, solver="euler", guidance=term, dtype=torch.float64)
        guided = sampler(SHAPE, seeds=0, labels=LABELS)
        assert net.sizes == [4] * 4
        assert guided.equal(
            Sampler(Counted(), steps=4, solver="euler", dtype=torch.float64)(SHAPE, seeds=0, labels=LABELS)
        )


def test_scale_0_is_the_unconditional_model():
    for batched in (False, True):
        term = ClassifierFree(0.0, null={"labels": 3}, batched=batched)
        got = Sampler(Counted(), steps=5, guidance=term, dtype=torch.float64)(SHAPE, seeds=0, labels=LABELS)
        want = Sampler(Counted(), steps=5, dtype=torch.float64)(SHAPE, seeds=0, labels=3)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("kind", ["free", "auto"])
def test_intervals(kind, batched):
    """Guided where lo < sigma <= hi; elsewhere the second opinion is not even asked."""
    called = []
    grid = [80.0, 20.0, 5.0, 1.0, 0.2, 0.0]

    def guide(x, t, labels=None):
        called.append(float(t[0]))
        return 0.5 * x

    def net(x, t, labels=None):
        return 0.4 * x

    interval = (1.0, 20.0)
    if kind == "auto":
        term = AutoGuidance(guide, 2.0, interval=interval)
    else:

        def switch(x, t, labels=None):
            if len(x) == 8 or bool((labels == 3).all()):
                called.append(float(t[0]))
            return net(x, t)

        term = ClassifierFree(2.0, null={"labels": 3}, batched=batched, interval=interval)
    model = net if kind == "auto" else switch
    Sampler(model, sigmas=grid, solver="euler", guidance=term)(SHAPE, labels=LABELS)
    assert called == [20.0, 5.0]


@pytest.mark.parametrize("route", ROUTE_PARAMS)
@pytest.mark.parametrize("phi", [0.3, 1.0])
@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
@pytest.mark.parametrize("batched", [False, True])
def test_rescaling_is_that_of_diffusers(batched, prediction, phi, route):
    """`rescale_noise_cfg` (Lin et al. 2024, Sec. 3.4) on the network's output."""
    setting = SETTINGS["vp"]
    x = states(setting, SHAPE)
    term = ClassifierFree(6.0, null={"labels": 3}, batched=batched, rescale=phi)
    got = predicted(setting, x, term, route, model=Counted(), labels=LABELS, prediction=prediction)
    noise_pred_text, null = both(x)
    noise_cfg = null + 6 * (noise_pred_text - null)
    axes = list(range(1, x.ndim))
    std_text, std_cfg = noise_pred_text.std(dim=axes, keepdim=True), noise_cfg.std(dim=axes, keepdim=True)
    mixed = phi * (noise_cfg * (std_text / std_cfg)) + (1 - phi) * noise_cfg
    want = predicted(setting, x, None, model=lambda x, t: mixed, prediction=prediction)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("route", ROUTE_PARAMS)
@pytest.mark.parametrize("name", SETTINGS)
def test_autoguidance(name, route):
    """D_bad + w (D - D_bad); for Gaussians the closed form of both."""
    setting = SETTINGS[name]
    good, bad = Gaussian(0.3, 0.5, setting.process), Gaussian(0.1, 0.7, setting.process)
    x = states(setting, SHAPE)
    t = torch.full((4,), setting.at, dtype=torch.float64)
    got = predicted(setting, x, AutoGuidance(bad, 1.8), route, model=good)
    want = bad(x, t) + 1.8 * (good(x, t) - bad(x, t))
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("route", ROUTE_PARAMS)
def test_a_guide_with_another_prediction(route):
    """A network of eps guides one of x_0, and the other way round."""
    setting, level = SETTINGS["vp"], SETTINGS["vp"].level
    good, bad = Gaussian(0.3, 0.5, setting.process), Gaussian(0.1, 0.7, setting.process)
    x = states(setting, SHAPE)
    t = torch.full((4,), setting.at, dtype=torch.float64)
    want = bad(x, t) + 1.8 * (good(x, t) - bad(x, t))

    def as_eps(model):
        return lambda x, t, **cond: (x - level.alpha * model(x, t)) / level.sigma

    for model, guide, own, other in ((good, as_eps(bad), "x0", "eps"), (as_eps(good), bad, "eps", "x0")):
        term = AutoGuidance(guide, 1.8, prediction=other)
        got = predicted(setting, x, term, route, model=model, prediction=own)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_the_guide_gets_the_conditioning_and_the_networks_input():
    seen = []

    def net(x, t, **cond):
        seen.append((x.clone(), t.clone(), cond["labels"], cond["text"]))
        return 0.1 * x

    sampler = Sampler(net, steps=2, solver="euler", prediction="edm", guidance=AutoGuidance(net, 2.0))
    sampler((4, 3), seeds=0, labels=LABELS, cond={"text": "hello"})
    assert len(seen) == 4
    for (x, t, *cond), (x2, t2, *cond2) in zip(seen[::2], seen[1::2]):
        assert x.equal(x2) and t.equal(t2) and cond[0].equal(cond2[0]) and cond[1] == cond2[1] == "hello"


def test_a_network_with_a_variance_half():
    """Its own variance is used; the guide may have one or none."""
    net = Counted()

    def learned(x, t, labels=None):
        return torch.cat([0.5 * net(x, t, labels), (x + column(labels, x)).tanh() * 0.5], 1)

    options = {"process": "vp", "prediction": "eps", "solver": "ddpm", "variance": "learned_range", "steps": "6"}
    options |= {"dtype": torch.float64, "clip_denoised": True}
    guide = lambda x, t, labels=None: 0.5 * net(x, t, torch.full_like(labels, 3))  # noqa: E731
    terms = [
        ClassifierFree(2.0, null={"labels": 3}),
        ClassifierFree(2.0, null={"labels": 3}, batched=True),
        AutoGuidance(guide, 2.0),
    ]
    runs = [Sampler(learned, guidance=term, **options)(SHAPE, seeds=0, labels=LABELS) for term in terms]
    for run in runs[1:]:
        torch.testing.assert_close(run, runs[0], rtol=1e-10, atol=1e-10)

    def by_hand(x, t, labels=None):
        own, null = learned(x, t, labels), learned(x, t, torch.full_like(labels, 3))
        return torch.cat([(null + 2 * (own - null)).chunk(2, 1)[0], own.chunk(2, 1)[1]], 1)

    torch.testing.assert_close(
        Sampler(by_hand, **options)(SHAPE, seeds=0, labels=LABELS), runs[0], rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("prediction", ["previous_x", "eps"])
def test_ancestral_sampling_from_the_guided_mean(prediction):
    """A prediction of the previous x is the mean itself, so that is what is guided."""
    options = {"process": fastdiff.VP.linear(50), "prediction": prediction, "solver": "ddpm", "dtype": torch.float64}
    term = ClassifierFree(2.0, null={"labels": 3})
    got = Sampler(Counted(), guidance=term, **options)(SHAPE, seeds=0, labels=LABELS)

    def by_hand(x, t, labels=None):
        cond, null = both(x)
        return null + 2 * (cond - null)

    want = Sampler(by_hand, **options)(SHAPE, seeds=0, labels=LABELS)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("route", ROUTE_PARAMS)
def test_a_rescaled_term_beside_others(route):
    """Every term's push is its own: what rescaling changes of one is added to what the others do, in any order."""
    setting, net, bad = SETTINGS["edm"], Counted(), Gaussian(0.0, 0.9)
    x = states(setting, SHAPE)
    terms = [AutoGuidance(bad, 1.5), ClassifierFree(3.0, null={"labels": 3}, rescale=0.7)]
    options = {"model": net, "labels": LABELS}
    alone = [predicted(setting, x, term, route, **options) for term in terms]
    want = sum(alone) - predicted(setting, x, None, route, **options)
    for order in (terms, terms[::-1]):
        torch.testing.assert_close(predicted(setting, x, order, route, **options), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_samples_of_one_element_have_no_deviation(shape):
    sampler = Sampler(Counted(), steps=2, guidance=ClassifierFree(2.0, null={"labels": 3}, rescale=0.5))
    with pytest.raises(ValueError, match="rescale must be 0 for samples of one element"):
        sampler(shape, seeds=0, labels=LABELS[:3])


def test_second_opinions_get_the_networks_conditioning():
    """What a term keeps for itself no call of a network receives."""
    seen = []

    def net(x, t, **cond):
        seen.append(sorted(cond))
        return 0.1 * x

    terms = [
        ClassifierGuidance(Classes().classifier, shared=False),
        ClassifierFree(2.0, null={"text": 0.0}),
        AutoGuidance(net, 2.0),
    ]
    cond = {"labels": LABELS[:3], "text": torch.ones(3)}
    Sampler(net, steps=2, solver="euler", guidance=terms)((3, 3), seeds=0, cond=cond)
    assert seen == [["text"]] * 6


def test_a_guide_with_another_prediction_moves_the_mean():
    """Where the mean is the network's own output, a push that is not in that output is added to it."""
    options = {"process": fastdiff.VP.linear(50), "prediction": "previous_x", "solver": "ddpm", "dtype": torch.float64}
    net = lambda x, t: 0.9 * x  # noqa: E731
    plain, guided = (
        Sampler(net, guidance=term, **options)((3, 6), seeds=0)
        for term in (None, AutoGuidance(lambda x, t: 0.1 * x, 1.5, prediction="x0"))
    )
    assert not guided.equal(plain)


@pytest.mark.filterwarnings("error:.*:RuntimeWarning")
def test_a_graph_is_for_its_null_and_for_who_gets_the_labels(graphs):
    """Samplers that share graphs and differ in what the network gets of their terms do different work."""

    def judge(x, t):
        return x.flatten(1)[:, :4]

    tensors = [torch.full((2,), k, device=graphs.device) for k in (1, 2)]
    terms = [ClassifierFree(2.0, null={"labels": null}) for null in (None, 1, 3, *tensors)]
    terms += [ClassifierGuidance(judge, 3.0, shared=shared) for shared in (True, False)]
    first = graphs.sampler(guidance=terms[0])
    for term in terms:
        sampler = first.replace(guidance=term)
        eager = first.replace(guidance=term, graph="off")(2, seeds=0, labels=[0, 1])
        assert sampler(2, seeds=0, labels=[0, 1]).equal(eager) and sampler(2, seeds=3, labels=[0, 1]).isfinite().all()
    assert first.stats().captures == len(terms)
    again = first.replace(guidance=ClassifierFree(3.0, null={"labels": 3}))  # another weight
    assert again(2, seeds=0, labels=[0, 1]).isfinite().all() and first.stats().captures == len(terms)


REFUSED = [
    (lambda: ClassifierFree(float("nan")), ValueError, "scale"),
    (lambda: ClassifierFree(2.0, null=3), TypeError, "null"),
    (lambda: ClassifierFree(2.0, interval=(3.0, 1.0)), ValueError, "interval"),
    (lambda: ClassifierFree(2.0, interval=4.0), ValueError, "interval"),
    (lambda: ClassifierFree(2.0, interval=(1.0, float("nan"))), ValueError, "interval"),
    (lambda: ClassifierFree(2.0, rescale=1.5), ValueError, "rescale"),
    (lambda: ClassifierFree(2.0, rescale=float("nan")), ValueError, "rescale"),
    (lambda: AutoGuidance(None, 2.0), TypeError, "model"),
    (lambda: AutoGuidance(nothing, "big"), ValueError, "scale"),
    (lambda: AutoGuidance(nothing, 2.0, prediction="noise"), ValueError, "prediction"),
    (lambda: AutoGuidance(nothing, 2.0, interval=(1.0,)), ValueError, "interval"),
]


@pytest.mark.parametrize(("make", "kind", "name"), REFUSED)
def test_refused_arguments(make, kind, name):
    with pytest.raises(kind, match=name):
        make()


def test_a_function_of_the_level_sees_every_level():
    seen = []
    term = ClassifierFree(lambda level: seen.append(level.sigma) or 1.0, null={"labels": 3})
    Sampler(Counted(), sigmas=[4.0, 2.0, 0.0], guidance=term)
    assert set(seen) == {4.0, 2.0}
