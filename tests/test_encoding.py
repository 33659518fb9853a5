"""From data to noise and back by every deterministic solver."""

from __future__ import annotations

import pytest
import torch

from fastdiff import Sampler
from fastdiff.solvers import FACTS, SOLVERS, Driver

from .conftest import GaussianModel
from .tolerances import CLOSED_FORM

DATA = torch.linspace(-1.0, 1.0, 24, dtype=torch.float64).reshape(2, 3, 4)
OTHERS = {"ddim_inversion", "langevin", "mala", "dpm_fast", "time_shift"}  # that do not go from level to level


def deterministic() -> list[str]:
    return [
        name
        for name, solver in SOLVERS.items()
        if not isinstance(solver, Driver) and not FACTS[name].stochastic and name not in OTHERS
    ]


def sampler_of(name: str, steps: int) -> Sampler:
    """On VP with a network of x_0 where a solver asks for timesteps, else on EDM."""
    gaussian = GaussianModel()
    try:
        return Sampler(gaussian.denoise, solver=name, steps=steps, dtype=torch.float64)
    except ValueError:
        betas = Sampler(gaussian.denoise, process="vp", solver="ddim", steps=2).process

        def network(x, t):
            abar = torch.from_numpy(betas.alphas_cumprod)[t.long()].reshape(-1, 1, 1)
            return gaussian.denoise(x / abar.sqrt(), ((1 - abar) / abar).sqrt())

        return Sampler(network, process="vp", solver=name, steps=steps, dtype=torch.float64)


@pytest.mark.parametrize("name", deterministic())
def test_encoded_data_are_decoded(name):
    errors = []
    for steps in (25, 100):
        sampler = sampler_of(name, steps)
        errors.append(float((sampler(DATA.shape, x_init=sampler.encode(DATA)) - DATA).abs().max()))
    assert errors[1] < 0.1 and errors[1] < errors[0] / 3, errors


def test_the_noise_is_that_of_the_closed_form_flow(gaussian):
    sampler = Sampler(gaussian.denoise, solver="heun", steps=400, dtype=torch.float64)
    top, bottom = sampler.levels[0].sigma, sampler.levels[-2].sigma
    want = gaussian.ode(DATA, bottom, top)
    assert (sampler.encode(DATA) - want).abs().max() <= 1e-4 * want.abs().max()


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m"])
def test_compiled_and_readable_agree(gaussian, backend, device, solver):
    scales = [1.0, 1.01, 1.02, 1.03]
    options = {"solver": solver, "steps": 4, "dtype": torch.float64, "epsilon_scale": scales}
    z = Sampler(gaussian.denoise, backend=backend, **options).encode(DATA)
    want = Sampler(gaussian.denoise, compiled=False, **options).encode(DATA)
    assert (z - want).abs().max() <= CLOSED_FORM * want.abs().max()


def test_labels_and_cond_reach_the_network():
    def network(x, t, labels, bias):
        return 0.5 * x + labels.to(x.dtype).reshape(-1, 1, 1) + bias

    sampler = Sampler(network, solver="euler", steps=5, dtype=torch.float64)
    z = sampler.encode(DATA, labels=[1, 2], cond={"bias": 0.5})
    assert not z.equal(sampler.encode(DATA, labels=[1, 1], cond={"bias": 0.5}))


@pytest.mark.parametrize(
    "solver, options, words",
    [
        ("euler_ancestral", {}, "solver must be deterministic to encode, and 'euler_ancestral' draws noise"),
        ("heun", {"S_churn": 10.0}, "solver must be deterministic to encode, and 'heun' draws noise"),
        ("euler_ancestral", {"noise": "brownian"}, "solver must be deterministic to encode"),
        ("dpm_fast", {"steps": 6}, "solver must make steps from level to level to encode, got 'dpm_fast'"),
        ("ddim", {"eta": 0.5}, "solver must be deterministic to encode, and 'ddim' draws noise"),
        ("ddim_inversion", {}, "solver must make steps from level to level to encode, got 'ddim_inversion'"),
        (
            "time_shift",
            {"process": "vp", "steps": 50},
            "solver must make steps from level to level .* got 'time_shift'",
        ),
        ("euler", {"sigmas": [1.0, 0.0]}, "steps must give at least 2 noisy levels to encode"),
    ],
)
def test_refusals(gaussian, solver, options, words):
    options = options if "sigmas" in options else {"steps": 5} | options
    with pytest.raises(ValueError, match=words):
        Sampler(gaussian.denoise, solver=solver, **options).encode(DATA)
