"""The SDEs against their own differential equations, Gaussian data in closed form, and the conventions of networks."""

from __future__ import annotations

import pytest
import torch

from fastdiff.sde import SDES, VESDE, VPSDE, get_sde, per_sample, score_fn, subVPSDE

from .tolerances import CLOSED_FORM, FINE_CHAIN, LOSS, SDE_DERIVATIVE

TIMES = torch.tensor([1e-5, 1e-3, 0.1, 0.37, 0.5, 0.77, 1.0], dtype=torch.float64)
KINDS = [VPSDE(), VPSDE(0.3, 5.0), subVPSDE(), VESDE(), VESDE(0.1, 3.0)]
each_sde = pytest.mark.parametrize("sde", KINDS, ids=[f"{s.name}{i}" for i, s in enumerate(KINDS)])


def close(got, want, tolerance=CLOSED_FORM):
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def derivative(function, t):
    t = t.clone().requires_grad_()
    return torch.autograd.grad(function(t).sum(), t)[0]


@each_sde
def test_moments_solve_the_equation(sde):
    """Those of a linear SDE: alpha' = f alpha; (sigma^2)' = 2 f sigma^2 + g^2."""
    f, g = sde.drift(TIMES), sde.diffusion(TIMES)
    if sde.name != "ve":
        close(derivative(sde.alpha, TIMES), f * sde.alpha(TIMES))
    growth = derivative(lambda t: sde.sigma(t).square(), TIMES)
    close(growth, 2 * f * sde.sigma(TIMES).square() + g.square(), SDE_DERIVATIVE)
    start = torch.zeros(1)
    assert sde.alpha(start).item() == 1
    assert sde.sigma(start).item() == (sde.sigma_min if sde.name == "ve" else 0)
    end = sde.sigma(torch.ones(1)).item()
    assert end == pytest.approx(sde.prior_std, rel=1e-4 if sde.name == "ve" or sde.beta_max > 10 else 0.1)


@each_sde
def test_time_of_a_noise_level(sde):
    t = TIMES[1:]  # below, sigma / alpha itself is told to ten digits only
    close(sde.time(sde.sigma(t) / sde.alpha(t)), t, SDE_DERIVATIVE)


@each_sde
def test_the_ode_carries_a_gaussian(sde):
    """N(mu, s^2) data at a fixed quantile u: x(t) = alpha mu + sqrt(alpha^2 s^2 + sigma^2) u, exactly."""
    mu, s, u = 0.4, 0.7, -1.3

    def quantile(t):
        return sde.alpha(t) * mu + (sde.alpha(t).square() * s**2 + sde.sigma(t).square()).sqrt() * u

    x = quantile(TIMES)[:, None]
    variance = (sde.alpha(TIMES).square() * s**2 + sde.sigma(TIMES).square())[:, None]
    score = (sde.alpha(TIMES)[:, None] * mu - x) / variance
    drift, diffusion = sde.reverse(x, score, TIMES, probability_flow=True)
    close(drift[:, 0], derivative(quantile, TIMES), SDE_DERIVATIVE)
    assert not diffusion.any()
    drift, diffusion = sde.reverse(x, score, TIMES)
    close(drift, sde.drift(TIMES)[:, None] * x - sde.diffusion(TIMES).square()[:, None] * score)
    close(diffusion, sde.diffusion(TIMES))


@pytest.mark.parametrize("kind", [VPSDE, subVPSDE, VESDE])
def test_a_fine_chain_is_the_equation(kind):
    sde = kind(N=100_000)
    t = TIMES[2:]
    x, score = torch.full((5, 3), 0.8), torch.full((5, 3), -0.2)
    drift, diffusion = sde.reverse(x, score, t)
    step, noise = sde.reverse(x, score, t, discrete=True)
    assert drift.dtype == step.dtype == torch.float32
    close(step * sde.N, drift, FINE_CHAIN)
    close(noise * sde.N**0.5, diffusion, FINE_CHAIN)


def test_tables_of_a_chain():
    vp, ve = VPSDE(0.1, 20.0, 24), VESDE(0.01, 50.0, 12)
    close(vp.discrete_betas, torch.linspace(0.1, 20, 24, dtype=torch.float64) / 24)
    close(vp.alphas_cumprod[3], (1 - vp.discrete_betas[:4]).prod())
    ratios = ve.discrete_sigmas[1:] / ve.discrete_sigmas[:-1]
    close(ratios, torch.full((11,), 5000.0 ** (1 / 11), dtype=torch.float64))
    every = torch.arange(12, dtype=torch.float64) / 11 + 1e-9
    assert ve.step(every).tolist() == list(range(12))
    close(ve.discretize(every)[1].square().sum(), torch.tensor(2500.0, dtype=torch.float64))
    assert ve.table("discrete_sigmas", torch.device("cpu")) is ve.table("discrete_sigmas", torch.device("cpu"))


def test_networks_are_told_score_sde_labels():
    t = torch.tensor([1.0, 0.5, 1e-3])
    close(VPSDE().label(t), 999 * t.double())
    close(VPSDE(N=50).label(t, continuous=False), 49 * t.double())
    close(subVPSDE(N=50).label(t, continuous=False), 999 * t.double())
    close(VESDE().label(t), VESDE().sigma(t))
    counted = VESDE(N=11).label(t, continuous=False)
    assert counted.tolist() == [0, 5, 10]
    assert counted.dtype == torch.int64


@pytest.mark.parametrize("continuous", [True, False])
@each_sde
def test_score_of_a_network(sde, continuous):
    """A network of the noise of data at 0 (VP, sub-VP), or of its score (VE): the score is -x / sigma^2."""
    heard = []

    def network(x, label, shift):
        heard.append(label)
        out = x / per_sample(sigma, x)
        return shift + (-out / per_sample(sigma, x) if sde.name == "ve" else out)

    t = TIMES[2:].float()
    sigma = sde.sigma(t)
    if sde.name == "vp" and not continuous:
        sigma = (1 - sde.alphas_cumprod[(t.double() * 999).long()]).sqrt()
    sigma = sigma.float()
    x = torch.linspace(-1, 1, 5 * 6).reshape(5, 2, 3)
    got = score_fn(network, sde, continuous)(x, t, shift=0)
    assert got.dtype == torch.float32
    assert heard[0].dtype == (torch.int64 if sde.name == "ve" and not continuous else torch.float32)
    close(got, -x / per_sample(sigma, x).square(), LOSS[torch.float32])
    assert score_fn(network, sde, continuous)(x.double(), t, shift=0).dtype == torch.float64
    assert score_fn(network, sde, continuous)(x.bfloat16(), t, shift=0).dtype == torch.float32


@each_sde
def test_density_of_the_prior(sde):
    z = torch.linspace(-2, 3, 12).reshape(2, 2, 3).transpose(1, 2)
    std = torch.tensor(sde.prior_std, dtype=torch.float64)
    want = torch.distributions.Normal(torch.zeros_like(std), std).log_prob(z.double()).sum((1, 2))
    close(sde.prior_logp(z), want)
    assert sde.prior_logp(z[:0]).shape == (0,)


def test_by_name():
    assert {name: type(get_sde(name)) for name in SDES} == {"vp": VPSDE, "subvp": subVPSDE, "ve": VESDE}
    assert get_sde("vp", beta_max=7.0).beta_max == 7
    assert get_sde(KINDS[0]) is KINDS[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: get_sde("edm"), "sde must be one of vp, subvp, ve, got 'edm'"),
        (lambda: VPSDE(N=1), "N must be an integer of at least 2, got 1"),
        (lambda: VPSDE(2.0, 1.0), "beta_min must be below beta_max=1.0, got 2.0"),
        (lambda: VESDE(-1.0), "sigma_min must be positive, got -1.0"),
        (lambda: VESDE(50.0), "sigma_min must be below sigma_max=50.0, got 50.0"),
        (
            lambda: VPSDE(N=12).discrete_betas,
            "N, the steps of a chain, must be at least beta_max=20.0 (beta_max / N is a variance), got 12",
        ),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError) as refusal:
        make()
    assert str(refusal.value) == message


def test_sub_vp_needs_no_chain():
    assert subVPSDE(N=12).discretize(TIMES)[1].isfinite().all()


@pytest.mark.parametrize("make", [VPSDE, subVPSDE, VESDE])
def test_another_chain_of_the_same_sde(make):
    """Tables that were worked out before are not kept."""
    t = torch.linspace(0.01, 1, 7, dtype=torch.float64)
    sde = make(N=100)
    sde.discretize(t)
    other = sde.with_chain(40)
    assert (sde.N, other.N, type(other)) == (100, 40, make)
    for got, want in zip(other.discretize(t), make(N=40).discretize(t)):
        assert torch.equal(got, want)
    assert sde.with_chain(100) is sde


def test_ancestral_noise():
    """VE: sigma_(i-1) / sigma_i, 0 below the cleanest; VP: all of beta; sub-VP has no rule."""
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    ratio = VESDE(0.01, 10.0, N=4).ancestral_noise(t)
    assert ratio.tolist() == pytest.approx([0.0, 0.1, 0.1])
    assert VPSDE(N=30).ancestral_noise(t).tolist() == [1.0] * 3
    with pytest.raises(ValueError, match="sde must be 'vp' or 've' for score_sde's ancestral sampling"):
        subVPSDE().ancestral_noise(t)
