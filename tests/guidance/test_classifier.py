"""Classifier guidance: Bayes' rule in closed form, and ADM's two rules against their own lines."""

from __future__ import annotations

import math

import pytest
import torch

import fastdiff
from fastdiff import Sampler
from fastdiff.guidance import ClassifierGuidance, vp
from fastdiff.process import GaussianTables
from fastdiff.solvers.ddpm import log_variance

from .toys import ROUTE_PARAMS, ROUTES, SETTINGS, SHAPES, Classes, column, nothing, predicted, states

VP = fastdiff.VP.linear(1000)
SHAPE = (4, 3, 2, 2)
LABELS = torch.tensor([2, 0, 1, 2])


def unconditional(classes):
    return lambda x, t, labels=None, **cond: classes(x, t)


@pytest.mark.parametrize("route", ROUTE_PARAMS)
@pytest.mark.parametrize("space", ["process", "vp"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", SETTINGS)
def test_bayes_rule(name, shape, space, route):
    """The unconditional model and the exact classifier give the conditional model."""
    setting = SETTINGS[name]
    classes = Classes(setting.process)
    classifier = classes.classifier if space == "process" else classes.classifier_of_vp
    x, labels = states(setting, shape), torch.arange(shape[0]) % 3
    t = torch.full(shape[:1], setting.at, dtype=torch.float64)
    term = ClassifierGuidance(classifier, space=space)
    got = predicted(setting, x, term, route, model=unconditional(classes), labels=labels)
    want = classes(x, t, labels)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(classes(x, t), want, atol=1e-2)
    one_hot = predicted(
        setting, x, term, route, model=unconditional(classes), labels=torch.nn.functional.one_hot(labels, 3)
    )
    assert one_hot.equal(got)


@pytest.mark.parametrize("solver", ["euler", "heun", "ddim", "ddpm"])
def test_a_guided_run_is_a_conditional_run(solver):
    process = VP if solver in ("ddim", "ddpm") else fastdiff.EDM()
    classes = Classes(process)
    options = {"process": process, "solver": solver, "steps": "8" if process is VP else 8, "dtype": torch.float64}
    want = Sampler(classes, **options)(SHAPE, seeds=0, labels=LABELS)
    term = ClassifierGuidance(classes.classifier)
    got = Sampler(unconditional(classes), guidance=term, **options)(SHAPE, seeds=0, labels=LABELS)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("route", ROUTE_PARAMS)
def test_what_the_classifier_is_shown(route):
    """The state and the time that the model sees, or both in VP terms."""
    seen, told = [], []

    def classifier(x, t):
        seen.append((x.detach().clone(), t.clone()))
        return x.flatten(1)[:, :3]

    def model(x, t, labels):
        told.append(t.double().clone())
        return nothing(x, t)

    for setting in SETTINGS.values():
        x, s = states(setting, SHAPE), setting.level.sigma_ve
        predicted(setting, x, ClassifierGuidance(classifier), route, model=model, labels=LABELS)
        y, t = seen.pop()
        assert y.equal(x) and t.shape == (4,) and t.double().equal(told.pop())
        predicted(setting, x, ClassifierGuidance(classifier, space="vp"), route, labels=LABELS)
        y, t = seen.pop()
        torch.testing.assert_close(y, x / setting.level.alpha * vp.vp_scale(s), rtol=1e-12, atol=1e-12)
        assert t.tolist() == pytest.approx([float(vp.tau_of_sigma(s))] * 4, rel=1e-12)
    single = states(SETTINGS["edm"], SHAPE, torch.float32)
    predicted(SETTINGS["edm"], single, ClassifierGuidance(classifier, dtype=torch.float64), route, labels=LABELS)
    assert seen.pop()[0].dtype == torch.float64


@pytest.mark.parametrize("route", ROUTE_PARAMS)
@pytest.mark.parametrize("kept", [True, False])
def test_who_gets_the_labels(kept, route):
    """The model too, unless they are not shared with it."""
    seen = []

    def model(x, t, **cond):
        seen.append(sorted(cond))
        return nothing(x, t)

    term = ClassifierGuidance(Classes().classifier, shared=kept)
    x = states(SETTINGS["edm"], SHAPE)
    assert predicted(SETTINGS["edm"], x, term, route, model=model, labels=LABELS, cond={"text": 1}).any()
    assert all(names == (["labels", "text"] if kept else ["text"]) for names in seen) and seen


@pytest.mark.parametrize("scale", [3.0, [3.0], lambda level: 3.0 * level.sigma / 1.7])
def test_scales(scale):
    setting, classes = SETTINGS["edm"], Classes()
    x = states(setting, SHAPE)
    once = predicted(setting, x, ClassifierGuidance(classes.classifier), labels=LABELS)
    got = predicted(setting, x, ClassifierGuidance(classes.classifier, scale), labels=LABELS)
    torch.testing.assert_close(got, 3 * once, rtol=1e-12, atol=1e-12)
    weighted = predicted(setting, x, ClassifierGuidance(classes.classifier, scale), labels=LABELS, guidance_scale=0.5)
    torch.testing.assert_close(weighted, 1.5 * once, rtol=1e-12, atol=1e-12)


# --- ADM's rules ------------------------------------------------------------------------------------------------------


def eps_net(x, t, labels=None):
    """A network of eps with a variance half."""
    out = 0.9 * x + 0.1 * (3 * x).sin() + column(t.double() / 5000, x)
    return torch.cat([out, (0.7 * x.flip(1)).tanh()], 1)


def gradient(x, t, scale):
    leaf = x.clone().requires_grad_()
    classes = Classes(VP)
    chosen = classes.classifier(leaf, t).log_softmax(1).gather(1, LABELS[:, None])
    return scale * torch.autograd.grad(chosen.sum(), leaf)[0]


def adm(rule, *, steps, draws, scale, variance="fixed_small", clip=False, eta=0.0, lam=1.0, again=False):
    """guided-diffusion's p_sample ("mean") or ddim_sample ("eps") with guidance; ADM-ES divides eps by lam."""
    levels = VP.levels(steps)
    q = GaussianTables(levels.alphas_cumprod)
    a, b = log_variance(q, variance)
    x, n = draws[0], levels.steps
    for k, i in enumerate(reversed(range(n))):
        abar, prev = q.alphas_cumprod[i], q.alphas_cumprod_prev[i]
        t = torch.full(x.shape[:1], levels[k].time, dtype=torch.float64)
        mean, head = eps_net(x, t).chunk(2, 1)
        g = gradient(x, t, scale)
        x0 = (x - math.sqrt(1 - abar) * mean / lam) / math.sqrt(abar)
        x0 = x0.clamp(-1, 1) if clip else x0
        z = draws[k + 1] if i > 0 else torch.zeros_like(x)
        if rule == "mean":
            log_var = a[i] * head + b[i]
            var = log_var.exp() if variance != "fixed_small" else q.posterior_variance[i]
            x = q.posterior_mean_coef1[i] * x0 + q.posterior_mean_coef2[i] * x + var * g + (log_var / 2).exp() * z
        else:
            eps = (x - math.sqrt(abar) * x0) / math.sqrt(1 - abar) - math.sqrt(1 - abar) * g
            x0 = (x - math.sqrt(1 - abar) * eps / (lam if again else 1.0)) / math.sqrt(abar)
            eps = (x - math.sqrt(abar) * x0) / math.sqrt(1 - abar)
            std = eta * math.sqrt((1 - prev) / (1 - abar) * (1 - abar / prev))
            x = math.sqrt(prev) * x0 + math.sqrt(max(0.0, 1 - prev - std**2)) * eps + std * z
    return x


RULES = {
    "mean, small": ("mean", {"variance": "fixed_small"}),
    "mean, large": ("mean", {"variance": "fixed_large", "clip": True}),
    "mean, range": ("mean", {"variance": "learned_range", "clip": True}),
    "mean, learned": ("mean", {"variance": "learned"}),
    "eps": ("eps", {}),
    "eps, clipped, eta 1": ("eps", {"clip": True, "eta": 1.0}),
    "eps, ADM-ES": ("eps", {"clip": True, "eta": 0.5, "lam": 1.02, "again": True}),
    "eps, scaled once": ("eps", {"lam": 1.02}),
}


@pytest.mark.parametrize("route", ROUTE_PARAMS)
@pytest.mark.parametrize("name", RULES)
def test_adms_rules(name, route):
    rule, options = RULES[name]
    steps, scale = "7", 1.5
    draws = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = {"variance": options["variance"]} if rule == "mean" else {"eta": options.get("eta", 0.0)}
    term = ClassifierGuidance(Classes(VP).classifier, scale, rule=rule, scaled_again=options.get("again", False))
    sampler = Sampler(
        eps_net,
        process=VP,
        prediction="eps",
        solver="ddpm" if rule == "mean" else "ddim",
        steps=steps,
        clip_denoised=options.get("clip", False),
        epsilon_scale=options.get("lam", 1.0),
        guidance=term,
        dtype=torch.float64,
        **own,
        **ROUTES[route],
    )
    got = sampler(SHAPE, x_init=draws[0], noise=lambda draw, step: draws[step + 1], labels=LABELS)
    want = adm(rule, steps=steps, draws=draws, scale=scale, **options)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    unguided = adm(rule, steps=steps, draws=draws, scale=0.0, **options)
    assert not torch.allclose(want, unguided, atol=1e-3)


@pytest.mark.parametrize("route", ROUTE_PARAMS)
def test_adm_es_scales_guided_noise_of_a_network_of_x0_too(route):
    """Its own x_0 is left as it is, but the way back from the guided eps divides by lambda, whatever is predicted."""
    setting, lam, scale = SETTINGS["vp"], 1.05, 2.0
    x, level = states(setting, SHAPE), setting.level
    t = torch.full((4,), level.time, dtype=torch.float64)
    x0 = (0.5 * x).clamp(-1, 1)
    eps = (x - level.alpha * x0) / level.sigma - level.sigma * gradient(x, t, scale)
    want = (x - level.sigma * eps / lam) / level.alpha
    term = ClassifierGuidance(Classes(setting.process).classifier, scale, rule="eps", scaled_again=True)
    options = {"epsilon_scale": lam, "epsilon_scale_mode": "eps", "clip_denoised": True, "labels": LABELS}
    got = predicted(setting, x, term, route, model=lambda x, t, labels: 0.5 * x, **options)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_without_clipping_the_ddim_rule_is_the_plain_one():
    draws = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    runs = []
    for rule in ("x0", "eps"):
        term = ClassifierGuidance(Classes(VP).classifier, 2.0, rule=rule)
        options = {"process": VP, "prediction": "eps", "solver": "ddim", "steps": "7", "dtype": torch.float64}
        runs.append(Sampler(lambda *a, **k: eps_net(*a, **k).chunk(2, 1)[0], guidance=term, **options))
    a, b = (sampler(SHAPE, x_init=draws, labels=LABELS) for sampler in runs)
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", ["ddim", "euler", "heun"])
def test_the_rule_for_the_mean_needs_a_mean(solver):
    with pytest.raises(ValueError, match="mean"):
        Sampler(nothing, process=VP, solver=solver, steps="5", guidance=ClassifierGuidance(nothing, rule="mean"))


@pytest.mark.parametrize("labels", [LABELS, torch.eye(3)[LABELS]], ids=["classes", "one-hot rows"])
@pytest.mark.parametrize("route", ROUTES)
def test_in_inference_mode(route, labels):
    sampler = Sampler(
        nothing, steps=3, guidance=ClassifierGuidance(Classes().classifier, shared=False), **ROUTES[route]
    )
    want = sampler((4, 3), seeds=0, labels=LABELS)
    with torch.inference_mode():
        assert sampler((4, 3), seeds=0, labels=labels.clone()).equal(want)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("space", ["process", "vp"])
@pytest.mark.parametrize("rule", ["x0", "eps"])
def test_pure_noise_is_not_guided(rule, space, route):
    """At alpha = 0 the state says nothing of x_0, so every density's gradient there is 0."""
    process, asked = fastdiff.VP([0.1] * 9 + [1.0]), []

    def classifier(x, t):
        asked.append(float(t[0]))
        return x[:, :3]

    options = {"process": process, "prediction": "v", "solver": "ddim", **ROUTES[route]}
    term = ClassifierGuidance(classifier, rule=rule, space=space, shared=False)
    final = Sampler(lambda x, t: 0.1 * x, guidance=term, **options)((4, 3), seeds=0, labels=LABELS)
    assert final.isfinite().all() and len(asked) == 9


@pytest.mark.parametrize("options", [{"prediction": "edm"}, {"prediction": "v", "epsilon_scale": 1.01}], ids=str)
def test_what_pure_noise_cannot_have(options):
    with pytest.raises(ValueError, match=r"alpha = 0 \(zero terminal SNR\)"):
        Sampler(lambda x, t: 0.1 * x, process=fastdiff.VP([0.1] * 9 + [1.0]), solver="ddim", **options)


def test_labels_are_needed():
    sampler = Sampler(nothing, steps=3, guidance=ClassifierGuidance(Classes().classifier))
    with pytest.raises(ValueError, match="labels must be given"):
        sampler((2, 3), seeds=0)


REFUSED = [
    ({"classifier": None}, TypeError, "classifier"),
    ({"scale": float("nan")}, ValueError, "scale"),
    ({"scale": "strong"}, ValueError, "scale"),
    ({"rule": "epsilon"}, ValueError, "rule"),
    ({"space": "ve"}, ValueError, "space"),
    ({"dtype": torch.int64}, ValueError, "dtype"),
]


@pytest.mark.parametrize(("options", "kind", "name"), REFUSED, ids=lambda v: str(v)[:30])
def test_refused_arguments(options, kind, name):
    with pytest.raises(kind, match=name):
        ClassifierGuidance(**{"classifier": Classes().classifier, **options})
