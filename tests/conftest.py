"""Shared fixtures: every backend that can run here, and a closed-form model."""

from __future__ import annotations

import os

import pytest
import torch

from fastdiff.ops import native

BACKENDS = [
    pytest.param("reference", "cpu", id="reference"),
    pytest.param(
        "cpu", "cpu", id="cpu", marks=pytest.mark.skipif(not native.available("cpu"), reason=native.reason("cpu"))
    ),
]
if native.available("cuda"):
    BACKENDS.append(pytest.param("cuda", "cuda", id="cuda", marks=pytest.mark.cuda))
if torch.cuda.is_available() and native.available("triton", "cuda"):
    BACKENDS.append(pytest.param("triton", "cuda", id="triton", marks=pytest.mark.cuda))
elif os.environ.get("TRITON_INTERPRET") == "1" and native.available("triton", "cpu"):
    BACKENDS.append(pytest.param("triton", "cpu", id="triton"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize(("backend", "device"), BACKENDS)


class GaussianModel:
    """The exact denoiser of N(mean, std^2) data, for any process: E[x_0 | x] in closed form, as a chosen prediction."""

    def __init__(self, mean: float = 0.3, std: float = 0.5):
        self.mean, self.std = mean, std

    def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """E[x_0 | x] for x = x_0 + sigma z; sigma [B]."""
        sigma = sigma.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        return (self.std**2 * x + sigma**2 * self.mean) / (self.std**2 + sigma**2)

    def ode(self, x: torch.Tensor, sigma: float, sigma_to: float) -> torch.Tensor:
        """The exact probability-flow solution from noise sigma to sigma_to."""
        ratio = ((self.std**2 + sigma_to**2) / (self.std**2 + sigma**2)) ** 0.5
        return self.mean + (x - self.mean) * ratio


@pytest.fixture
def gaussian() -> GaussianModel:
    return GaussianModel()
