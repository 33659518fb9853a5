"""Brownian noise of a run against the trees of torchsde and k-diffusion. Run with `python -m benchmarks`."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from benchmarks.others import k_diffusion_sampling
from fastdiff import EDM, Sampler
from fastdiff.brownian import increment
from fastdiff.ops import native

SHAPES = {"1x4x7": (1, 4, 7), "16x3x32x32": (16, 3, 32, 32)}
STEPS = 10
SIGMAS = EDM(sigma_min=0.03, sigma_max=15).levels(STEPS).sigmas
pytestmark = pytest.mark.parametrize("size", SHAPES)


def intervals() -> list[tuple[float, float]]:
    """Those that DPM++ SDE draws noise of: the first half in log sigma, then the whole, of every step but the last."""
    steps = [(float(a), float(b)) for a, b in pairwise(SIGMAS[:-1])]
    return [pair for a, b in steps for pair in ((a, (a * b) ** 0.5), (a, b))]


def others() -> Any:
    """k-diffusion's samplers, or skip."""
    pytest.importorskip("torchsde")
    try:
        return k_diffusion_sampling()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


class TestBrownianNoise:
    """The 18 increments of 10 steps, their tree included: per increment and element."""

    def elements(self, size: str) -> int:
        return torch.Size(SHAPES[size]).numel() * len(intervals())

    def test_torchsde(self, measure, size):  # type: ignore[no-untyped-def]
        others()
        import torchsde

        zero, ends = torch.zeros(SHAPES[size]), (float(SIGMAS[-2]), float(SIGMAS[0]))

        def run() -> list[torch.Tensor]:
            tree = torchsde.BrownianTree(ends[0], zero, ends[1], entropy=0)
            return [tree(end, start) for start, end in intervals()]

        measure(run, self.elements(size), threads=1)

    def k_diffusion(self, measure, size, seed):  # type: ignore[no-untyped-def]
        module, x = others(), torch.zeros(SHAPES[size])

        def run() -> list[torch.Tensor]:
            noise = module.BrownianTreeNoiseSampler(x, float(SIGMAS[-2]), float(SIGMAS[0]), seed)
            return [noise(start, end) for start, end in intervals()]

        measure(run, self.elements(size), threads=1)

    def test_k_diffusion_one_seed(self, measure, size):  # type: ignore[no-untyped-def]
        self.k_diffusion(measure, size, 0)

    def test_k_diffusion_a_seed_each(self, measure, size):  # type: ignore[no-untyped-def]
        self.k_diffusion(measure, size, list(range(SHAPES[size][0])))

    def fastdiff(self, measure, size, backend):  # type: ignore[no-untyped-def]
        """A seed for each sample; the weights are a plan's."""
        native.require(backend, "cpu")
        combine = native.operation("combine_out", backend)
        seeds, out = torch.arange(SHAPES[size][0]), torch.empty(SHAPES[size])
        weighted = [increment(start, end) for start, end in intervals()]
        launches = [(draws, torch.tensor([weights])) for draws, weights in weighted]

        def run() -> None:
            for draws, table in launches:
                combine([], table, None, seeds, draws, None, False, [out])

        measure(run, self.elements(size), threads=1)

    def test_fastdiff(self, measure, size):  # type: ignore[no-untyped-def]
        self.fastdiff(measure, size, "cpu")

    def test_reference_backend(self, measure, size):  # type: ignore[no-untyped-def]
        self.fastdiff(measure, size, "reference")

    def test_independent_normals(self, measure, size):  # type: ignore[no-untyped-def]
        out = torch.empty(SHAPES[size])
        measure(lambda: [out.normal_() for _ in intervals()], self.elements(size), threads=1)


class TestBrownianRun:
    """10 steps of DPM++ SDE on a Brownian path, beside a network that costs next to nothing."""

    @staticmethod
    def network(x: torch.Tensor, sigma: torch.Tensor, **_: Any) -> torch.Tensor:
        return x

    def test_k_diffusion(self, measure, size):  # type: ignore[no-untyped-def]
        module, x = others(), torch.randn(SHAPES[size])
        sigmas = torch.from_numpy(SIGMAS).float()
        run = lambda: module.sample_dpmpp_sde(self.network, x, sigmas, disable=True)  # noqa: E731
        measure(run, x.numel(), threads=1)

    def test_fastdiff(self, measure, size):  # type: ignore[no-untyped-def]
        sampler = Sampler(self.network, solver="dpmpp_sde", sigmas=SIGMAS, noise="brownian")
        seeds = torch.arange(SHAPES[size][0])
        measure(lambda: sampler(SHAPES[size], seeds=seeds), torch.Size(SHAPES[size]).numel(), threads=1)
