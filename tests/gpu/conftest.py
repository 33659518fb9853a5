"""Tests of the operators that need a GPU, on both of its backends. Without one they are collected and skipped."""

from __future__ import annotations

import pytest
import torch

from fastdiff.ops import native

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason=f"no GPU: {native.reason('cuda')}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "gpu":
            item.add_marker(pytest.mark.cuda)
            item.add_marker(GPU)


@pytest.fixture(params=["cuda", "triton"])
def gpu_backend(request: pytest.FixtureRequest) -> str:
    """A backend of CUDA tensors that can run."""
    if not native.available(request.param, "cuda"):
        pytest.skip(native.reason(request.param, "cuda"))
    return request.param


@pytest.fixture
def room():
    """room(bytes): skip where the GPU has not that much memory free; give it back afterwards."""

    def need(count: int) -> None:
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        if free < count:
            pytest.skip(f"needs {count / 2**30:.0f} GiB of free GPU memory, there are {free / 2**30:.0f}")

    yield need
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
