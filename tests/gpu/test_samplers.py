"""Whole runs on the GPU: every backend gives the same samples, bit for bit, and the CPU too if the network does."""

from __future__ import annotations

import pytest
import torch

from fastdiff import Sampler
from fastdiff.ops import native

RUNS = {
    "heun": {"solver": "heun", "steps": 6},
    "churn": {"solver": "heun", "steps": 6, "S_churn": 4.0, "S_noise": 1.003},
    "float64": {"solver": "heun", "steps": 6, "dtype": torch.float64},
    "bfloat16 network": {"solver": "euler", "steps": 5, "model_dtype": torch.bfloat16},
    "ddpm": {"solver": "ddpm", "steps": 10, "process": "vp", "prediction": "eps", "clip_denoised": True},
    "ddim": {"solver": "ddim", "steps": 10, "process": "vp", "prediction": "eps", "eta": 0.5},
}


def halve(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A network whose arithmetic is exact everywhere."""
    return 0.5 * x


@pytest.mark.parametrize("name", RUNS)
def test_backends_give_the_same_samples(name):
    backends = [b for b in ("cuda", "triton") if native.available(b, "cuda")] + ["reference"]
    samples = [
        Sampler(halve, device="cuda", backend=backend, graph="off", **RUNS[name])((3, 3, 17, 5), seeds=9)
        for backend in backends
    ]
    cpu = Sampler(halve, device="cpu", graph="off", **RUNS[name])((3, 3, 17, 5), seeds=9)
    for backend, sample in zip(backends, samples):
        assert sample.is_cuda
        assert sample.cpu().equal(cpu), backend


@pytest.mark.parametrize("graph", ["off", "loop"])
def test_a_sampler_on_a_stream_of_its_own(graph):
    sampler = Sampler(halve, device="cuda", graph=graph, steps=5, check=False)
    want = sampler((2, 3, 8, 8), seeds=1)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        got = sampler((2, 3, 8, 8), seeds=1)
        total = got.sum()
    stream.synchronize()
    assert got.equal(want)
    assert total.isfinite()
