"""Host time of one call on a state so small that nothing else counts: a robot policy's 4 x 7 actions."""

from __future__ import annotations

import pytest
import torch

from benchmarks.baselines import ancestral_update
from fastdiff.ops import native, resolve_backend


@pytest.fixture
def tensors():  # type: ignore[no-untyped-def]
    return torch.randn(1, 4, 7), torch.randn(1, 4, 7)


class TestOverhead:
    """One noise-injecting step on 28 elements."""

    def test_eager(self, measure, tensors):  # type: ignore[no-untyped-def]
        x, eps = tensors
        a, b, std = (torch.tensor(c) for c in (0.9, -0.2, 0.3))
        measure(lambda: ancestral_update(x, eps, a, b, std), 28)

    def test_fastdiff(self, measure, tensors):  # type: ignore[no-untyped-def]
        x, eps = tensors
        table, seeds = torch.tensor([[0.9, -0.2, 0.3]]), torch.zeros(1, dtype=torch.int64)
        operation, out = native.operation("combine_out", resolve_backend(None)), torch.empty_like(x)
        measure(lambda: operation([x, eps], table, None, seeds, [1], None, False, [out]), 28)
