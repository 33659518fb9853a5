"""Flow matching's process and those of the SDEs: levels, closed-form samples, refusals."""

from __future__ import annotations

import math

import pytest
import torch

from fastdiff import Sampler
from fastdiff.continuous import Flow, SDEProcess, process_of
from fastdiff.sde import VESDE, VPSDE, subVPSDE

MEAN, STD = 0.3, 0.7


def eps_of(x, alpha, sigma):
    """E[z | x] for x_0 of N(MEAN, STD^2)."""
    return sigma * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)


def velocity(x, t):
    t = t.reshape(-1, 1)
    eps = eps_of(x, 1 - t, t)
    x0 = MEAN + (1 - t) * STD**2 * (x - (1 - t) * MEAN) / ((1 - t) ** 2 * STD**2 + t**2)
    return eps - x0


def test_flow_sampling_converges_to_the_exact_map_from_pure_noise():
    """The flow of a Gaussian is linear: it ends at MEAN + STD z. Euler's error halves with the step."""
    z = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = []
    for steps in (40, 80):
        sampler = Sampler(velocity, process="flow", prediction="flow", solver="ddim", steps=steps, dtype=torch.float64)
        errors.append((sampler((50, 3), x_init=z) - (MEAN + STD * z)).abs().max().item())
    assert errors[1] < 0.05
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("sde", [VPSDE(), subVPSDE(), VESDE()], ids=lambda sde: sde.name)
def test_sde_sampling_has_the_data_s_moments(sde):
    """Heun on the probability-flow ODE from the prior: what the prior lacks at t = 1 is the only error left."""

    def output(x, label):
        t = label / 999 if sde.name != "ve" else (label / sde.sigma_min).log() / math.log(sde.sigma_max / sde.sigma_min)
        alpha, sigma = sde.alpha(t).reshape(-1, 1), sde.sigma(t).reshape(-1, 1)
        eps = eps_of(x, alpha, sigma)
        return eps if sde.name != "ve" else -eps / sigma

    prediction = "score" if sde.name == "ve" else "eps"
    sampler = Sampler(
        output, process=SDEProcess(sde), prediction=prediction, solver="heun", steps=200, dtype=torch.float64
    )
    x = sampler((4000, 1), seeds=0)
    assert x.mean().item() == pytest.approx(MEAN, abs=4 * STD / math.sqrt(4000) + 0.01)
    assert x.std().item() == pytest.approx(STD, rel=0.04)


@pytest.mark.parametrize("process", [Flow(), SDEProcess(VPSDE()), SDEProcess(subVPSDE()), SDEProcess(VESDE())])
def test_levels(process):
    levels = process.levels(5)
    assert levels.steps == 5 and levels[-1] == (1.0, 0.0, 0.0)
    assert all(a > b for a, b in zip(levels.sigmas, levels.sigmas[1:]))
    middle = levels[2]
    assert process.level_at_sigma(middle.sigma_ve) == pytest.approx(middle, rel=1e-9)
    assert process.level_at_sigma(levels[-2].sigma_ve).sigma == pytest.approx(levels[-2].sigma, rel=1e-9)
    times = process.levels(3, lambda n: [0.9, 0.5, 0.1])
    assert times[1] == process.levels_at([0.9, 0.5, 0.1, 0.0])[1] == process.level(0.5)


def test_levels_know_their_times():
    assert SDEProcess(VPSDE()).levels(3).times == pytest.approx([1.0, 0.5005, 0.001, 0.0])
    assert Flow().levels(4).times == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])


@pytest.mark.parametrize(("sde", "integers"), [(VPSDE(N=50), False), (subVPSDE(N=50), False), (VESDE(N=50), True)])
def test_a_chain_s_levels_are_those_that_its_network_knows(sde, integers):
    """Where score_sde's network of the chain predicts the noise, its score is -eps / sigma of the level."""
    chain, process = SDEProcess(sde, continuous=False), SDEProcess(sde)
    assert chain.integer_time == integers
    for t in (1.0, 0.613, 0.002):
        level, at = chain.level(t), torch.tensor([t], dtype=torch.float64)
        if sde.name == "subvp":
            assert level == process.level(t)
        elif sde.name == "vp":
            abar = sde.alphas_cumprod[int(t * 49)].item()
            assert level == pytest.approx((math.sqrt(abar), math.sqrt(1 - abar), 49 * t))
            assert -1 / level.sigma == pytest.approx(sde.score_factor(at, continuous=False).item())
        else:
            assert level == (1.0, sde.discrete_sigmas[49 - round((1 - t) * 49)].item(), round((1 - t) * 49))


def test_one_step_of_the_flow_is_the_mean_of_the_data():
    x = Sampler(velocity, process="flow", prediction="flow", solver="ddim", steps=1)((4, 2), seeds=0)
    assert torch.allclose(x, torch.full((4, 2), MEAN))


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"timesteps": [0.5, 0.7]}, "timesteps must be strictly decreasing times"),
        ({"timesteps": [1.5]}, r"times in \(0, 1\]"),
        ({"sigmas": [1.0, 0.5]}, "sigmas must be left out for process Flow"),
        ({"schedule": "karras"}, "schedule must be a function of steps"),
        ({"rho": 7.0}, "rho must be left out for process Flow"),
        ({"steps": 0}, "steps must be an integer of at least 1"),
        ({"process": "vp"}, "alpha \\+ sigma = 1"),
        ({"solver": "heun"}, "alpha > 0 at every level .* use solver 'ddim'"),
        ({"solver": "euler"}, "alpha > 0 at every level .* use solver 'ddim'"),
        ({"solver": "ddpm"}, r"alpha\^2 \+ sigma\^2 = 1"),
        ({"solver": "ddpm", "process": SDEProcess(subVPSDE()), "prediction": "eps"}, r"alpha\^2 \+ sigma\^2 = 1"),
    ],
)
def test_refuses(arguments, wanted):
    with pytest.raises(ValueError, match=wanted):
        Sampler(velocity, **{"process": "flow", "prediction": "flow", "solver": "ddim", **arguments})


def test_processes_are_described():
    vp = process_of({"name": "vp", "betas": "cosine", "T": 10, "rescale_timesteps": True})
    assert vp.T == 10 and vp.rescale_timesteps
    assert process_of({"name": "sde", "sde": "ve", "sigma_max": 9.0, "continuous": False}).sde.sigma_max == 9.0
    for wrong in ({}, {"name": "vp"}, {"name": "sde"}, {"name": "gan"}):
        with pytest.raises(ValueError, match="must be one of"):
            process_of(wrong)
