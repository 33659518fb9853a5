"""Host time of one call on a state so small that nothing else counts: a robot policy's 4 x 7 actions."""

from __future__ import annotations

import pytest
import torch

from benchmarks.baselines import ancestral_update
from fastdiff.ops import native, resolve_backend


@pytest.fixture
def tensors(device):  # type: ignore[no-untyped-def]
    return torch.randn(1, 4, 7, device=device), torch.randn(1, 4, 7, device=device)


class TestOverhead:
    """One noise-injecting step on 28 elements."""

    def test_eager(self, measure, device, tensors):  # type: ignore[no-untyped-def]
        x, eps = tensors
        a, b, std = (torch.tensor(c, device=device) for c in (0.9, -0.2, 0.3))
        measure(lambda: ancestral_update(x, eps, a, b, std), 28)

    def test_fastdiff(self, measure, device, tensors):  # type: ignore[no-untyped-def]
        x, eps = tensors
        table, seeds = torch.tensor([[0.9, -0.2, 0.3]], device=device), torch.zeros(1, dtype=torch.int64, device=device)
        operation, out = native.operation("combine_out", resolve_backend(None, device)), torch.empty_like(x)
        measure(lambda: operation([x, eps], table, None, seeds, [1], None, False, [out]), 28)
