"""Langevin dynamics, plain and with a Metropolis test, on densities that are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal

from fastdiff import EDM, Sampler
from fastdiff.energy import EnergyScore, OneLevel
from fastdiff.solvers.langevin import Metropolis
from tests.solvers.linear import sample_moments
from tests.tolerances import SMALL_SIGMA

LEVEL = {"process": OneLevel(), "prediction": "score", "dtype": torch.float64}


def wells(x):
    """-ln of N(-1, 1/4) + N(1, 1/4) in each dimension; E[x^2] is 5/4."""
    return (2 * (x**2 + 1) - torch.nn.functional.softplus(8 * x) + 4 * x).flatten(1).sum(1)


def test_langevin_on_a_gaussian_is_the_autoregression_it_must_be():
    """x' = (1 - e / v) x + sqrt(2 e) z for N(0, v)."""
    v, e, steps = 0.5, 0.1, 30
    made = Sampler(lambda x, t: -x / v, solver="langevin", step_size=e, steps=steps, **LEVEL)
    mean, std = sample_moments(made, 2.0, 0.3)
    carry = 1 - e / v
    assert mean == pytest.approx(2.0 * carry**steps)
    assert std**2 == pytest.approx(carry ** (2 * steps) * 0.09 + 2 * e * (1 - carry ** (2 * steps)) / (1 - carry**2))


def test_langevin_keeps_a_diffusion_model_s_level():
    """Any prediction at one level: the data N(0, 1) at sigma = 2 are N(0, 5), and x' = (1 - e / 5) x + sqrt(2 e) z."""
    made = Sampler(
        lambda x, t: x / (1 + t.reshape(-1, 1) ** 2),
        process=OneLevel(2.0),
        solver="langevin",
        step_size=0.5,
        steps=9,
        dtype=torch.float64,
    )
    _, std = sample_moments(made, 0.0, 2.0)
    assert std**2 == pytest.approx(0.9**18 * 4 + (1 - 0.9**18) / (1 - 0.9**2))


def test_metropolis_accepts_as_it_should():
    g = torch.Generator().manual_seed(0)
    x, y, s_x, s_y = (torch.randn(200, 3, generator=g, dtype=torch.float64) for _ in range(4))
    z, e = torch.randn(200, 3, generator=g, dtype=torch.float64), 0.4
    there = Normal(x + e * s_x, math.sqrt(2 * e)).log_prob(y).sum(1)
    back = Normal(y + e * s_y, math.sqrt(2 * e)).log_prob(x).sum(1)
    chance = (wells(x) - wells(y) + back - there).exp()
    squares = torch.stack([x - y - e * s_y, (y - x - e * s_x) / math.sqrt(2 * e)]).square().sum(-1)
    accepted = Metropolis(wells)(squares, torch.tensor([e], dtype=torch.float64), x, y, z)
    assert torch.equal(accepted, (Normal(0.0, 1.0).cdf(z[:, 0]) < chance).double()[None])
    assert 20 < accepted.sum() < 180
    for states in ((x, y, z), (x, y, z.t().contiguous().t())):
        assert Metropolis(wells).small(squares.tolist(), [e], *states) == accepted.tolist()


def test_mala_samples_the_energy_where_langevin_is_biased():
    options = {"step_size": 0.3, "steps": 50, **LEVEL}
    network = EnergyScore(wells)
    found = {
        name: Sampler(network, solver=name, **options, **extra)((4000, 1), seeds=0).square().mean().item()
        for name, extra in {"mala": {"energy": wells}, "langevin": {}}.items()
    }
    noise = math.sqrt(2 * 0.0625 + 4 * 0.25) / math.sqrt(4000)  # of the mean of x^2
    assert abs(found["mala"] - 1.25) < 4 * noise
    assert abs(found["langevin"] - 1.25) > 8 * noise


def test_mala_routes_agree():
    options = {"step_size": 0.2, "steps": 12, "solver": "mala", "energy": wells, **LEVEL}
    compiled, readable = (Sampler(EnergyScore(wells), compiled=c, **options) for c in (True, False))
    torch.testing.assert_close(compiled((6, 2), seeds=0), readable((6, 2), seeds=0), rtol=SMALL_SIGMA, atol=SMALL_SIGMA)
    plan = compiled.plan()
    assert len([event for event in plan.items if not hasattr(event, "table")]) >= 2 * 12  # a network call and a choice
    assert max(len(launch.inputs) for launch in plan.launches) <= 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "langevin", "process": EDM()}, "process must stay at one noise level for solver 'langevin'"),
        ({"solver": "mala", "energy": wells, "process": EDM()}, "process must stay at one noise level"),
        ({"solver": "langevin", "step_size": 0.0}, "step_size must be positive, got 0.0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(EnergyScore(wells), **{**LEVEL, "steps": 4, **options})
