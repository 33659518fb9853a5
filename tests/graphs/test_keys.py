"""What makes a new graph, what does not, and that a replay never uses a number of an earlier call."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch

from fastdiff import LinearScale
from fastdiff.energy import OneLevel

from .conftest import SHAPE, critic

pytestmark = pytest.mark.filterwarnings("error:.*:RuntimeWarning")


@contextmanager
def switch(owner, name, value):
    """An attribute changed for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def text(graphs, *shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(graphs.device, dtype)


def with_text(graphs, tensor, **more):
    return {"cond": {"context": {"text": tensor}, **more}}


# --- calls: (arguments of the first call, arguments of the second) ---------------------------------------------------

OTHER_CALLS = {
    "batch": lambda g: ({"shape": 2}, {"shape": 3}),
    "size": lambda g: ({}, {"shape": (2, 3, 8, 8)}),
    "labels given": lambda g: ({}, {"labels": 1}),
    "x_init given": lambda g: ({}, {"x_init": text(g, 2, *SHAPE)}),
    "dtype of cond": lambda g: (with_text(g, text(g, 2, 5, 8)), with_text(g, text(g, 2, 5, 8, dtype=torch.float64))),
    "shape of cond": lambda g: (with_text(g, text(g, 2, 5, 8)), with_text(g, text(g, 2, 6, 8))),
    "strides of cond": lambda g: (with_text(g, text(g, 2, 5, 8)), with_text(g, text(g, 2, 8, 5).mT)),
    "tree of cond": lambda g: (
        with_text(g, text(g, 2, 5, 8)),
        {"cond": {"context": {"text": text(g, 2, 5, 8), "unused": text(g, 2)}}},
    ),
    "a number in cond": lambda g: (
        with_text(g, text(g, 2, 5, 8), strength=0.5),
        with_text(g, text(g, 2, 5, 8), strength=0.75),
    ),
    "type of a number in cond": lambda g: (
        with_text(g, text(g, 2, 5, 8), strength=1),
        with_text(g, text(g, 2, 5, 8), strength=1.0),
    ),
}
SAME_CALLS = {
    "seeds": lambda g: ({"seeds": 0}, {"seeds": 9}),
    "seeds as a list": lambda g: ({"seeds": 0}, {"seeds": [5, 5]}),
    "seeds as a tensor": lambda g: ({"seeds": 0}, {"seeds": torch.tensor([3, 1])}),
    "labels": lambda g: ({"labels": [0, 1]}, {"labels": [3, 2]}),
    "one label for all": lambda g: ({"labels": [0, 1]}, {"labels": 3}),
    "x_init": lambda g: ({"x_init": text(g, 2, *SHAPE)}, {"x_init": text(g, 2, *SHAPE, seed=1)}),
    "strides of x_init": lambda g: ({"x_init": text(g, 2, *SHAPE)}, {"x_init": text(g, 2, *SHAPE).mT}),
    "cond": lambda g: (with_text(g, text(g, 2, 5, 8)), with_text(g, text(g, 2, 5, 8, seed=1))),
}


def run(sampler, arguments):
    return sampler(**{"shape": 2, "seeds": 0, **arguments})


@pytest.mark.parametrize("name", [*OTHER_CALLS, *SAME_CALLS])
def test_arguments_of_a_call(name, graphs):
    first, second = {**OTHER_CALLS, **SAME_CALLS}[name](graphs)
    eager, captured = graphs.sampler(graph="off"), graphs.sampler()
    for arguments in (first, second, first, second):
        assert run(captured, arguments).equal(run(eager, arguments))
    assert captured.stats().captures == (2 if name in OTHER_CALLS else 1)


# --- the state of PyTorch --------------------------------------------------------------------------------------------

SWITCHES = {
    "autocast": lambda g: torch.autocast(g.device.type, torch.bfloat16),
    "deterministic algorithms": lambda g: deterministic(),
    "cudnn.benchmark": lambda g: switch(torch.backends.cudnn, "benchmark", not torch.backends.cudnn.benchmark),
    "cudnn.deterministic": lambda g: switch(
        torch.backends.cudnn, "deterministic", not torch.backends.cudnn.deterministic
    ),
    "cudnn.enabled": lambda g: switch(torch.backends.cudnn, "enabled", not torch.backends.cudnn.enabled),
    "cudnn.allow_tf32": lambda g: switch(torch.backends.cudnn, "allow_tf32", not torch.backends.cudnn.allow_tf32),
    "matmul.allow_tf32": lambda g: switch(
        torch.backends.cuda.matmul, "allow_tf32", not torch.backends.cuda.matmul.allow_tf32
    ),
    "reduced precision": lambda g: switch(
        torch.backends.cuda.matmul,
        "allow_bf16_reduced_precision_reduction",
        not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
    ),
    "matmul.fp32_precision": lambda g: switch(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "conv.fp32_precision": lambda g: switch(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_the_state_of_pytorch(name, graphs):
    eager, captured = graphs.sampler(graph="off"), graphs.sampler()
    with SWITCHES[name](graphs):
        pass  # from now on the switch has been set, to what it was by default
    for seeds in (0, 1):
        assert captured(2, seeds=seeds).equal(eager(2, seeds=seeds))
        with SWITCHES[name](graphs):
            assert captured(2, seeds=seeds).equal(eager(2, seeds=seeds))
    assert captured.stats().captures == 2


def test_the_dtype_of_autocast(graphs):
    eager, captured = (graphs.sampler(graph=graph, sigma_max=2.0) for graph in ("off", "loop"))
    results = []
    for dtype in (torch.bfloat16, torch.float16) * 2:
        with torch.autocast(graphs.device.type, dtype):
            results.append(captured(2, seeds=0))
            assert results[-1].equal(eager(2, seeds=0))
    assert captured.stats().captures == 2 and results[0].equal(results[2]) and not results[0].equal(results[1])


def test_autocast_keeps_no_cast_of_the_weights(graphs):
    """Its cache would hand the graph casts that are freed, or stale after a change of the weights."""
    net = graphs.net()
    eager, captured = graphs.sampler(net, graph="off"), graphs.sampler(net)
    with torch.autocast(graphs.device.type, torch.bfloat16), torch.enable_grad():
        net(torch.zeros(1, *SHAPE, device=graphs.device), torch.ones(1, device=graphs.device))
        captured(2, seeds=0)
    with torch.no_grad():
        net.first.weight.mul_(2.0)
    with torch.autocast(graphs.device.type, torch.bfloat16):
        assert captured(2, seeds=0).equal(eager(2, seeds=0))
    assert captured.stats().captures == 1


def test_grad_mode_outside_does_not_matter(graphs):
    captured = graphs.sampler()
    with torch.enable_grad():
        a = captured(2, seeds=0)
    with torch.no_grad():
        assert captured(2, seeds=0).equal(a) and not a.requires_grad
    assert captured.stats().captures == 1


# --- the sampler: replace() keeps the graphs -------------------------------------------------------------------------

VP = {"process": "vp", "prediction": "eps", "solver": "ddim", "steps": "ddim3"}
SAME_PLAN = {
    "sigmas": ({"steps": None, "sigmas": [60.0, 10.0, 1.0, 0.0]}, {"sigmas": [50.0, 5.0, 0.5, 0.0]}),
    "rho": ({}, {"rho": 5.0}),
    "sigma_min and sigma_max": ({}, {"sigma_min": 0.01, "sigma_max": 90.0}),
    "timesteps": ({**VP, "steps": None, "timesteps": [900, 500, 100]}, {"timesteps": [800, 400, 50]}),
    "lambda": ({"epsilon_scale": 1.01}, {"epsilon_scale": 1.05}),
    "lambdas": ({"epsilon_scale": [1.01, 1.1, 1.2]}, {"epsilon_scale": LinearScale(0.01, 1.02)}),
    "eta": ({**VP, "eta": 0.5}, {"eta": 0.8}),
    "S_noise": ({"S_churn": 10.0}, {"S_noise": 1.1}),
    "clip": ({"clip_denoised": True}, {"clip_denoised": (-0.2, 0.3)}),
    "levels below a thresholding": ({"thresholding": (0.9, 1.5)}, {"rho": 5.0}),
    "learned range": (
        {**VP, "solver": "ddpm", "variance": "learned_range", "epsilon_scale": 1.01},
        {"epsilon_scale": 1.1},
    ),
    "guidance_scale": ({"guidance": 1, "guidance_scale": 1.0}, {"guidance_scale": 4.0}),
    "guidance_scales": ({"guidance": 2, "guidance_scale": [1.0, 2.0]}, {"guidance_scale": [-1.5, 1.9]}),
}
# Numbers that happen to change the work: a coefficient that becomes zero, one that needs float64 beside others.
EITHER_PLAN = {
    "S_churn": ({"S_churn": 0.5}, {"S_churn": 1.0}),
    "lambda from one": ({}, {"epsilon_scale": 1.05}),
    "sigmas": ({"steps": None, "sigmas": [80.0, 10.0, 1.0, 0.0]}, {"sigmas": [50.0, 5.0, 0.5, 0.0]}),
    "guidance_scale": ({"guidance": 2, "guidance_scale": [1.0, 2.0]}, {"guidance_scale": [-3.0, 0.0]}),
}
OTHER_PLAN = {
    "steps": ({}, {"steps": 5}),
    "solver": ({}, {"solver": "euler"}),
    "churn from none": ({}, {"S_churn": 10.0}),
    "clip from none": ({}, {"clip_denoised": True}),
    "dtype": ({}, {"dtype": torch.float64}),
    "levels that a guidance term sees": ({"guidance": 1}, {"rho": 5.0}),
    "thresholding": ({"thresholding": True}, {"thresholding": (0.5, 3.0)}),
    "denoised_fn": ({"denoised_fn": lambda x0: x0.tanh()}, {"denoised_fn": lambda x0: x0.sin()}),
}
PLANS = {"same": SAME_PLAN, "other": OTHER_PLAN, "either": EITHER_PLAN}


def test_a_metropolis_test_is_known_by_its_energy(graphs):
    def energy(x):
        return 0.5 * x.square().flatten(1).sum(1)

    arguments = {"process": OneLevel(), "prediction": "score", "solver": "mala", "shape": (3,)}
    first = graphs.sampler(lambda x, t: -x, energy=energy, step_size=0.5, **arguments)
    for changes, captures in (({"step_size": 0.1}, 1), ({"energy": lambda x: energy(x) / 2}, 2)):
        second = first.replace(**changes)
        for sampler in (first, second):
            assert sampler(2, seeds=0).equal(sampler.replace(graph="off")(2, seeds=0))
        assert second.stats().captures == captures


def with_terms(graphs, options):
    count = options.get("guidance", 0)
    terms = [critic(graphs), lambda x, level, **cond: -x / (1 + level.sigma**2)][:count]
    return {**options, "guidance": terms} if count else options


@pytest.mark.parametrize("scope", ["loop", "step"])
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in PLANS for name in PLANS[kind]])
def test_replaced_numbers_are_not_stale(kind, name, scope, graphs):
    options, changes = PLANS[kind][name]
    net = graphs.net(halves=2 if "variance" in options else 1)
    first = graphs.sampler(net, **{**with_terms(graphs, options), "graph": scope})
    second = first.replace(**changes)
    results = []
    for sampler, seeds in ((first, 0), (second, 0), (first, 0), (second, 7), (first, 7)):
        results.append(sampler(2, seeds=seeds))
        assert results[-1].equal(sampler.replace(graph="off")(2, seeds=seeds)), f"call {len(results)}"
    assert not results[0].equal(results[1]) and results[0].equal(results[2])
    assert graphs_made(first, second) in {"same": (1,), "other": (2,), "either": (1, 2)}[kind]


def graphs_made(first, second):
    """Of two samplers that share their graphs, or of both together."""
    counts = [sampler.stats().captures for sampler in (first, second)]
    return counts[0] if first.stats() == second.stats() else sum(counts)


def test_replace_leaves_the_first_sampler_alone(graphs):
    first = graphs.sampler(epsilon_scale=1.0)
    want = first(2, seeds=0)
    second = first.replace(epsilon_scale=1.2)
    assert second(2, seeds=0).equal(graphs.sampler(graph="off", epsilon_scale=1.2)(2, seeds=0))
    assert first(2, seeds=0).equal(want) and first.epsilon_scale == 1.0
    with pytest.raises(TypeError):
        first.replace(no_such_argument=1)


def test_another_model_has_graphs_of_its_own(graphs):
    first = graphs.sampler()
    other = copy.deepcopy(first.model)
    with torch.no_grad():
        other.first.weight.mul_(2.0)
    second = first.replace(model=other)
    for _ in range(2):
        for sampler in (first, second):
            assert sampler(2, seeds=0).equal(graphs.sampler(sampler.model, graph="off")(2, seeds=0))


def test_functions_without_weights_are_told_apart(graphs):
    def scaled(scale):
        return lambda x, t: scale * x

    def pull(scale):
        return lambda x, level, **cond: -scale * x

    first = graphs.sampler(scaled(0.5), guidance=pull(0.01))
    for changes in ({}, {"model": scaled(0.25)}, {"guidance": pull(0.02)}, {"denoised_fn": lambda x0: 0.9 * x0}):
        second = first.replace(**changes)
        for _ in range(2):
            assert second(2, seeds=0).equal(second.replace(graph="off")(2, seeds=0))
            assert first(2, seeds=0).equal(first.replace(graph="off")(2, seeds=0))


def test_a_function_that_is_gone_leaves_no_verdict_on_the_next_at_its_address(graphs):
    def model(scale, waits):
        return lambda x, t: scale * x if not waits or t.sum().item() > 0 else x

    first = graphs.sampler(lambda x, t: 0.5 * x, max_graphs=3)
    for number in range(20):
        with pytest.warns(RuntimeWarning, match="not permitted when stream is capturing"):
            first.replace(model=model(0.3, True))(2, seeds=0)
        before = first.stats().captures
        good = first.replace(model=model(0.01 * number, False))
        assert good(2, seeds=0).equal(good.replace(graph="off")(2, seeds=0))
        assert first.stats().captures == before + 1
