"""score-SDE's losses against their definitions, and at the exact score."""

from __future__ import annotations

import pytest
import torch

from fastdiff.sde import VESDE, VPSDE, per_sample, score_fn, subVPSDE
from fastdiff.training.losses import sde_ddpm_loss, sde_loss, smld_loss

from ...tolerances import LOSS

SDES = {"vp": VPSDE(N=100), "subvp": subVPSDE(N=100), "ve": VESDE(N=100)}
TIMES = torch.tensor([1e-3, 0.1, 0.613, 1.0], dtype=torch.float64)
LABELS = torch.tensor([99, 0, 37, 80])


def draws(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 3, 5, dtype=torch.float64, generator=generator).to(dtype) for _ in range(3)]


def network(x, label, shift=0.0):
    return x.tanh() * (1 + label.to(x.dtype) / 1000)[:, None, None] + shift


def close(got, want, dtype=torch.float64):
    torch.testing.assert_close(got.double(), want.double(), rtol=LOSS[dtype], atol=LOSS[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("continuous", [True, False])
@pytest.mark.parametrize("likelihood_weighting", [True, False])
@pytest.mark.parametrize("reduce_mean", [True, False])
@pytest.mark.parametrize("name", SDES)
def test_continuous_loss(name, reduce_mean, likelihood_weighting, continuous, dtype):
    """In the terms of Song et al. 2021: lambda |s - grad log p(x_t | x_0)|^2, lambda = sigma^2 or g^2."""
    sde, (x0, z, xi) = SDES[name], draws(dtype)
    loss = sde_loss(
        network, x0, TIMES, z, sde, reduce_mean=reduce_mean, likelihood_weighting=likelihood_weighting,
        continuous=continuous, gamma=0.1, xi=xi, cond={"shift": 0.2},
    )  # fmt: skip
    assert loss.dtype == dtype
    x0, z, xi = x0.double(), z.double(), xi.double()
    alpha, sigma = per_sample(sde.alpha(TIMES), z), per_sample(sde.sigma(TIMES), z)
    x = alpha * x0 + sigma * (z + 0.1 * xi)
    score = score_fn(network, sde, continuous)(x, TIMES, shift=0.2)
    weight = sde.diffusion(TIMES).square() if likelihood_weighting else sde.sigma(TIMES).square()
    squares = per_sample(weight, z) * (score + z / sigma).square()
    close(loss, squares.mean((1, 2)) if reduce_mean else 0.5 * squares.sum((1, 2)), dtype)


@pytest.mark.parametrize("name", SDES)
def test_no_error_at_the_score_of_a_point(name):
    """All data at 0: the score is -x / sigma^2."""
    sde, (x0, z, _) = SDES[name], draws()

    def exact(x, label):
        scaled = x / per_sample(sde.sigma(TIMES), x)
        return -scaled / per_sample(sde.sigma(TIMES), x) if name == "ve" else scaled

    for likelihood_weighting in (True, False):
        loss = sde_loss(exact, 0 * x0, TIMES, z, sde, likelihood_weighting=likelihood_weighting)
        close(loss, torch.zeros(4))


@pytest.mark.parametrize("reduce_mean", [True, False])
def test_chain_losses(reduce_mean):
    x0, z, xi = draws()
    options = {"reduce_mean": reduce_mean, "gamma": 0.1, "xi": xi, "cond": {"shift": 0.2}}

    def reduced(squares):
        return squares.mean((1, 2)) if reduce_mean else 0.5 * squares.sum((1, 2))

    sigma = SDES["ve"].discrete_sigmas.flip(0)[LABELS][:, None, None]
    score = network(x0 + sigma * (z + 0.1 * xi), LABELS, 0.2)
    close(smld_loss(network, x0, LABELS, z, SDES["ve"], **options), reduced(sigma**2 * (score + z / sigma).square()))

    abar = (1 - SDES["vp"].discrete_betas).cumprod(0)[LABELS][:, None, None]
    output = network(abar.sqrt() * x0 + (1 - abar).sqrt() * (z + 0.1 * xi), LABELS, 0.2)
    close(sde_ddpm_loss(network, x0, LABELS, z, SDES["vp"], **options), reduced((output - z).square()))


@pytest.mark.parametrize("name", SDES)
def test_gradient(name):
    """Of a network a x: the loss is a parabola in a."""
    sde, (x0, z, _) = SDES[name], draws()
    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    sde_loss(lambda x, _: a * x, x0, TIMES, z, sde).sum().backward()
    alpha, sigma = per_sample(sde.alpha(TIMES), z), per_sample(sde.sigma(TIMES), z)
    factor = sigma * per_sample(sde.score_factor(TIMES), z)
    x = alpha * x0 + sigma * z
    close(a.grad, (2 * factor * x * (factor * 0.7 * x + z)).mean((1, 2)).sum())
