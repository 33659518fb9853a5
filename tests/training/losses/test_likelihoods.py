"""Gaussian likelihoods and divergences against closed forms, scipy and 50-digit arithmetic."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from fastdiff.training.losses import approx_standard_normal_cdf, discretized_gaussian_log_likelihood, normal_kl

from ...tolerances import BOUND, CLOSED_FORM, FLOAT32_LOSS, LIKELIHOOD

F64 = torch.float64
FLOOR = 65536e-12  # what the floor of the tanh form may add to a sum over as many bins


def values(bins: int) -> torch.Tensor:
    """Every value of data with so many, float64."""
    return torch.arange(bins, dtype=F64) * 2 / (bins - 1) - 1


def log_mass(x: float, mean: float, log_scale: float, bins: int = 256) -> float:
    """ln P(bin of x) with 50 digits."""
    with mpmath.workdps(50):
        low = -mpmath.inf if x == -1 else (mpmath.mpf(x) - mpmath.mpf(1) / (bins - 1) - mean) / mpmath.exp(log_scale)
        high = mpmath.inf if x == 1 else (mpmath.mpf(x) + mpmath.mpf(1) / (bins - 1) - mean) / mpmath.exp(log_scale)
        mirrored = low > 0  # ncdf near 1 would need as many digits as the tail has zeros
        low, high = (-high, -low) if mirrored else (low, high)
        return float(mpmath.log(mpmath.ncdf(high) - mpmath.ncdf(low)))


@pytest.mark.parametrize("mean", [-1.7, -0.93, 0.0, 0.4, 1.0])
@pytest.mark.parametrize("log_scale", [-6.0, -3.0, -0.5, 2.0])
def test_exact_likelihood(mean, log_scale):
    x = values(256)[[0, 1, 60, 128, 179, 254, 255]]
    got = discretized_gaussian_log_likelihood(
        x, means=torch.full_like(x, mean), log_scales=torch.full_like(x, log_scale), cdf="exact"
    )
    wanted = torch.tensor([log_mass(float(v), mean, log_scale) for v in x], dtype=F64)
    torch.testing.assert_close(got, wanted, rtol=LIKELIHOOD, atol=LIKELIHOOD)


def test_exact_likelihood_is_scipys_difference_of_cdfs():
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.integers(1, 255, (3, 50)) * 2 / 255 - 1)
    means, log_scales = x + torch.from_numpy(random.normal(0, 0.1, (3, 50))), torch.full_like(x, -1.5)
    normal = stats.norm(means.numpy(), np.exp(-1.5))
    wanted = np.log(normal.cdf(x.numpy() + 1 / 255) - normal.cdf(x.numpy() - 1 / 255))
    got = discretized_gaussian_log_likelihood(x, means=means, log_scales=log_scales, cdf="exact")
    np.testing.assert_allclose(got, wanted, rtol=LIKELIHOOD)


@pytest.mark.parametrize("cdf", ["tanh", "exact"])
@pytest.mark.parametrize("bins", [2, 17, 256, 65536])
def test_the_bins_hold_all_probability(cdf, bins):
    x = values(bins)
    for mean, log_scale in [(0.3, -1.0), (-1.2, 0.5), (0.99, -2.0)]:
        likelihood = discretized_gaussian_log_likelihood(
            x, means=torch.full_like(x, mean), log_scales=torch.full_like(x, log_scale), cdf=cdf, bins=bins
        )
        assert float(likelihood.exp().sum()) == pytest.approx(1, abs=FLOOR)  # tanh lifts what is below 1e-12


def test_the_tanh_form_is_the_approximate_cdf_in_the_same_bins():
    x = values(256)
    means, log_scales = torch.full_like(x, 0.2), torch.full_like(x, -2.0)
    got = discretized_gaussian_log_likelihood(x, means=means, log_scales=log_scales)
    edges = ((torch.arange(1, 256, dtype=F64) * 2 - 1) / 255 - 1 - 0.2) * np.exp(2.0)
    below = torch.cat([torch.zeros(1), approx_standard_normal_cdf(edges), torch.ones(1)])
    torch.testing.assert_close(got, below.diff().clamp(min=1e-12).log(), rtol=LIKELIHOOD, atol=LIKELIHOOD)


def test_the_tanh_form_saturates_where_the_exact_one_does_not():
    x, mean = torch.tensor([0.2, -1.0, 1.0], dtype=F64), torch.tensor([0.9, 0.9, -0.9], dtype=F64)
    log_scales = torch.full_like(x, -4.0)
    for cdf, saturated in (("tanh", True), ("exact", False)):
        means = mean.clone().requires_grad_()
        likelihood = discretized_gaussian_log_likelihood(x, means=means, log_scales=log_scales, cdf=cdf)
        likelihood.sum().backward()
        if saturated:
            assert torch.allclose(likelihood, torch.tensor(1e-12, dtype=F64).log()) and not means.grad.any()
        else:
            wanted = torch.tensor([log_mass(float(v), float(m), -4.0) for v, m in zip(x, mean)], dtype=F64)
            torch.testing.assert_close(likelihood, wanted, rtol=LIKELIHOOD, atol=0)
            assert (likelihood < -300).all() and torch.equal(means.grad.sign(), (x - mean).sign())


def test_gradients_of_the_exact_form():
    x = values(256)[[0, 1, 100, 254, 255]]
    means = torch.tensor([-0.9, 3.0, -0.2, 0.0, 1.1], dtype=F64, requires_grad=True)
    log_scales = torch.tensor([-3.0, -1.0, -5.0, 0.0, -2.0], dtype=F64, requires_grad=True)

    def function(means: torch.Tensor, log_scales: torch.Tensor) -> torch.Tensor:
        return discretized_gaussian_log_likelihood(x, means=means, log_scales=log_scales, cdf="exact")

    assert torch.autograd.gradcheck(function, (means, log_scales))


def test_float32_stays_close():
    x = values(256).repeat(4, 1)
    means, log_scales = 0.3 * x, torch.tensor([[-5.0], [-2.5], [-1.0], [0.0]], dtype=F64).expand_as(x)
    exact = discretized_gaussian_log_likelihood(x, means=means, log_scales=log_scales, cdf="exact")
    inputs = {"means": means.float(), "log_scales": log_scales.float()}
    single = discretized_gaussian_log_likelihood(x.float(), cdf="exact", **inputs)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=FLOAT32_LOSS, atol=FLOAT32_LOSS)


def test_approximate_cdf():
    x = torch.linspace(-8, 8, 4001, dtype=F64)
    got = approx_standard_normal_cdf(x)
    assert float((got - torch.special.ndtr(x)).abs().max()) < 3e-4
    assert (got.diff() >= 0).all() and torch.allclose(got + got.flip(0), torch.ones_like(got), atol=CLOSED_FORM)


def test_normal_kl():
    generator = torch.Generator().manual_seed(3)
    mean1, logvar1, mean2, logvar2 = (torch.randn(5, 7, generator=generator, dtype=F64) for _ in range(4))
    first, second = (
        torch.distributions.Normal(mean, (logvar / 2).exp()) for mean, logvar in ((mean1, logvar1), (mean2, logvar2))
    )
    wanted = torch.distributions.kl_divergence(first, second)
    torch.testing.assert_close(normal_kl(mean1, logvar1, mean2, logvar2), wanted, rtol=BOUND, atol=CLOSED_FORM)
    standard = torch.distributions.kl_divergence(first, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(normal_kl(mean1, logvar1, 0.0, 0.0), standard, rtol=BOUND, atol=CLOSED_FORM)
    assert not normal_kl(mean1, logvar1, mean1, logvar1).any()


def test_normal_kl_of_nearly_equal_variances_keeps_its_digits():
    ratio = torch.tensor([1e-5, -1e-6], dtype=F64)
    got = normal_kl(torch.zeros(2, dtype=F64), ratio, 0.0, 0.0)
    torch.testing.assert_close(got, ratio.square() / 4 + ratio**3 / 12, rtol=BOUND, atol=0)


def test_what_is_refused():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="cdf must be one of tanh, exact, got 'erf'"):
        discretized_gaussian_log_likelihood(x, means=x, log_scales=x, cdf="erf")
    with pytest.raises(ValueError, match="bins must be an integer of at least 2, got 1"):
        discretized_gaussian_log_likelihood(x, means=x, log_scales=x, bins=1)
    with pytest.raises(ValueError, match=r"one shape, got \[2, 3\], \[3\], \[2, 3\]"):
        discretized_gaussian_log_likelihood(x, means=x[0], log_scales=x)
    empty = torch.zeros(0, 4)
    assert discretized_gaussian_log_likelihood(empty, means=empty, log_scales=empty, cdf="exact").shape == (0, 4)
