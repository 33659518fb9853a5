"""Numbers measured from norms of states: Langevin's step size, without reading anything back."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import fastdiff
from fastdiff import Sampler
from fastdiff.plan import Launch
from fastdiff.symbols import NotLinearError

from .tolerances import CLOSED_FORM, FLOAT32_STATE


def model(x, t):
    return 0.5 * x.tanh()


def step_size(squares, told):
    """Song et al. 2021, Algorithm 4, per sample: eps = 2 (snr |z| / |s|)^2 and sqrt(2 eps)."""
    eps = 2 * told[0] ** 2 * squares[0] / squares[1]
    return torch.stack([eps, (2 * eps).sqrt()])


def of_the_batch(squares, told):
    norms = squares.sqrt().mean(1, keepdim=True).expand_as(squares)
    return step_size(norms.square(), told)


def langevin(denoise, x, levels, noise, *, function=step_size, snr=0.16):
    for level, following in pairwise(levels):
        score, z = (denoise(x, level) - x) / level.sigma**2, noise()
        eps, root = denoise.measure(function, [z, score], 2, [snr])
        x = x + eps * score + root * z
        x0 = denoise(x, level)
        x = x0 + (following.sigma / level.sigma) * (x - x0)
        yield x


OPTIONS = {"steps": 4, "dtype": torch.float64, "sigma_min": 0.5, "sigma_max": 5.0}


def by_hand(x, sigmas, draws, mean=False):
    """The same on a tensor, in float64."""
    for k, (s, t) in enumerate(pairwise(sigmas)):
        score, z = (model(x, s) - x) / s**2, draws[k]
        norm = lambda v: v.flatten(1).norm(dim=1)  # noqa: E731
        a, b = norm(z), norm(score)
        ratio = (a.mean() / b.mean()).expand(len(x)) if mean else a / b
        eps = (2 * (0.16 * ratio) ** 2).reshape(-1, 1, 1)
        x = x + eps * score + (2 * eps).sqrt() * z
        x0 = model(x, s)
        x = x0 + t / s * (x - x0)
    return x


@pytest.mark.parametrize("how", [{"compiled": False}, {"backend": "reference"}, {}])
@pytest.mark.parametrize("mean", [False, True])
def test_steps_of_langevin(how, mean):
    sampler = Sampler(model, solver=langevin, function=of_the_batch if mean else step_size, **OPTIONS, **how)
    seeds = torch.arange(5)
    draws = [fastdiff.ops.normal(seeds, (5, 3, 7), k, torch.float64) for k in range(5)]
    expected = by_hand(sampler.levels[0].sigma * draws[0], sampler.levels.sigmas.tolist(), draws[1:], mean)
    torch.testing.assert_close(sampler((5, 3, 7), seeds=seeds), expected, rtol=CLOSED_FORM, atol=CLOSED_FORM)


def test_float32_state():
    exact = Sampler(model, solver=langevin, **OPTIONS)((6, 9), seeds=0)
    single = Sampler(model, solver=langevin, **{**OPTIONS, "dtype": torch.float32})((6, 9), seeds=0)
    assert (single - exact).abs().max() <= FLOAT32_STATE * exact.abs().max()


def test_one_launch_per_evaluation_beside_the_norms():
    plan = Sampler(model, solver=langevin, **OPTIONS).plan()
    fused = [launch for launch in plan.launches if not launch.squares]
    assert len(fused) == plan.evaluations + 1
    assert sum(launch.measured for launch in fused) == OPTIONS["steps"]
    assert "measured" in str(plan) and "squares" in str(plan)


def test_a_sample_does_not_depend_on_its_batch():
    sampler = Sampler(model, solver=langevin, **OPTIONS)
    assert torch.equal(sampler((8, 5), seeds=3)[2:3], sampler((1, 5), seeds=5))


def test_no_samples():
    assert Sampler(model, solver=langevin, **OPTIONS)((0, 5), seeds=0).shape == (0, 5)


def test_noise_handed_in():
    sampler = Sampler(model, solver=langevin, **OPTIONS)
    given = sampler((2, 5), seeds=4, noise=lambda k, step: fastdiff.ops.normal(torch.tensor([4, 5]), (2, 5), k))
    torch.testing.assert_close(given, sampler((2, 5), seeds=4), rtol=CLOSED_FORM, atol=CLOSED_FORM)


def test_structure_names_the_function():
    plans = [Sampler(model, solver=langevin, function=f, **OPTIONS).plan() for f in (step_size, of_the_batch)]
    assert plans[0].structure() != plans[1].structure()
    assert plans[0].structure() == Sampler(model, solver=langevin, snr=0.3, **OPTIONS).plan().structure()


def test_two_measurements_in_one_value():
    def twice(denoise, x, levels, noise):
        x0 = denoise(x, levels[0])
        (a,) = denoise.measure(root, [x0])
        (b,) = denoise.measure(root, [x])
        x = (2 * a - a / 4 + 1) * x0 + (-b) * x
        yield x

    exact = Sampler(model, solver=twice, **OPTIONS, compiled=False)((3, 4), seeds=1)
    torch.testing.assert_close(Sampler(model, solver=twice, **OPTIONS)((3, 4), seeds=1), exact)


def root(squares, told):
    return squares.sqrt()


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda a, x: (a * a) * x, "product"),
        (lambda a, x: x / a, "measure its inverse"),
        (lambda a, x: (1 / a) * x, "quotient"),
        (lambda a, x: x if a > 0 else -x, "function of measured"),
    ],
)
def test_refused(use, message):
    def wrong(denoise, x, levels, noise):
        (a,) = denoise.measure(root, [denoise(x, levels[0])])
        x = use(a, x)
        yield x

    with pytest.raises(NotLinearError, match=message):
        Sampler(model, solver=wrong, **OPTIONS)


def test_only_noise_has_no_shape():
    def wrong(denoise, x, levels, noise):
        x0 = denoise(x, levels[0])
        (a,) = denoise.measure(root, [noise()])
        x = a * x0
        yield x

    with pytest.raises(NotImplementedError, match="more than noise"):
        Sampler(model, solver=wrong, **OPTIONS)


def test_a_function_of_the_wrong_shape():
    def wrong(denoise, x, levels, noise):
        x0 = denoise(x, levels[0])
        (a,) = denoise.measure(lambda squares, told: squares[0], [x0])
        x = a * x0
        yield x

    for how in ({"compiled": False}, {}):
        with pytest.raises(ValueError, match=r"measuring function must return a tensor of shape \[1, 3\], got \[3\]"):
            Sampler(model, solver=wrong, **OPTIONS, **how)((3, 2), seeds=0)


def test_squares_are_no_state():
    plan = Sampler(model, solver=langevin, **OPTIONS).plan()
    assert all(item.outputs[0].name == "squares" for item in plan.items if isinstance(item, Launch) and item.squares)
