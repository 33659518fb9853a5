"""The noise is the same bits on the CPU, through CUDA and through Triton."""

from __future__ import annotations

import pytest
import torch

from fastdiff import ops
from fastdiff.ops import native
from tests.ops import oracle

MANY = 2**28 if native.available("cpu") else 2**22  # the reference takes its time


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


@pytest.mark.parametrize("draw", [0, 2**32 - 1])
def test_one_sample_of_2_to_the_28(gpu_backend, draw, room):
    room(3 * 4 * MANY)
    seeds = torch.tensor([20221211])
    got = ops.normal(seeds.cuda(), (1, MANY), draw, backend=gpu_backend)
    assert same_bits(got, ops.normal(seeds, (1, MANY), draw).cuda())


def test_many_samples_with_any_seeds(gpu_backend, room):
    room(3 * 4 * MANY)
    batch = 2**12
    seeds = torch.randint(-(2**63), 2**63 - 1, (batch,), generator=torch.Generator().manual_seed(0))
    seeds[:4] = torch.tensor([0, -1, 2**63 - 1, -(2**63)])
    shape = (batch, MANY // batch)
    assert same_bits(ops.normal(seeds.cuda(), shape, 3, backend=gpu_backend), ops.normal(seeds, shape, 3).cuda())


@pytest.mark.parametrize("n", [1, 2, 3, 5, 15, 16, 17, 1023, 1025, 4099, 70_001])
def test_odd_sizes(gpu_backend, n):
    for batch in (1, 3, 129):
        seeds = torch.arange(batch) - 1
        assert same_bits(
            ops.normal(seeds.cuda(), (batch, n), 7, backend=gpu_backend).cpu(), ops.normal(seeds, (batch, n), 7)
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_the_float32_normals_rounded(gpu_backend, dtype):
    seeds = torch.arange(3)
    got = ops.normal(seeds.cuda(), (3, 33_003), 1, dtype, gpu_backend)
    assert got.dtype == dtype
    assert got.cpu().equal(ops.normal(seeds, (3, 33_003), 1).to(dtype))


def test_a_sample_does_not_depend_on_its_place_in_the_batch(gpu_backend):
    seeds = torch.randint(-(2**63), 2**63 - 1, (70_003,)).cuda()  # more samples than a grid's second dimension
    whole = ops.normal(seeds, (len(seeds), 5), 2, backend=gpu_backend)
    for i in (0, 1, 65_534, 65_535, 65_536, 70_002):
        assert whole[i : i + 1].equal(ops.normal(seeds[i : i + 1], (1, 5), 2, backend=gpu_backend))


def test_elements_beyond_2_to_the_31(gpu_backend, room):
    n = 2**31 + 4 * 1000 + 3
    room(5 * n)
    got = ops.normal(torch.tensor([5]).cuda(), (1, n), 2, torch.bfloat16, gpu_backend)[0]
    for first in (0, 2**30, 2**31 - 2048, 2**31, n - n % 4 - 1024):
        count = min(1024, n - first)
        want = torch.from_numpy(oracle.normals_float32(5, 2, count, first // 4)).to(torch.bfloat16)
        assert got[first : first + count].cpu().equal(want), first
