"""Parts of a run: a plan renewed with other numbers is the plan compiled of them, and is compiled once in a run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdiff import VP, Sampler
from fastdiff.calls import make_request
from fastdiff.compiler import compile_plan
from fastdiff.continuous import SDEProcess
from fastdiff.parts import Parts
from fastdiff.recompiling import Outline, Recipe
from fastdiff.sde import VPSDE
from tests.solvers.every import CHAIN, PLANNED, network, short_run

F64 = {"dtype": torch.float64}


def with_other_numbers(name):
    """The same steps with other numbers; Langevin's have none."""
    if name in CHAIN:
        return short_run(name, process=VP.linear(100))
    if name == "predictor_corrector":
        return short_run(name, process=SDEProcess(VPSDE(beta_max=15.0, N=100)))
    return short_run(name) if name in ("langevin", "mala") else short_run(name, sigma_max=20.0)


def same_plans(got, wanted):
    assert got.structure() == wanted.structure() and got.dead == wanted.dead and got.names == wanted.names
    for mine, theirs in zip(got.launches, wanted.launches):
        assert np.array_equal(mine.table, theirs.table) and mine.draws == theirs.draws
    numbers = [
        [number for item in plan.items if hasattr(item, "event") for number in item.event.numbers]
        for plan in (got, wanted)
    ]
    assert str(numbers[0]) == str(numbers[1])


@pytest.mark.parametrize("observe", [False, True])
@pytest.mark.parametrize("name", PLANNED)
def test_a_renewed_plan_is_the_compiled_one(name, observe):
    first, second = (s.trace(s.levels, observe=observe) for s in (short_run(name), with_other_numbers(name)))
    outlines = Outline(first), Outline(second)
    plan, recipe = Recipe.compile(first, outlines[0], True)
    same_plans(plan, compile_plan(first))
    if recipe is None:  # a norm of noise alone is taken in the shape of a tensor that its value does not name
        assert any(launch.squares for launch in plan.launches)
        return
    assert outlines[0].key == outlines[1].key
    assert recipe is not None and recipe.renew(second, outlines[1])
    same_plans(plan, compile_plan(second))


@pytest.mark.parametrize(
    "function",
    [
        lambda denoise, x, noise: [x * 1.0],
        lambda denoise, x, noise: [x * 0.5],
        lambda denoise, x, noise: [x * 0.5, x * 0.5],
        lambda denoise, x, noise: [x * 0.5, x * 0.25],
        lambda denoise, x, noise: [x * 0.5 + noise(1)],
        lambda denoise, x, noise: [x * 0.5 + noise(1) + noise(2)],
        lambda denoise, x, noise: [x * 0.5 + noise(2) + noise(1)],
        lambda denoise, x, noise: [denoise(x, denoise.levels[1]) * 1e-30 + x],
        lambda denoise, x, noise: [denoise(x, denoise.levels[1]) * 0.5 + x],
        lambda denoise, x, noise: [denoise.store(denoise(x, denoise.levels[2])), noise(3)],
    ],
)
@pytest.mark.parametrize("clip", [False, (-1.0, 1.0)])
def test_what_ran_before_changes_nothing(function, clip, backend, device):
    """A part after every other one, of the same structure or not, has the bits of one that runs first."""
    sampler = Sampler(network, sigmas=[2.0, 1.0, 0.5], clip_denoised=clip, backend=backend, device=device, **F64)
    request = make_request(sampler, torch.Size((3, 4)), seeds=5)
    x, others = torch.linspace(-2, 2, 12, **F64).view(3, 4).to(device), Parts(sampler, request)
    for factor, k in ((1.0, 7), (0.5, 1), (0.3, 2), (1e-30, 9), (0.7, 4)):
        others(x, lambda denoise, x, noise, f=factor, k=k: [x * f + noise(k), denoise(x, denoise.levels[0]) * f])
        others(x, lambda denoise, x, noise, f=factor, k=k: [denoise(x * f, denoise.levels[2]) + f * x])
        others(x, lambda denoise, x, noise, f=factor, k=k: [f * x + noise(k) + 0.1 * noise(10 - k)])
        others(x, lambda denoise, x, noise, f=factor: [f * x, 0.5 * x])
    got, wanted = others(x, function), Parts(sampler, request)(x, function)
    assert all(map(torch.equal, got, wanted)) and len(got) == len(wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_run_compiles_its_parts_once(dtype, monkeypatch):
    pytest.importorskip("torchdiffeq")
    compiled, compile_one = [], Recipe.compile
    monkeypatch.setattr(Recipe, "compile", lambda *arguments: compiled.append(1) or compile_one(*arguments))
    sampler = Sampler(network, solver="ode", sigmas=[20.0, 0.5], dtype=dtype)
    ran = sampler((2, 3), seeds=1)
    assert len(compiled) == 1 and ran.isfinite().all()


def test_times_told_before_stay_as_they_are():
    told = []
    sampler = Sampler(lambda x, t: told.append(t) or network(x, t), sigmas=[2.0, 1.0, 0.5], **F64)
    part = Parts(sampler, make_request(sampler, torch.Size((3, 4)), seeds=5))
    for level in sampler.levels[:3]:
        part(torch.ones(3, 4, **F64), lambda denoise, x, _, level=level: [denoise(x, level)])
    assert [t.tolist() for t in told] == [[level.time] * 3 for level in sampler.levels[:3]]
