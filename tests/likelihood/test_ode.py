"""Log-densities by the probability-flow ODE against exact ones: mixtures, Gaussians (whose ODE has a closed form)."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff import ops
from fastdiff.continuous import Flow, SDEProcess
from fastdiff.likelihood import nll_network, nll_ode
from fastdiff.process import EDM, VE, VP
from fastdiff.sde import SDES, get_sde, score_fn

from ..conformance.analytic import Mixture
from ..conformance.sde_model import mixture_log_density
from ..threads import one_thread
from ..tolerances import CLOSED_FORM, LOG_DENSITY, LOG_DENSITY_FLOAT32, LOG_DENSITY_MIXTURE

pytest.importorskip("torchdiffeq")
__all__ = ["one_thread"]

TIGHT = {"method": "dopri8", "rtol": 1e-8, "atol": 1e-8}
S = torch.tensor([0.3, 0.1, 1.2], dtype=torch.float64)  # of a Gaussian in three dimensions
MEAN = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64)
MIXTURE = Mixture(
    np.array([[0.4, -0.3, 0.1], [-0.5, 0.2, 0.6], [0.1, 0.5, -0.4]]), np.array([0.3, 0.2, 0.4]), [0.5, 0.2, 0.3]
)


def log_normal(x, mean, variance):
    return (-0.5 * ((x - mean).square() / variance + (2 * math.pi * variance).log())).sum(1)


def gaussian_x0(x, alpha, sigma):
    """E[x_0 | x_t] for N(MEAN, S^2)."""
    gain = alpha * S**2 / (alpha**2 * S**2 + sigma**2)
    return (MEAN + gain * (x.double() - alpha * MEAN)).to(x.dtype)


class Told:
    """A network that knows its process's level from the time it is told; `denoise(x, alpha, sigma)` is its x_0."""

    def __init__(self, process, prediction, denoise):
        self.process, self.prediction, self.denoise = process, prediction, denoise
        self.times = []

    def __call__(self, x, time, **cond):
        self.times.append(float(time[0]))
        assert time.shape == x.shape[:1] and bool((time == time[0]).all())
        alpha, sigma = self.moments(float(time[0]))
        x0 = self.denoise(x, alpha, sigma)
        eps = (x - alpha * x0) / sigma
        return {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "flow": eps - x0, "score": -eps / sigma}[
            self.prediction
        ]

    def moments(self, time):
        if isinstance(self.process, VE):
            return 1.0, time
        if isinstance(self.process, Flow):
            return 1 - time, time
        if isinstance(self.process, SDEProcess):
            t = torch.tensor([time / 999], dtype=torch.float64)
            return float(self.process.sde.alpha(t)), float(self.process.sde.sigma(t))
        index = time * self.process.T / 1000 if self.process.rescale_timesteps else time
        table = 0.5 * np.log(1 / self.process.alphas_cumprod - 1)
        variance = math.exp(2 * np.interp(index, np.arange(self.process.T), table))
        return 1 / math.sqrt(1 + variance), math.sqrt(variance / (1 + variance))


def gaussian_nll(process, prediction, x, **options):
    """What the ODE gives between the levels that `options` or the process name, and the exact value."""
    network = Told(process, prediction, gaussian_x0)
    got = nll_network(network, x, process=process, prediction=prediction, probe="exact", **TIGHT, **options)
    return got, network


PROCESSES = [
    (EDM(0.02, 80.0), "x0", 0.02, 80.0),
    (VE(0.05, 20.0), "eps", 0.05, 20.0),
    (VE(0.05, 20.0), "score", 0.05, 20.0),
    (VP.linear(1000), "eps", None, None),
    (VP.linear(37, rescale_timesteps=True), "v", None, None),
    (VP.cosine(50), "x0", None, None),
    (Flow(), "flow", 1 / 999, 999.0),
]


@pytest.mark.parametrize(
    ("process", "prediction", "low", "high"), PROCESSES, ids=[f"{type(p[0]).__name__}-{p[1]}" for p in PROCESSES]
)
def test_a_gaussian_goes_to_its_closed_form(process, prediction, low, high):
    if isinstance(process, VP):
        low, high = (math.sqrt(1 / process.alphas_cumprod[i] - 1) for i in (0, -1))
    x = MEAN + torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got, network = gaussian_nll(process, prediction, x)
    growth = ((S**2 + high**2) / (S**2 + low**2)).sqrt()  # of u - MEAN along the flow
    end = MEAN + growth * (x - MEAN)
    alpha = 1.0 if isinstance(process, VE) else 1 / math.hypot(1, high)
    std = torch.full_like(MEAN, math.hypot(1, high) if isinstance(process, VP) else high)
    if isinstance(process, Flow):
        alpha = 1 / (1 + high)
    want = log_normal(end, 0.0, std**2) + growth.log().sum()
    torch.testing.assert_close(got.logp, want, rtol=LOG_DENSITY, atol=LOG_DENSITY)
    torch.testing.assert_close(got.z, alpha * end, rtol=LOG_DENSITY, atol=LOG_DENSITY)
    torch.testing.assert_close(got.bpd, -want / (3 * math.log(2)), rtol=LOG_DENSITY, atol=LOG_DENSITY)
    assert got.nfe == len(network.times)
    assert not got.probe_error.any()


@pytest.mark.parametrize("name", SDES)
def test_a_gaussian_of_an_sde_goes_to_its_closed_form(name):
    sde = get_sde(name)
    x = MEAN + torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def score(y, t):
        alpha, sigma = (float(f(t[:1])) for f in (sde.alpha, sde.sigma))
        return (alpha * MEAN - y) / (alpha**2 * S**2 + sigma**2)

    got = nll_ode(score, x, sde, eps=1e-3, probe="exact", offset=7.0, **TIGHT)
    first, last = torch.tensor([1e-3, 1.0], dtype=torch.float64).split(1)
    variances = [sde.alpha(t) ** 2 * S**2 + sde.sigma(t) ** 2 for t in (first, last)]
    growth = (variances[1] / variances[0]).sqrt()
    end = sde.alpha(last) * MEAN + growth * (x - sde.alpha(first) * MEAN)
    want = log_normal(end, 0.0, torch.full_like(MEAN, sde.prior_std**2)) + growth.log().sum()
    torch.testing.assert_close(got.logp, want, rtol=LOG_DENSITY, atol=LOG_DENSITY)
    torch.testing.assert_close(got.bpd, 7 - want / (3 * math.log(2)), rtol=LOG_DENSITY, atol=LOG_DENSITY)


def mixture_x0(x, alpha, sigma):
    one = torch.ones(len(x), dtype=torch.float64)
    return MIXTURE.denoise(x, alpha * one, sigma * one).to(x.dtype)


EXACT = {"probe": "exact", "sigma_min": 0.01, "sigma_max": 1e7}  # so far out that the prior is right
QUICK = {"sigma_min": 0.05, "sigma_max": 20.0, "rtol": 1e-3, "atol": 1e-3}


def mixture_nll(x, **options):
    process = EDM()
    return nll_network(Told(process, "x0", mixture_x0), x, process=process, **options)


def mixture_data(count, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    return 0.7 * torch.randn(count, 3, generator=generator, dtype=torch.float64).to(dtype)


def test_a_mixture_has_its_exact_density():
    x = mixture_data(9)
    got = mixture_nll(x, **EXACT, **TIGHT)
    torch.testing.assert_close(got.logp, mixture_log_density(MIXTURE, x, 1.0, 0.01), rtol=0, atol=LOG_DENSITY_MIXTURE)


@pytest.mark.parametrize("options", [{}, {"method": "dopri8"}, {"method": "RK45"}, {"method": "rk4", "steps": 110}])
def test_default_tolerances_float32_and_other_methods_stay_close(options):
    x = mixture_data(5, torch.float32)
    got = mixture_nll(x, **EXACT, **options)
    assert got.z.dtype == torch.float32
    assert got.logp.dtype == got.bpd.dtype == torch.float64
    want = mixture_log_density(MIXTURE, x, 1.0, 0.01)
    torch.testing.assert_close(got.logp, want, rtol=0, atol=LOG_DENSITY_FLOAT32)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_probes_have_the_exact_mean_and_the_error_they_state(probe):
    x = mixture_data(20)
    exact = mixture_nll(x, probe="exact", **QUICK)
    got = mixture_nll(x, probe=probe, probes=24, seeds=5, **QUICK)
    deviations = (got.bpd - exact.bpd) / got.probe_error
    assert bool((got.probe_error > 0).all())
    assert abs(float(deviations.mean())) < 4 / math.sqrt(20)
    assert 0.6 < float(deviations.square().mean().sqrt()) < 1.5
    assert mixture_nll(x[:2], probe=probe, seeds=5, **QUICK).probe_error.isnan().all()


def test_one_rademacher_probe_is_exact_in_one_dimension():
    one = Mixture(np.array([[0.3], [-0.6]]), np.array([0.2, 0.4]), [0.5, 0.5])

    def denoise(x, sigma):
        return one.denoise(x, torch.ones(len(x)), sigma)

    x = torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None]
    exact, probed = (nll_network(denoise, x, probe=p, seeds=3) for p in ("exact", "rademacher"))
    torch.testing.assert_close(probed.logp, exact.logp, rtol=CLOSED_FORM, atol=CLOSED_FORM)


def test_a_samples_probe_is_its_seeds_in_any_batch():
    x, seeds = mixture_data(6), torch.tensor([7, -3, 2**62, 0, 11, 5])
    fixed = {**QUICK, "method": "rk4", "steps": 5, "probes": 2}
    together = mixture_nll(x, seeds=seeds, **fixed)
    for order in ([4], [5, 1, 3]):
        apart = mixture_nll(x[order], seeds=seeds[order], **fixed)
        torch.testing.assert_close(apart.logp, together.logp[order], rtol=CLOSED_FORM, atol=CLOSED_FORM)
    default = {"sigma_min": 0.05, "sigma_max": 20.0, "seeds": seeds}
    alone = mixture_nll(x[2:3], **{**default, "seeds": seeds[2:3]})
    torch.testing.assert_close(alone.logp, mixture_nll(x, **default).logp[2:3], rtol=0, atol=LOG_DENSITY_FLOAT32)
    by_count = mixture_nll(x, seeds=7, **fixed).logp
    assert torch.equal(by_count, mixture_nll(x, seeds=list(range(7, 13)), **fixed).logp)
    assert not torch.equal(by_count, together.logp)


def test_probes_are_the_contracts_normals_and_their_signs():
    x, seeds = mixture_data(4), torch.arange(4) + 9
    normals = torch.stack([ops.normal(seeds, x.shape, draw) for draw in (1, 2)]).double()
    for probe, vectors in (("gaussian", normals), ("rademacher", normals.sign())):
        few = {"method": "rk4", "steps": 3}
        drawn = mixture_nll(x, probe=probe, probes=2, seeds=seeds, **few)
        assert torch.equal(drawn.logp, mixture_nll(x, hutchinson=vectors, **few).logp)
        one = mixture_nll(x, probe=probe, seeds=seeds, **few)
        assert torch.equal(one.logp, mixture_nll(x, hutchinson=vectors[0], **few).logp)


def test_every_sample_is_within_tolerance_whatever_its_batch():
    hard, easy = mixture_data(1), torch.zeros(400, 3, dtype=torch.float64)
    options = {**EXACT, "rtol": 1e-3, "atol": 1e-3}
    want = mixture_log_density(MIXTURE, hard, 1.0, 0.01)
    error = (mixture_nll(hard, **options).logp - want).abs()
    crowd = (mixture_nll(torch.cat([hard, easy]), **options).logp[:1] - want).abs()
    assert float(crowd) <= max(3 * float(error), 1e-2)


@pytest.mark.parametrize("denoise", [gaussian_x0, lambda x, alpha, sigma: 0.9999 * x], ids=["gaussian", "slow"])
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3"])
def test_nothing_is_asked_beyond_the_ends(method, denoise):
    process = VE(0.05, 20.0)
    network = Told(process, "x0", denoise)
    nll_network(network, MEAN.repeat(2, 1), process=process, method=method, rtol=1e-3, atol=1e-3)
    assert 0.05 == pytest.approx(min(network.times), rel=1e-12)
    assert 20.0 == pytest.approx(max(network.times), rel=1e-12)


def test_limits_conditioning_and_shapes():
    seen = []

    def model(x, sigma, labels, shift):
        seen.append((labels, shift))
        return x * 0 + shift[:, None, None]

    model.label_dim = 4
    x = torch.zeros(3, 4, 5, dtype=torch.float64).transpose(1, 2)
    got = nll_network(
        model, x, labels=[1, 0, 3], cond={"shift": torch.zeros(3)}, sigma_min=0.5, sigma_max=2.0, probe="exact"
    )
    assert got.z.shape == x.shape
    assert seen[0][0].tolist() == [1, 0, 3]
    # D = 0: u grows with sigma, and a state at 0 stays there.
    want = -0.5 * 20 * math.log(2 * math.pi * 4.0) + 20 * math.log(4.0)
    torch.testing.assert_close(got.logp, torch.full((3,), want, dtype=torch.float64), rtol=1e-6, atol=0)
    empty = nll_network(
        model, x[:0], labels=torch.zeros(0, dtype=torch.int64), cond={"shift": torch.zeros(0)}, probes=3
    )
    assert empty.logp.shape == empty.bpd.shape == empty.probe_error.shape == (0,)
    assert empty.z.shape == (0, 5, 4)
    assert empty.nfe == 0


def test_networks_told_the_variance_too_and_time_as_they_take_it():
    process = VP.linear(30)
    eps = Told(process, "eps", gaussian_x0)

    def with_head(x, time):
        assert time.dtype == x.dtype  # between timesteps
        return torch.cat([eps(x, time), torch.zeros_like(x)], 1)

    x = MEAN.repeat(2, 1)
    options = {"process": process, "prediction": "eps", "probe": "exact"}
    assert torch.equal(nll_network(with_head, x, **options).logp, nll_network(eps, x, **options).logp)


def test_edm_preconditioning_is_that_of_the_sampler():
    prediction = fastdiff.EDMPrediction(0.5)

    def raw(x, c_noise):
        sigma = float((4 * c_noise[0]).exp())
        u = x * math.hypot(sigma, 0.5)
        skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / math.hypot(sigma, 0.5)
        return (mixture_x0(u, 1.0, sigma) - skip * u) / out

    x = mixture_data(3)
    few = {"probe": "exact", "method": "rk4", "steps": 4}
    got, want = nll_network(raw, x, prediction=prediction, **few), mixture_nll(x, **few)
    torch.testing.assert_close(got.logp, want.logp, rtol=1e-9, atol=1e-9)


def test_score_and_network_agree_on_one_sde():
    """Of a VP SDE, through score_sde's convention and through Prediction and Process."""
    sde = get_sde("vp")
    process = SDEProcess(sde)
    network = Told(process, "eps", gaussian_x0)
    x = MEAN + 0.3 * torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    alpha = float(sde.alpha(torch.tensor([1e-3])))
    options = {"probe": "exact", "method": "dopri8", "rtol": 1e-7, "atol": 1e-7}
    in_time = nll_ode(score_fn(network, sde), alpha * x, sde, eps=1e-3, **options)
    in_sigma = nll_network(network, x, process=process, prediction="eps", **options)
    torch.testing.assert_close(in_time.logp + 3 * math.log(alpha), in_sigma.logp, rtol=0, atol=LOG_DENSITY_MIXTURE)


def identity(x, sigma):
    return x * 0


BAD = [
    ({"probe": "cauchy"}, "probe must be one of rademacher, gaussian, exact"),
    ({"probes": 0}, "probes must be an integer of at least 1"),
    ({"probe": "exact", "probes": 2}, "probes must be left out for an exact divergence"),
    ({"method": "rk45"}, "method must be one of dopri5"),
    ({"method": "rk4"}, "steps must be given for rk4"),
    ({"steps": 5}, "steps must be given for rk4"),
    ({"rtol": 0.0}, "rtol must be positive"),
    ({"rtol": 1e-13}, "rtol must be at least 1e-12"),
    ({"seeds": [1]}, "seeds must hold one integer per sample"),
    ({"hutchinson": torch.ones(2, 4)}, "hutchinson must be"),
    ({"hutchinson": torch.ones(2, 3), "seeds": 0}, "without seeds"),
    ({"sigma_min": 90.0}, "sigma_min must be below sigma_max"),
    ({"process": VP.linear(30), "prediction": "eps", "sigma_max": 1e9}, "must be within the process's"),
    ({"offset": math.nan}, "offset must be finite"),
    ({"process": VP.linear(30), "prediction": "previous_x"}, "prediction must say x_0 at every level"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_arguments_are_refused(options, message):
    calls = []

    def model(x, sigma):
        calls.append(1)
        return x * 0

    with pytest.raises(ValueError, match=message):
        nll_network(model, torch.zeros(2, 3), **options)
    assert not calls


@pytest.mark.parametrize(
    "x", [torch.zeros(3), torch.zeros(2, 3, dtype=torch.int64), None, torch.full((2, 3), math.nan)]
)
def test_bad_data_are_refused(x):
    with pytest.raises(ValueError, match="x must be"):
        nll_network(identity, x)


def test_bad_times_and_outputs_are_refused():
    with pytest.raises(ValueError, match="eps must be below"):
        nll_ode(identity, torch.zeros(2, 3), get_sde("vp"), eps=1.0)
    with pytest.raises(ValueError, match="score_fn must return"):
        nll_ode(lambda x, t: x[:1], torch.zeros(2, 3), get_sde("vp"))
    with pytest.raises(FloatingPointError, match=r"velocity .* not finite at"):
        nll_network(lambda x, sigma: x * math.nan, torch.zeros(2, 3))


def test_torchdiffeq_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ModuleNotFoundError, match=r"fastdiff\[likelihood\]"):
        nll_network(identity, torch.zeros(2, 3))
