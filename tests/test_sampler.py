"""The sampler: noise sources, seeds, dtypes, ranks, guidance, epsilon scaling, and what it refuses before any work."""

from __future__ import annotations

import math

import pytest
import torch

import fastdiff
from fastdiff import LinearScale, Sampler, ops
from fastdiff.exposure import epsilon_scales


def model(x, t, labels=None, bias=0.0):
    return 0.5 * x + bias + (0 if labels is None else labels.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)))


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 5), (4, 1, 2, 3, 2), (0, 3), (4, 0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_rank_and_dtype(shape, dtype, backend, device):
    x = Sampler(model, steps=3, dtype=dtype, backend=backend, S_churn=5.0)(shape, seeds=range(shape[0]))
    assert x.shape == shape and x.dtype == dtype


def test_a_sample_depends_on_its_seed_only(backend, device):
    sampler = Sampler(model, steps=4, S_churn=10.0, backend=backend)
    x = sampler((5, 3, 7), seeds=[3, 1, 4, 1, 5])
    assert x[1].equal(x[3]), "duplicate seeds are allowed and give equal samples"
    assert sampler((2, 3, 7), seeds=[5, 4]).equal(x[[4, 2]])
    assert sampler((3, 3, 7), seeds=3).equal(sampler((3, 3, 7), seeds=[3, 4, 5]))
    assert sampler((1, 3, 7), seeds=[2**64 - 1]).equal(sampler((1, 3, 7), seeds=[-1]))


def test_fresh_seeds_follow_torchs_generator():
    sampler = Sampler(model, steps=3)
    torch.manual_seed(0)
    a = sampler((2, 3))
    b = sampler((2, 3))
    torch.manual_seed(0)
    assert sampler((2, 3)).equal(a) and not a.equal(b)


def test_noise_sources_agree(backend, device):
    """noise= with the contract's own normals, and generator= with PyTorch's, drive the same plan."""
    sampler = Sampler(model, steps=5, S_churn=20.0, dtype=torch.float64, backend=backend)
    seeds = torch.tensor([7, 8])
    asked = []

    def contract(draw, step):
        asked.append((draw, step))
        return ops.normal(seeds, (2, 3), draw)

    want = sampler((2, 3), seeds=seeds)
    assert torch.allclose(sampler((2, 3), noise=contract), want, rtol=1e-14, atol=1e-14)
    assert asked == [(0, -1), (1, 0), (2, 1), (3, 2), (4, 3), (5, 4)]
    a = sampler((2, 3), generator=torch.Generator().manual_seed(1))
    g = torch.Generator().manual_seed(1)
    assert sampler((2, 3), noise=lambda draw, step: torch.randn(2, 3, generator=g)).equal(a)


def test_x_init_starts_the_run(backend, device):
    start = torch.randn(2, 3)
    sampler = Sampler(model, steps=3, backend=backend)
    x, trajectory = sampler((2, 3), x_init=start, return_trajectory=True)
    assert trajectory[0].equal(start) and trajectory.shape == (4, 2, 3)
    plain = Sampler(model, steps=3, backend=backend, compiled=False)
    assert torch.allclose(plain((2, 3), x_init=start), x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("compiled", [True, False])
def test_x_init_is_never_written_to(compiled):
    def in_place(denoise, x, levels, noise):
        x += denoise(x, levels[0])
        yield x

    start = torch.ones(2, 3)
    x = Sampler(model, solver=in_place, steps=3, compiled=compiled)((2, 3), x_init=start)
    assert x.equal(torch.full((2, 3), 1.5)) and start.equal(torch.ones(2, 3))


def test_labels_and_conditions_reach_the_model():
    sampler = Sampler(model, steps=3)
    base = sampler((3, 2), seeds=0)
    assert sampler((3, 2), seeds=0, labels=[1, 1, 1]).equal(sampler((3, 2), seeds=0, labels=1))
    assert sampler((3, 2), seeds=0, labels=[0, 0, 0]).equal(base)
    assert sampler((3, 2), seeds=0, cond={"bias": 1.0}).equal(sampler((3, 2), seeds=0, labels=1))


def test_epsilon_scaling_divides_the_predicted_noise():
    """One Euler step from sigma to 0 gives x - (x - D) / lambda; a list acts step by step."""
    x = torch.ones(1, 1, dtype=torch.float64)
    kwargs = {"solver": "euler", "sigmas": [2.0, 0.0], "dtype": torch.float64}
    for scale in (1.0, 1.25, 0.8, -2.0):
        got = Sampler(model, epsilon_scale=scale, **kwargs)((1, 1), x_init=x)
        assert got.item() == pytest.approx(1 - 0.5 / scale)
    assert epsilon_scales(LinearScale(k=0.1, b=1.0), 3) == pytest.approx([1.2, 1.1, 1.0])
    steps = Sampler(model, epsilon_scale=LinearScale(0.1, 1.0), steps=3)
    listed = Sampler(model, epsilon_scale=[1.2, 1.1, 1.0], steps=3)
    assert torch.allclose(steps((2, 3), seeds=0), listed((2, 3), seeds=0))


def test_epsilon_scale_modes():
    base = Sampler(model, steps=4)((2, 3), seeds=0)
    every, first, eps = (
        Sampler(model, steps=4, epsilon_scale=1.1, epsilon_scale_mode=mode)((2, 3), seeds=0)
        for mode in ("every", "first", "eps")
    )
    assert eps.equal(base), "an x0 prediction is left alone by mode 'eps'"
    assert not every.equal(base) and not first.equal(every) and not first.equal(base)


@pytest.mark.parametrize("process", ["edm", "vp"])
def test_guidance_adds_to_the_score(process, gaussian, backend, device):
    """Guiding N(m, s^2) by the log-density of another Gaussian gives their product, in closed form."""
    mean, std, weight = 1.5, 0.7, 1.0
    vp = fastdiff.VP.linear(1000)

    def alpha_of(t):
        return torch.tensor(vp.alphas_cumprod)[t].sqrt().reshape(-1, 1) if process == "vp" else torch.ones(len(t), 1)

    def denoise(x, t):
        alpha = alpha_of(t).to(x.dtype)
        sigma = (1 - alpha**2).sqrt() / alpha if process == "vp" else t.reshape(-1, 1)
        return gaussian.denoise(x / alpha, sigma.flatten())

    def guidance(x, level, **cond):
        # log p_t of the product's factor is not the factor's own p_t, so use the exact score of the difference.
        u, s2 = x / level.alpha, level.sigma_ve**2
        variance = 1 / (1 / gaussian.std**2 + 1 / std**2)
        centre = variance * (gaussian.mean / gaussian.std**2 + mean / std**2)
        return ((centre - u) / (variance + s2) - (gaussian.mean - u) / (gaussian.std**2 + s2)) / level.alpha

    kwargs = {"process": vp if process == "vp" else "edm", "steps": 100, "dtype": torch.float64, "backend": backend}
    sampler = Sampler(denoise, solver="heun", guidance=guidance, guidance_scale=weight, **kwargs)
    x = sampler((4000, 1), seeds=0)
    variance = 1 / (1 / gaussian.std**2 + 1 / std**2)
    centre = variance * (gaussian.mean / gaussian.std**2 + mean / std**2)
    assert x.mean().item() == pytest.approx(centre, abs=0.03)
    assert x.std().item() == pytest.approx(math.sqrt(variance), abs=0.03)
    assert len(sampler.plan().launches) == sampler.plan().evaluations + 1, "guidance costs no launch"
    two = Sampler(denoise, solver="heun", guidance=[guidance, guidance], guidance_scale=[0.25, 0.75], **kwargs)
    assert torch.allclose(two((5, 1), seeds=0), sampler((5, 1), seeds=0), rtol=1e-10, atol=1e-10)


def test_nan_names_the_step_and_the_seeds(backend, device):
    def breaks(x, t):
        bad = (t < 1.0).reshape(-1, 1) & (torch.arange(len(x)) == 1).reshape(-1, 1)
        return torch.where(bad, torch.full_like(x, float("nan")), 0.5 * x)

    sampler = Sampler(breaks, solver="euler", sigmas=[4.0, 2.0, 0.5, 0.0], backend=backend)
    with pytest.raises(FloatingPointError, match=r"first in step 2 \(sigma 0.5\), in the samples with seeds \[12\]"):
        sampler((3, 2), seeds=[11, 12, 13])
    with pytest.raises(FloatingPointError, match="first in step 2"):
        sampler((3, 2), generator=torch.Generator().manual_seed(0))
    assert Sampler(breaks, solver="euler", sigmas=[4.0, 0.5, 0.0], check=False)((3, 2), seeds=0).isnan().any()


def test_progress_counts_steps(capsys):
    Sampler(model, steps=4)((2, 3), seeds=0, progress=True)
    assert "4/4" in capsys.readouterr().err


def test_learned_variance_needs_a_variance_head():
    sampler = Sampler(model, process="vp", prediction="eps", solver="ddpm", variance="learned_range", steps=3)
    with pytest.raises(ValueError, match="variance head"):
        sampler((2, 3), seeds=0)


def test_a_wrong_output_shape_is_one_clear_error(backend, device):
    with pytest.raises(ValueError, match=r"model must return a tensor of shape \[2, 3\]"):
        Sampler(lambda x, t: x[:, :2], steps=3, backend=backend)((2, 3), seeds=0)


@pytest.mark.parametrize("compiled", [True, False])
def test_guidance_and_denoised_fn_must_keep_the_shape(compiled):
    """Nothing is broadcast, and their dtype does not become the state's."""
    kwargs = {"steps": 3, "compiled": compiled}
    with pytest.raises(ValueError, match=r"guidance must return a tensor of shape \[2, 3\], got \[2, 1\]"):
        Sampler(model, guidance=lambda x, level: x[:, :1], **kwargs)((2, 3), seeds=0)
    with pytest.raises(ValueError, match=r"denoised_fn must return a tensor of shape \[2, 3\], got NoneType"):
        Sampler(model, denoised_fn=lambda x: None, **kwargs)((2, 3), seeds=0)
    assert Sampler(model, denoised_fn=torch.Tensor.double, **kwargs)((2, 3), seeds=0).dtype == torch.float32
    with pytest.raises(TypeError, match="model must return a tensor, got tuple"):
        Sampler(lambda x, t: (x,), **kwargs)((2, 3), seeds=0)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_solver_that_yields_nothing(compiled):
    def silent(denoise, x, levels, noise):
        yield from ()

    with pytest.raises(ValueError, match="solver 'silent' must yield at least one state"):
        Sampler(model, solver=silent, steps=3, compiled=compiled)((2, 3), seeds=0)


def test_a_users_solver_may_have_negative_options():
    def shifted(denoise, x, levels, noise, *, weight=0.0):
        yield x + weight * denoise(x, levels[0])

    x = torch.ones(1, 1)
    assert Sampler(model, solver=shifted, steps=3, weight=-2.0)((1, 1), x_init=x).item() == 0.0


def test_inversion_starts_at_the_last_noisy_level():
    """Sigmas that do not end in 0 have a cleanest level too: it is not skipped."""
    for sigmas in ([3.0, 2.0, 1.0], [3.0, 2.0, 1.0, 0.0]):
        sampler = Sampler(model, solver="ddim_inversion", sigmas=sigmas)
        steps: list[float] = []
        sampler((1, 1), x_init=torch.ones(1, 1), callback=lambda info, steps=steps: steps.append(info.level.sigma))
        assert steps == [1.0, 2.0]


def test_a_plan_of_explicit_levels_has_no_other_number_of_steps():
    with pytest.raises(ValueError, match="steps must be left out"):
        Sampler(model, sigmas=[2.0, 1.0, 0.0]).plan(steps=5)


def test_numpy_numbers_are_numbers():
    import numpy as np

    sampler = Sampler(model, process="vp", steps=np.int64(4))
    assert sampler.levels.steps == 4
    for seed in (np.int64(3), torch.tensor(3)):
        assert sampler((2, 3), seeds=seed).equal(sampler((2, 3), seeds=3))


CONSTRUCTION = {
    "model": {"model": 3},
    "process": {"process": "vpp"},
    "prediction": {"prediction": "noise"},
    "solver": {"solver": "rk45"},
    "steps": {"steps": 0},
    "steps one": {"steps": 1},
    "steps text": {"steps": "ten"},
    "schedule": {"schedule": "linear"},
    "sigmas order": {"sigmas": [1.0, 2.0, 0.0], "steps": None},
    "sigmas negative": {"sigmas": [1.0, -1.0], "steps": None},
    "sigmas nan": {"sigmas": [float("nan"), 0.0], "steps": None},
    "steps and sigmas": {"sigmas": [1.0, 0.0]},
    "timesteps": {"timesteps": [3, 1], "steps": None},
    "epsilon_scale zero": {"epsilon_scale": 0.0},
    "epsilon_scale inf": {"epsilon_scale": float("inf")},
    "epsilon_scale list": {"epsilon_scale": [1.0, 1.1]},
    "epsilon_scale_mode": {"epsilon_scale_mode": "all"},
    "guidance": {"guidance": 3},
    "guidance_scale": {"guidance": lambda x, level: x, "guidance_scale": [1.0, 2.0]},
    "denoised_fn": {"denoised_fn": 3},
    "model_dtype": {"model_dtype": torch.int32},
    "process of v": {"prediction": "v"},
    "process of previous_x": {"prediction": "previous_x"},
    "prediction with churn": {"process": "vp", "prediction": "previous_x", "S_churn": 40.0},
    "schedule nan": {"schedule": lambda n, **limits: [float("nan"), 0.0]},
    "schedule order": {"schedule": lambda n, **limits: [1.0, 2.0, 0.0]},
    "rho of vp": {"process": "vp", "rho": 7.0},
    "clip_denoised": {"clip_denoised": (1.0, -1.0)},
    "dtype": {"dtype": torch.float16},
    "backend": {"backend": "gpu"},
    "eta": {"eta": 0.5},
    "S_churn": {"S_churn": -1.0},
    "S_noise": {"S_noise": float("nan")},
    "variance": {"process": "vp", "prediction": "eps", "solver": "ddpm", "variance": "big"},
    "process of ddpm": {"solver": "ddpm"},
}


@pytest.mark.parametrize("name", CONSTRUCTION)
def test_construction_refusals_name_the_argument(name):
    arguments = {"model": model, "steps": 4} | CONSTRUCTION[name]
    with pytest.raises((ValueError, TypeError), match=name.split()[0]):
        Sampler(arguments.pop("model"), **arguments)


CALLS = {
    "shape": {"shape": "64"},
    "shape negative": {"shape": (-1, 3)},
    "shape batch": {"shape": 4},
    "seeds": {"seeds": [1, 2]},
    "seeds kind": {"seeds": [1.5, 2.0, 3.0]},
    "seeds range": {"seeds": [1, 2, 2**64]},
    "labels": {"labels": [0, 1]},
    "labels kind": {"labels": [0.5, 1.0, 1.0]},
    "labels range": {"labels": [0, 1, 10]},
    "x_init": {"x_init": torch.zeros(2, 2)},
    "x_init dtype": {"x_init": torch.zeros(3, 2, dtype=torch.int64)},
    "x_init device": {"x_init": torch.zeros(3, 2, device="meta")},
    "generator": {"generator": torch.Generator(), "noise": lambda draw, step: torch.zeros(3, 2)},
    "noise": {"noise": lambda draw, step: torch.zeros(3, 1)},
}


@pytest.mark.parametrize("name", CALLS)
def test_call_refusals_name_the_argument_before_any_work(name):
    called = []

    class Labelled:
        label_dim = 10

        def __call__(self, x, t, **cond):
            called.append(1)
            return x

    arguments = {"shape": (3, 2)} | CALLS[name]
    with pytest.raises((ValueError, TypeError), match=name.split()[0]):
        Sampler(Labelled(), steps=3)(arguments.pop("shape"), **arguments)
    assert not called


def test_cond_is_a_dict_and_labels_come_once():
    sampler = Sampler(model, steps=3)
    with pytest.raises(TypeError, match="cond must be a dict of keyword arguments, got list"):
        sampler((2, 3), seeds=0, cond=[torch.zeros(2)])
    with pytest.raises(ValueError, match="labels must be left out when cond has 'labels'"):
        sampler((2, 3), seeds=0, labels=1, cond={"labels": torch.zeros(2)})
    given = {"labels": torch.ones(2, dtype=torch.int64)}
    assert sampler((2, 3), seeds=0, cond=given).equal(sampler((2, 3), seeds=0, labels=1))
    assert sampler((2, 3), seeds=0, labels=1, cond={"labels": None}).equal(sampler((2, 3), seeds=0, cond=given))
