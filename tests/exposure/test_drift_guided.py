"""The drift under guidance, clipping and solvers whose samples choose: what is the network's, and what is applied."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdiff import VP, Sampler, ops
from fastdiff.exposure.drift import measure_drift
from fastdiff.guidance import ClassifierFree, DiscriminatorGuidance
from fastdiff.guidance.discriminator import Boosting

from ..threads import one_thread  # noqa: F401

SEEDS = list(range(20))


def model(x, t, labels=None):
    shift = 0.0 if labels is None else labels[:, None].to(x.dtype)
    return shift + (x - shift) / (1 + t[:, None] ** 2)


def discriminator(y, tau, labels=None):
    return (y * torch.tensor([1.0, -0.5], dtype=y.dtype)).sum(1) * (1 - tau)


def data():
    return torch.randn(20, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def make(**options):
    return Sampler(model, **{"solver": "euler", "steps": 5, "shape": (2,), "dtype": torch.float64} | options)


def test_a_gradient_moves_what_is_applied_and_not_what_is_predicted():
    plain = measure_drift(make(), data(), seeds=SEEDS, probe=0)
    calls = []

    def term(x, level, **cond):
        calls.append(level)
        return torch.full_like(x, 0.1)

    guided = measure_drift(make(guidance=term, guidance_scale=2.0), data(), seeds=SEEDS, probe=0)
    assert len(calls) == 5  # the noised data are predicted without guidance
    assert guided.eps_norm_sampling[0] == plain.eps_norm_sampling[0]
    np.testing.assert_allclose(guided.eps_norm_data, plain.eps_norm_data, rtol=1e-12)
    s = guided.sigma[0]
    z = ops.normal(torch.tensor(SEEDS), (20, 2)).double()
    applied = (s / (1 + s**2) * s * z - 2.0 * s * 0.1).norm(dim=1).mean()  # x_0 += w sigma^2 g
    assert guided.eps_norm_applied[0] == pytest.approx(float(applied), rel=1e-9)
    assert guided.eps_norm_sampling[2] != pytest.approx(plain.eps_norm_sampling[2], rel=1e-3)


@pytest.mark.parametrize("batched", [False, True])
def test_classifier_free_guidance_pushes_what_is_applied(batched):
    labels = torch.ones(20, dtype=torch.int64)
    term = ClassifierFree(3.0, null={"labels": 0}, batched=batched)
    plain = measure_drift(make(), data(), seeds=SEEDS, labels=labels, probe=0)
    guided = measure_drift(make(guidance=term), data(), seeds=SEEDS, labels=labels, probe=0)
    assert guided.eps_norm_sampling[0] == pytest.approx(plain.eps_norm_sampling[0], rel=1e-12)
    np.testing.assert_allclose(guided.eps_norm_data, plain.eps_norm_data, rtol=1e-12)
    s, x = guided.sigma[0], guided.sigma[0] * ops.normal(torch.tensor(SEEDS), (20, 2)).double()
    null, own = x / (1 + s**2), 1 + (x - 1) / (1 + s**2)
    applied = ((x - null - 3 * (own - null)) / s).norm(dim=1).mean()
    assert guided.eps_norm_applied[0] == pytest.approx(float(applied), rel=1e-9)


def test_clipping_is_applied():
    clipped = measure_drift(make(clip_denoised=(-0.1, 0.1)), data(), seeds=SEEDS, probe=0)
    plain = measure_drift(make(), data(), seeds=SEEDS, probe=0)
    assert clipped.eps_norm_sampling[0] == pytest.approx(plain.eps_norm_sampling[0], rel=1e-12)
    assert (clipped.eps_norm_applied[-2] - clipped.eps_norm_sampling[-2]) > 1


def test_samples_that_choose_their_churn():
    """Boosting churns some samples of a step: each is compared with data at its own level, in any batch."""
    boosting = Boosting(period=2, churn=3.0, noise=1.0, factor=2.0, factor_period=2)
    term = DiscriminatorGuidance(discriminator, w_1st=2.0, boosting=boosting)
    sampler = make(guidance=term, solver="heun", steps=6)
    tables = [measure_drift(sampler, data(), seeds=SEEDS, batch=batch, probe=2) for batch in (20, 3)]
    for name, column in tables[0].columns().items():
        np.testing.assert_allclose(tables[1].columns()[name], column, rtol=1e-9, atol=1e-12, err_msg=name)
    levels = sampler.levels.sigmas[:-1]
    raised = tables[0].sigma[:-1] / levels
    assert raised[0] == 1
    assert ((raised > 1) & (raised < 1.4)).any()  # some samples were churned, by 1 + (sqrt(2) - 1), and others not
    final = sampler(20, seeds=SEEDS)
    assert tables[0].variance_sampling[-1] == pytest.approx(float(final.var(0).mean()), rel=1e-9)


@pytest.mark.parametrize("solver", ["euler", "heun", "ddim"])
def test_the_run_is_the_samplers(solver):
    """The final row is the variance of what the sampler draws."""
    options = {"S_churn": 2.0} if solver != "ddim" else {"eta": 0.7}
    sampler = make(solver=solver, epsilon_scale=1.02, **options)
    drift = measure_drift(sampler, data(), seeds=SEEDS, probe=0)
    assert drift.variance_sampling[-1] == pytest.approx(float(sampler(20, seeds=SEEDS).var(0).mean()), rel=1e-9)


@pytest.mark.parametrize("solver", ["ddpm", "time_shift", "s_pndm", "f_pndm"])
def test_solvers_of_a_discrete_chain(solver):
    """Also those with several evaluations in a step, and those whose samples choose the level of the next."""
    process = VP.linear(1000)
    abar = torch.tensor(process.alphas_cumprod)

    def eps(x, t):
        a = abar[t.long()].view(-1, 1)
        return (1 - a).sqrt() * x / (0.36 * a + 1 - a)

    options = {"window": 40, "cutoff": 100} if solver == "time_shift" else {}
    sampler = Sampler(
        eps, process=process, prediction="eps", solver=solver, steps=10, shape=(16,), dtype=torch.float64, **options
    )
    x0 = 0.6 * torch.randn(12, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tables = [measure_drift(sampler, x0, batch=batch, probe=0) for batch in (12, 5)]
    for name, column in tables[0].columns().items():
        np.testing.assert_allclose(tables[1].columns()[name], column, rtol=1e-9, atol=1e-12, err_msg=name)
    final = sampler(12, seeds=0)
    assert tables[0].variance_sampling[-1] == pytest.approx(float(final.var(0).mean()), rel=1e-9)
    assert tables[0].time[0] == 999
