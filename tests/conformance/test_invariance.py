"""A sample depends on its seed and on nothing else: not on its batch, its place in it, the threads or the backend.

The noise is the same bit for bit; samples of a closed-form float64 mixture agree to 1e-12.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastdiff
from fastdiff import ops
from fastdiff.ops import native

from ..tolerances import CLOSED_FORM
from .analytic import Mixture, per_sample

SHAPE = (64, 3, 8, 8)
SEEDS = [7 + 1_000_003 * i for i in range(SHAPE[0])]
VP = fastdiff.VP.linear(1000)
BACKENDS = ["reference", *(["cpu"] if native.available("cpu") else [])]


def _mixture() -> Mixture:
    random = np.random.default_rng(0)
    return Mixture(random.normal(size=(6, *SHAPE[1:])) * 0.6, random.uniform(0.1, 0.4, 6), random.dirichlet(np.ones(6)))


MIXTURE = _mixture()


def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x] under noise sigma, alpha = 1."""
    return MIXTURE.denoise(x, torch.ones_like(sigma), sigma)


def noise_predictor(x: Tensor, t: Tensor) -> Tensor:
    """E[z | x] at timestep t of the VP process."""
    abar = torch.as_tensor(VP.alphas_cumprod)[t.long()]
    alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
    return (x - per_sample(alpha, x) * MIXTURE.denoise(x, alpha, sigma)) / per_sample(sigma, x)


SAMPLERS: dict[str, dict[str, Any]] = {
    "heun with churn": {
        "model": denoiser,
        "steps": 12,
        "S_churn": 8.0,
        "S_min": 0.05,
        "S_max": 50.0,
        "S_noise": 1.003,
    },
    "ddpm": {"model": noise_predictor, "process": VP, "prediction": "eps", "solver": "ddpm", "steps": "20"},
    "ddim, eta 1": {
        "model": noise_predictor,
        "process": VP,
        "prediction": "eps",
        "solver": "ddim",
        "eta": 1.0,
        "steps": "ddim20",
        "clip_denoised": True,
    },
}


def draw(name: str, seeds: list[int], backend: str = BACKENDS[-1], threads: int = 2, **options: Any) -> Tensor:
    """Start and end [2, B, ...] of a run."""
    arguments = dict(SAMPLERS[name])
    sampler = fastdiff.Sampler(arguments.pop("model"), dtype=torch.float64, backend=backend, **arguments, **options)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        _, states = sampler((len(seeds), *SHAPE[1:]), seeds=seeds, return_trajectory=True)
    finally:
        torch.set_num_threads(before)
    return states[[0, -1]]


def assert_same(got: Tensor, want: Tensor) -> None:
    """Bit-equal starts, equal ends."""
    assert torch.equal(got[0], want[0]), "the starting noise differs"
    torch.testing.assert_close(got[1], want[1], rtol=CLOSED_FORM, atol=CLOSED_FORM)


@pytest.fixture(scope="module", params=SAMPLERS)
def batch(request: pytest.FixtureRequest) -> tuple[str, Tensor]:
    """A sampler's name and its batch of 64 on the fastest backend with two threads."""
    return request.param, draw(request.param, SEEDS)


def test_batch_of_one(batch):
    name, whole = batch
    for i in (0, 1, 31, 63):
        assert_same(draw(name, [SEEDS[i]]), whole[:, i : i + 1])


def test_order_and_shard(batch):
    name, whole = batch
    order = np.random.default_rng(1).permutation(SHAPE[0])[:11].tolist()
    assert_same(draw(name, [SEEDS[i] for i in order]), whole[:, order])


def test_equal_seeds_give_equal_samples(batch):
    name, whole = batch
    twice = draw(name, [SEEDS[5], SEEDS[5]])
    assert_same(twice[:, :1], twice[:, 1:])
    assert_same(twice[:, :1], whole[:, 5:6])


def test_one_thread(batch):
    name, whole = batch
    assert_same(draw(name, SEEDS, threads=1), whole)


@pytest.mark.parametrize("engine", BACKENDS)
def test_backend(batch, engine):
    name, whole = batch
    assert_same(draw(name, SEEDS, engine), whole)


def test_readable_solver(batch):
    name, whole = batch
    assert_same(draw(name, SEEDS, compiled=False), whole)


@pytest.mark.parametrize("engine", BACKENDS)
@pytest.mark.parametrize("shape", [(1, 5), (64, 3, 32, 32), (3, 70_001)], ids=str)
def test_noise_bits(engine, shape):
    seeds = torch.tensor([2**63 - 1, -1, *range(shape[0])][: shape[0]])
    for number in (0, 1, 2**32 - 1):
        torch.set_num_threads(2)
        whole = ops.normal(seeds, shape, number, backend=engine)
        torch.set_num_threads(1)
        assert torch.equal(ops.normal(seeds, shape, number, backend=engine), whole)
        assert torch.equal(ops.normal(seeds, shape, number, backend="reference"), whole)
        for i in {0, shape[0] // 2, shape[0] - 1}:
            alone = ops.normal(seeds[i : i + 1], (1, *shape[1:]), number, backend=engine)
            assert torch.equal(alone[0], whole[i])
