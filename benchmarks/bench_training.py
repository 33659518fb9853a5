"""Noising a training batch: `perturb`'s one launch against PyTorch's expressions. Run with `python -m benchmarks`.

Each kind is measured with fresh results, as objectives do it, and into given ones. The heap is that of a training
process, which has freed larger tensors than these: in one that has not, most of the time of both sides is page faults.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.baselines import noise_batch, noise_batch_into
from fastdiff import VP
from fastdiff.training.perturb import noising_table, perturb

SHAPES = {
    "256x2": (256, 2),  # points: a sample's noise is made 64 elements at a time
    "128x1x16x16": (128, 1, 16, 16),
    "128x3x32x32": (128, 3, 32, 32),
    "64x3x64x64": (64, 3, 64, 64),
    "8x3x256x256": (8, 3, 256, 256),
    "16M": (16, 1 << 20),
}
GAMMA = 0.1
pytestmark = [pytest.mark.parametrize("size", SHAPES), pytest.mark.parametrize("threads", [1, 2])]


@pytest.fixture(scope="module", autouse=True)
def heap():  # type: ignore[no-untyped-def]
    """Below the 32 MiB from which glibc gives memory back to the system at once."""
    torch.empty(30 * 2**20, dtype=torch.uint8)


@pytest.fixture
def batch(size):  # type: ignore[no-untyped-def]
    x0 = torch.randn(SHAPES[size])
    return x0, torch.randint(0, 1000, (len(x0),)), torch.arange(len(x0))


@pytest.fixture(scope="module")
def levels():  # type: ignore[no-untyped-def]
    """Signal and noise of DDPM's 1000 steps."""
    alphas_cumprod = torch.from_numpy(VP.linear(1000).levels(1000).alphas_cumprod)
    return alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()


class _Noising:
    gamma: float | None = None
    buffers = False

    def test_eager(self, measure, threads, batch, levels):  # type: ignore[no-untyped-def]
        x0, t, _ = batch
        alpha, sigma = (level.float() for level in levels)
        if self.buffers:
            out = [torch.empty_like(x0) for _ in range(3)]
            measure(lambda: noise_batch_into(out, x0, t, alpha, sigma, self.gamma), x0.numel(), threads=threads)
        else:
            measure(lambda: noise_batch(x0, t, alpha, sigma, self.gamma), x0.numel(), threads=threads)

    def test_fastdiff(self, measure, threads, batch, levels):  # type: ignore[no-untyped-def]
        x0, t, seeds = batch
        table = noising_table(*levels, gamma=self.gamma)
        out = (torch.empty_like(x0), torch.empty_like(x0)) if self.buffers else None
        measure(lambda: perturb(x0, table, t, seeds, out=out), x0.numel(), 12, threads)


class TestNoising(_Noising):
    """x_t and eps."""


class TestNoisingIntoBuffers(_Noising):
    buffers = True


class TestInputPerturbation(_Noising):
    """x_t with the noise eps + gamma xi, and eps: two draws."""

    gamma = GAMMA


class TestInputPerturbationIntoBuffers(_Noising):
    gamma, buffers = GAMMA, True
