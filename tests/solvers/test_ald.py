"""Annealed Langevin dynamics against its own lines, and on Gaussian data."""

from __future__ import annotations

import pytest
import torch

from fastdiff import VP, Sampler
from fastdiff.ncsn import NCSN
from tests.solvers.linear import sample_moments
from tests.tolerances import CLOSED_FORM, SMALL_SIGMA

SIGMAS = [2.0, 0.7, 0.2]


def of_gaussian(process, mean=0.3, std=0.5):
    """The score network of N(mean, std^2)."""
    sigmas = torch.from_numpy(process.sigmas)
    return lambda x, label: (mean - x) / (std**2 + sigmas[label].reshape(-1, 1) ** 2)


def test_the_algorithm():
    process, noises = NCSN(SIGMAS), torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    network = of_gaussian(process)
    x = start = torch.rand(2, 3, generator=torch.Generator().manual_seed(1)).double()
    for k, z in enumerate(noises):
        label = torch.full((2,), k // 2)
        e = 0.01 * (SIGMAS[k // 2] / SIGMAS[-1]) ** 2
        x = x + e * network(x, label) + (2 * e) ** 0.5 * z
    clean = x + SIGMAS[-1] ** 2 * network(x, label)
    for final, want in {False: x, True: clean}.items():
        made = Sampler(
            network, process=process, prediction="score", solver="ald", dtype=torch.float64,
            steps_each=2, step_size=0.01, final_denoise=final,
        )  # fmt: skip
        got = made(start.shape, x_init=start, noise=lambda draw, step: noises[draw - 1])
        torch.testing.assert_close(got, want, rtol=CLOSED_FORM, atol=CLOSED_FORM)


def test_one_launch_per_evaluation_however_many_steps():
    process = NCSN.geometric(3)
    plan = Sampler(of_gaussian(process), process=process, prediction="score", solver="ald", steps_each=20).plan()
    assert len(plan.launches) == 3 * 20 + 1 + 1
    assert max(len(launch.inputs) for launch in plan.launches) <= 2


def test_it_samples_the_data():
    process = NCSN.geometric(100, 5.0, 0.05)
    made = Sampler(
        of_gaussian(process), process=process, prediction="score", solver="ald",
        step_size=0.1 * 0.05**2, dtype=torch.float64,
    )  # fmt: skip
    mean, std = sample_moments(made, 0.0, 5.0)
    assert mean == pytest.approx(0.3, abs=0.01)
    assert std == pytest.approx(0.5, rel=0.1)


def test_in_ve_terms_every_process_is_the_same():
    levels = VP.cosine(1000).levels(5)
    scale = {level.time: level for level in levels[:-1]}

    def told_sigma(u, sigma):
        return u / (1 + sigma.reshape(-1, 1) ** 2)

    def told_step(x, t):
        level = scale[t[0].item()]
        return told_sigma(x / level.alpha, torch.full((len(x),), level.sigma_ve))

    options = {"solver": "ald", "steps_each": 2, "step_size": 1e-5, "dtype": torch.float64}
    start = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chain = Sampler(told_step, process=VP.cosine(1000), prediction="x0", steps=5, **options)
    plain = Sampler(told_sigma, process="ve", sigmas=levels.sigmas, **options)
    got = chain(start.shape, x_init=levels[0].alpha * start, seeds=0)
    torch.testing.assert_close(got, plain(start.shape, x_init=start, seeds=0), rtol=SMALL_SIGMA, atol=SMALL_SIGMA)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps_each": 0}, "steps_each must be an integer of at least 1, got 0"),
        ({"step_size": 0.0}, "step_size must be positive, got 0.0"),
        ({"n_steps": 3}, "solver 'ald' takes step_size, steps_each, final_denoise, got 'n_steps'"),
    ],
)
def test_refusals(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Sampler(lambda x, t: -x, process=NCSN.geometric(3), prediction="score", solver="ald", **options)
