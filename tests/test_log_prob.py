"""Log-probabilities of steps: against densities and gradients written independently of the library."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from fastdiff import Sampler, ops
from fastdiff.guidance import DiscriminatorGuidance

from .tolerances import CLOSED_FORM, FLOAT32_LOG_PROB, LOG_PROB

SHAPE = (3, 4)
DTYPE = torch.float64


class Network(nn.Module):
    def __init__(self, variance: bool = False, dtype: torch.dtype = DTYPE):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8 if variance else 4)).to(dtype)

    def forward(self, x, t, labels=None):
        shift = 0 if labels is None else 0.1 * labels.to(x.dtype)[:, None]
        return self.layers(x) + 0.001 * t.to(x.dtype)[:, None] + shift


def ddpm_density(sampler: Sampler, network: Network, states: torch.Tensor, variance: str) -> torch.Tensor:
    """Ho et al. 2020, Eqs. 6 and 7, with the variances of Nichol & Dhariwal 2021, Eq. 15; eps prediction."""
    abars = [level.alpha**2 for level in sampler.levels]
    times, rows = [level.time for level in sampler.levels], []
    for i, (x, y) in enumerate(pairwise(states)):
        abar, prev = abars[i], abars[i + 1]
        if prev == 1.0:
            rows.append(torch.zeros(len(x), dtype=DTYPE))
            continue
        beta = 1 - abar / prev
        output = network(x, torch.full((len(x),), times[i]))
        eps, v = output[:, :4], output[:, 4:]
        x0 = (x - math.sqrt(1 - abar) * eps) / math.sqrt(abar)
        mean = (beta * math.sqrt(prev) * x0 + (1 - prev) * math.sqrt(1 - beta) * x) / (1 - abar)
        small, large = math.log(beta * (1 - prev) / (1 - abar)), math.log(beta)
        log_variance = {"fixed_small": small, "fixed_large": large}.get(variance)
        if log_variance is None:
            log_variance = (v + 1) / 2 * large + (1 - v) / 2 * small
        std = torch.exp(torch.as_tensor(log_variance, dtype=DTYPE) / 2)
        rows.append(Normal(mean, std).log_prob(y).sum(1))
    return torch.stack(rows)


def ancestral_density(sampler: Sampler, network: Network, states: torch.Tensor) -> torch.Tensor:
    """Ancestral Euler in VE terms: sigma_up^2 = t^2 (s^2 - t^2) / s^2, sigma_down^2 = t^2 - sigma_up^2."""
    sigmas, rows = [level.sigma for level in sampler.levels], []
    for x, y, s, t in zip(states, states[1:], sigmas, sigmas[1:], strict=False):
        if t == 0:
            rows.append(torch.zeros(len(x), dtype=DTYPE))
            continue
        up = math.sqrt(t**2 * (s**2 - t**2) / s**2)
        down = math.sqrt(t**2 - up**2)
        d = (x - network(x, torch.full((len(x),), s, dtype=DTYPE))) / s
        rows.append(Normal(x + (down - s) * d, up).log_prob(y).sum(1))
    return torch.stack(rows)


def gradients(value: torch.Tensor, network: Network) -> list[torch.Tensor]:
    weights = torch.linspace(0.5, 1.5, value.numel(), dtype=DTYPE).reshape(value.shape)
    return list(torch.autograd.grad((weights * value).sum(), list(network.parameters()), retain_graph=True))


def agree(got: torch.Tensor, want: torch.Tensor, network: Network) -> None:
    assert got.shape == want.shape and got.dtype == torch.float64
    assert (got - want).abs().max() <= LOG_PROB * want.abs().max()
    for a, b in zip(gradients(got, network), gradients(want, network), strict=True):
        assert (a - b).abs().max() <= LOG_PROB * b.abs().max()


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("checkpoint", [True, False])
def test_ddpm_against_its_own_density(backend, device, variance, checkpoint):
    network = Network(variance == "learned_range")
    options = {"process": "vp", "prediction": "eps", "steps": 6, "dtype": DTYPE, "backend": backend}
    sampler = Sampler(network, solver="ddpm", variance=variance, **options)
    _, states = sampler(SHAPE, seeds=1, return_trajectory=True)
    want = ddpm_density(sampler, network, states, variance)
    agree(sampler.log_prob(states, checkpoint=checkpoint), want, network)
    if variance == "fixed_small":
        same = Sampler(network, solver="ddim", eta=1.0, **options)
        agree(same.log_prob(states), want, network)


def test_ancestral_euler_against_its_own_density(backend, device):
    network = Network()
    sampler = Sampler(network, solver="euler_ancestral", steps=6, dtype=DTYPE, backend=backend)
    _, states = sampler(SHAPE, seeds=1, return_trajectory=True)
    agree(sampler.log_prob(states), ancestral_density(sampler, network, states), network)


SOLVERS = [
    ("euler_ancestral", {}),
    ("ddim", {"process": "vp", "eta": 0.7}),
    ("ddpm", {"process": "vp", "clip_denoised": True}),
    ("dpm_2_ancestral", {}),
    ("dpmpp_2s_ancestral", {}),
    ("dpmpp_2m_sde", {}),
    ("dpmpp_3m_sde", {}),
    ("dpmpp_2m_sde", {"noise": "brownian"}),
]


@pytest.mark.parametrize("solver, options", SOLVERS)
def test_a_call_returns_what_its_trajectory_gives(backend, device, solver, options):
    """By the draws themselves, whatever history the means are made of."""
    sampler = Sampler(Network(), solver=solver, steps=6, dtype=DTYPE, backend=backend, **options)
    x, states, given = sampler(SHAPE, seeds=[1, 7, 2**63], return_trajectory=True, return_log_prob=True)
    assert (x - sampler(SHAPE, seeds=[1, 7, 2**63])).abs().max() <= CLOSED_FORM and given.shape == (6, 3)
    found = sampler.log_prob(states).detach()
    assert (found - given).abs().max() <= LOG_PROB * given.abs().max()
    assert (found[:5] != 0).all() and (found[5] == 0).all()
    if "noise" in options:  # is made of the seeds alone
        return
    seeds = torch.tensor([1, 7, -(2**63)])
    _, same = sampler(SHAPE, noise=lambda k, step: ops.normal(seeds, SHAPE, k, DTYPE), return_log_prob=True)
    assert (same - given).abs().max() <= LOG_PROB * given.abs().max()


def test_chosen_steps_evaluate_only_what_they_need():
    calls = []
    network = Network()

    def counted(x, t):
        calls.append(float(t[0]))
        return network(x, t)

    sampler = Sampler(counted, solver="dpmpp_2m_sde", steps=6, dtype=DTYPE)
    _, states = sampler(SHAPE, seeds=1, return_trajectory=True)
    sigmas = [level.sigma for level in sampler.levels]
    calls.clear()
    everything = sampler.log_prob(states, checkpoint=False)
    assert calls == sigmas[:5], "the last step draws nothing, so nothing is asked"
    calls.clear()
    two = sampler.log_prob(states, steps=[4, 2], checkpoint=False)
    assert calls == sigmas[1:5], "second order: a step and the one before"
    assert two.equal(everything[[4, 2]])


def test_a_run_from_an_image_and_with_labels():
    sampler = Sampler(Network(), solver="euler_ancestral", steps=6, dtype=DTYPE)
    image = torch.linspace(-1.0, 1.0, 12, dtype=DTYPE).reshape(SHAPE)
    options = {"seeds": 1, "labels": [0, 1, 2], "return_trajectory": True, "return_log_prob": True}
    _, states, given = sampler(SHAPE, image=image, start=2, **options)
    found = sampler.log_prob(states, start=2, labels=[0, 1, 2])
    assert found.shape == (4, 3) and (found - given).abs().max() <= LOG_PROB * given.abs().max()
    assert not found.equal(sampler.log_prob(states, start=2, labels=[0, 0, 0]))
    assert sampler.log_prob(states, start=2, steps=[3], labels=[0, 1, 2]).equal(found[1:2])


def test_guided_steps_have_the_guided_mean():
    judge = nn.Linear(4, 1, dtype=DTYPE)
    term = DiscriminatorGuidance(lambda y, tau, labels: judge(y), 1.5)
    sampler = Sampler(Network(), solver="euler_ancestral", steps=6, dtype=DTYPE, guidance=term)
    _, states, given = sampler(SHAPE, seeds=1, return_trajectory=True, return_log_prob=True)
    assert (sampler.log_prob(states) - given).abs().max() <= LOG_PROB * given.abs().max()


def test_ratios_of_two_models_have_mean_one():
    """E over steps drawn from p of q / p is 1: densities are normalised, and belong to the states they are given."""
    batch = 20_000
    old = Sampler(lambda x, t: 0.5 * x, solver="euler_ancestral", steps=4, dtype=DTYPE, sigma_min=0.3, sigma_max=3.0)
    new = old.replace(model=lambda x, t: 0.45 * x + 0.05)
    _, states, before = old((batch, 1), seeds=0, return_trajectory=True, return_log_prob=True)
    ratio = torch.exp(new.log_prob(states) - before)
    error = ratio.std(1) / math.sqrt(batch)
    assert ((ratio.mean(1) - 1).abs() <= 5 * error).all() and (ratio[:3].std(1) > 0).all()


def test_float32_states_have_float64_densities():
    network, double = Network(dtype=torch.float32), Network()
    double.load_state_dict(network.state_dict())
    options = {"solver": "euler_ancestral", "steps": 6}
    _, states = Sampler(network, **options)(SHAPE, seeds=1, return_trajectory=True)
    got = Sampler(network, **options).log_prob(states)
    want = Sampler(double, dtype=DTYPE, **options).log_prob(states.double())
    assert got.dtype == torch.float64 and (got - want).abs().max() <= FLOAT32_LOG_PROB * want.abs().max()


@pytest.mark.parametrize(
    "solver, options, words",
    [
        ("heun", {}, "solver 'heun' draws no noise"),
        ("heun", {"S_churn": 10.0}, "step 0 calls the network on noise drawn in the same step"),
        ("dpmpp_sde", {}, "step 0 calls the network on noise drawn in the same step"),
        ("dpm_adaptive", {}, "it chooses its steps on the way"),
        ("time_shift", {"process": "vp", "eta": 1.0, "steps": 6}, "scales its noise by what samples hold"),
    ],
)
def test_solvers_without_densities_are_refused(solver, options, words):
    sampler = Sampler(Network(), solver=solver, **{"steps": 6, "dtype": DTYPE} | options)
    with pytest.raises(ValueError, match=words):
        sampler.log_prob(torch.zeros(7, *SHAPE, dtype=DTYPE))
    with pytest.raises(ValueError, match=words):
        sampler(SHAPE, seeds=1, return_log_prob=True)


def test_noise_of_an_earlier_step_is_refused():
    def late(denoise, x, levels, noise):
        z = 0
        for level, following in pairwise(levels):
            x = denoise(x, level) + following.sigma * z
            z = noise()
            x = x + following.sigma * z
            yield x

    with pytest.raises(ValueError, match="step 1 draws its noise elsewhere than in its own step's last sum"):
        Sampler(Network(), solver=late, steps=6, dtype=DTYPE).log_prob(torch.zeros(7, *SHAPE, dtype=DTYPE))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"trajectory": torch.zeros(6, *SHAPE)}, "trajectory must hold 7 states, got 6"),
        ({"trajectory": torch.zeros(7)}, "trajectory must be a floating tensor"),
        ({"trajectory": torch.zeros(7, *SHAPE), "steps": [5]}, r"steps must be of \[0, 1, 2, 3, 4\], .* got 5"),
        ({"trajectory": torch.zeros(7, *SHAPE), "steps": [-1]}, "steps must be an integer of at least 0, got -1"),
        ({"trajectory": torch.zeros(7, *SHAPE), "start": 6}, "start must be below the number of steps, 6, got 6"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments_are_refused(arguments, words):
    sampler = Sampler(Network(), solver="euler_ancestral", steps=6, dtype=DTYPE)
    with pytest.raises(ValueError, match=words):
        sampler.log_prob(**arguments)


def test_what_a_call_cannot_return():
    learned = Sampler(Network(True), process="vp", solver="ddpm", variance="learned_range", steps=6, dtype=DTYPE)
    with pytest.raises(ValueError, match="return_log_prob must be False with a learned variance"):
        learned(SHAPE, seeds=1, return_log_prob=True)
    sampler = Sampler(Network(), solver="euler_ancestral", steps=6, dtype=DTYPE)
    with pytest.raises(ValueError, match="return_log_prob must be False with a mask"):
        sampler(SHAPE, image=torch.zeros(SHAPE), mask=torch.ones(4), return_log_prob=True)
