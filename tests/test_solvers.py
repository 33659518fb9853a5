"""Solvers against closed forms: equal methods, exact variances, inversion (orders: solvers/test_order.py)."""

from __future__ import annotations

import pytest
import torch

from fastdiff import VP, Sampler

F64 = {"dtype": torch.float64}


@pytest.mark.parametrize("process", ["edm", "vp", "vp_cosine"])
def test_euler_is_ddim_without_noise(process, gaussian, backend, device):
    options = {"process": process, "prediction": "x0", "steps": 12, "backend": backend, **F64}

    def model(x, t):
        return 0.1 * x + 0.2 * torch.sin(x)

    a = Sampler(model, solver="euler", **options)((3, 5), seeds=1)
    b = Sampler(model, solver="ddim", eta=0.0, **options)((3, 5), seeds=1)
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)


def test_ddim_with_eta_one_is_ancestral_sampling():
    """Song et al. 2021, Sec. 4.1: the same mean and variance as DDPM's fixed_small."""
    options = {"process": VP.linear(100), "prediction": "eps", "steps": 10, **F64}

    def model(x, t):
        return 0.9 * x

    a = Sampler(model, solver="ddim", eta=1.0, **options)((4, 7), seeds=3)
    b = Sampler(model, solver="ddpm", variance="fixed_small", **options)((4, 7), seeds=3)
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("solver", "steps", "options"),
    [
        ("ddpm", 1000, {}),
        ("ddim", 1000, {"eta": 1.0}),
        ("heun", 40, {"S_churn": 20.0}),
        ("euler", 500, {"S_churn": 20.0}),
    ],
)
def test_stochastic_samplers_keep_the_data_distribution(solver, steps, options, gaussian):
    """With the exact denoiser of a Gaussian and enough steps the samples have its mean and standard deviation."""
    process = VP.linear(1000) if solver in ("ddpm", "ddim") else "edm"
    if process == "edm":
        model = gaussian.denoise
    else:
        alphas = torch.tensor(process.alphas_cumprod).sqrt()

        def model(x, t):
            alpha = alphas[t].reshape(-1, 1)
            return gaussian.denoise(x / alpha, ((1 - alpha**2).sqrt() / alpha).flatten())

    x = Sampler(model, process=process, solver=solver, steps=steps, **F64, **options)((10_000, 2), seeds=0)
    assert x.mean().item() == pytest.approx(gaussian.mean, abs=5 * gaussian.std / 200 + 0.005)
    assert x.std().item() == pytest.approx(gaussian.std, abs=5 * gaussian.std / 200 / 2**0.5 + 0.01)


def test_inversion_undoes_ddim(gaussian):
    options = {"process": VP.linear(1000), "prediction": "eps", "steps": 250, **F64}

    def model(x, t):
        return 0.3 * torch.sin(x) + 0.5 * x

    noise = Sampler(model, solver="ddim_inversion", **options)(
        (3, 5), x_init=0.3 * torch.ones(3, 5, dtype=torch.float64)
    )
    data = Sampler(model, solver="ddim", **options)((3, 5), x_init=noise)
    assert (data - 0.3).abs().max() < 0.01


def test_terminal_inversion_ends_at_the_predicted_noise():
    def model(x, t):
        return 0.25 * x

    options = {"process": VP.linear(100), "prediction": "eps", "solver": "ddim_inversion", "steps": 5, **F64}
    x = torch.ones(2, 3, dtype=torch.float64)
    noisiest = Sampler(model, **options)((2, 3), x_init=x)
    assert torch.allclose(Sampler(model, terminal=True, **options)((2, 3), x_init=x), 0.25 * noisiest)


def test_inversion_scales_each_level_as_sampling_does():
    """A list of lambdas belongs to the levels, noisiest first, whichever way they are visited."""

    def model(x, t):
        return 0.3 * torch.sin(x) + 0.5 * x

    scales = [1.0 + 0.01 * i for i in range(10)]
    options = {"process": VP.linear(100), "prediction": "eps", "solver": "ddim_inversion", "steps": 10, **F64}
    x = torch.full((1, 3), 0.3, dtype=torch.float64)
    first = Sampler(model, epsilon_scale=[1.0] * 9 + [2.0], **options)((1, 3), x_init=x, return_trajectory=True)[1]
    plain = Sampler(model, **options)((1, 3), x_init=x, return_trajectory=True)[1]
    assert not torch.allclose(first[1], plain[1]), "the last lambda is the cleanest level's, which comes first"
    last = Sampler(model, epsilon_scale=[2.0] + [1.0] * 9, **options)((1, 3), x_init=x)
    assert torch.allclose(last, plain[-1]), "the noisiest level is reached, not evaluated"
    assert not torch.allclose(Sampler(model, epsilon_scale=scales, **options)((1, 3), x_init=x), plain[-1])


def test_epsilon_scaling_of_a_predicted_mean_is_refused():
    chain = {"process": "vp", "prediction": "previous_x", "solver": "ddpm", "steps": 4}
    with pytest.raises(ValueError, match="epsilon_scale must be 1 for prediction 'previous_x'"):
        Sampler(lambda x, t: x, epsilon_scale=1.01, **chain)
    Sampler(lambda x, t: x, epsilon_scale=1.01, epsilon_scale_mode="eps", **chain)
