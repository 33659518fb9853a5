"""The noise contract: integers, bits, accuracy, statistics; nothing but seed, draw and element matters."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastdiff import ops
from fastdiff.ops import native, reference
from tests.ops import oracle
from tests.tolerances import NORMAL

FAST = "cpu" if native.available("cpu") else "reference"

RANDOM123 = [  # kat_vectors of the Random123 distribution, philox4x32 with 10 rounds
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

FROZEN = [  # the first normals of some draws, as float32 bits: a change of any polynomial or order shows here
    (0, 0, [0xBF6CB6AF, 0x3F7DBB31, 0xBEF6D1B3, 0xBF1E1BA0]),
    (1, 0, [0xBE97B1BE, 0x3EC2C3E4, 0xBF807DBC, 0xBE7F370A]),
    (-1, 7, [0xBF62DE78, 0x3EFF57D9, 0x3D953FBB, 0x3F5E46DC]),
    (4611686018427400249, 4294967295, [0xBDD7B8B8, 0x3EF2A8D7, 0xBE9FFDB8, 0x3F0B8A33]),
]


@pytest.mark.parametrize(("counter", "key", "expected"), RANDOM123)
def test_random123_known_answers(counter, key, expected):
    assert tuple(int(w) for w in reference.philox4x32_10(counter, key)) == expected
    assert tuple(int(w) for w in oracle.philox(np.array([counter], dtype=np.uint64), key)[0]) == expected


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 127, 1023, 4097])
@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 0x9E3779B97F4A7C15 - 2**64])
@pytest.mark.parametrize("draw", [0, 1, 2**32 - 1])
def test_bits_equal_the_oracle(backend, device, n, seed, draw):
    seeds = torch.tensor([seed], device=device)
    got = ops.normal(seeds, (1, n), draw, backend=backend).cpu().numpy()[0]
    assert (got.view(np.uint32) == oracle.normals_float32(seed, draw, n).view(np.uint32)).all()


def test_frozen_normals(backend, device):
    for seed, draw, bits in FROZEN:
        got = ops.normal(torch.tensor([seed], device=device), (1, 4), draw, backend=backend).cpu().numpy()
        assert got.view(np.uint32)[0].tolist() == bits, [hex(b) for b in got.view(np.uint32)[0]]


def test_every_normal_is_close_to_float64():
    n, worst, largest = 2_500_000, 0.0, 0.0
    for draw in range(4):
        got = ops.normal(torch.tensor([20221211]), (1, n), draw, backend=FAST).numpy()[0]
        worst = max(worst, np.abs(got - oracle.normals_float64(20221211, draw, n)).max())
        largest = max(largest, np.abs(got).max())
    assert worst < NORMAL
    assert largest > 5.0


def test_the_tails_are_reachable():
    """The smallest u gives sqrt(66 ln 2) = 6.76 in either direction of both lanes."""
    a = torch.zeros(4, dtype=torch.int64)
    b = torch.tensor([0, 1 << 30, 2 << 30, 3 << 30])
    z0, z1 = reference.box_muller(a, b)
    limit = math.sqrt(66 * math.log(2))
    assert torch.stack([z0.max(), -z0.min(), z1.max(), -z1.min()]).min() > 6.6
    assert max(z0.abs().max(), z1.abs().max()) <= limit + 1e-6


def test_moments_distribution_and_pairs_of_ten_million():
    """Moments to order 8, Kolmogorov-Smirnov, and correlations between lanes, blocks, draws and seeds: 5 sigma each."""
    n = 10_000_000
    z = ops.normal(torch.tensor([7]), (1, n), 3, backend=FAST)[0].double()
    for order in range(1, 9):
        expected = 0.0 if order % 2 else math.prod(range(order - 1, 0, -2))
        variance = math.prod(range(2 * order - 1, 0, -2)) - expected**2
        assert abs(z.pow(order).mean().item() - expected) < 5 * math.sqrt(variance / n), order
    cdf = torch.special.ndtr(z.sort().values)
    steps = torch.arange(n, dtype=torch.float64) / n
    assert max((cdf - steps).max().item(), (steps + 1 / n - cdf).max().item()) * math.sqrt(n) < 2.23  # p = 1e-4
    others = {
        "lag 1": z.roll(1),
        "lag 2": z.roll(2),
        "lag 3": z.roll(3),
        "next block": z.roll(4),
        "next draw": ops.normal(torch.tensor([7]), (1, n), 4, backend=FAST)[0].double(),
        "next seed": ops.normal(torch.tensor([8]), (1, n), 3, backend=FAST)[0].double(),
        "high word": ops.normal(torch.tensor([7 + 2**32]), (1, n), 3, backend=FAST)[0].double(),
    }
    for name, other in others.items():
        assert abs((z * other).mean().item()) * math.sqrt(n) < 5, name
        assert abs(((z**2 - 1) * (other**2 - 1)).mean().item()) * math.sqrt(n) / 2 < 5, name


def test_a_sample_depends_on_its_seed_only(backend, device):
    seeds = torch.tensor([5, -3, 5, 2**40, 0], device=device)
    z = ops.normal(seeds, (5, 3, 7), 2, backend=backend)
    assert z[0].equal(z[2])
    order = torch.tensor([4, 2, 0, 1, 3], device=device)
    assert ops.normal(seeds[order], (5, 3, 7), 2, backend=backend).equal(z[order])
    for i in range(5):
        assert ops.normal(seeds[i : i + 1], (1, 3, 7), 2, backend=backend).equal(z[i : i + 1])
    # A longer sample starts with the shorter one: the element index counts, not the shape.
    assert ops.normal(seeds, (5, 40), 2, backend=backend)[:, :21].equal(z.flatten(1))


@pytest.mark.skipif(not native.available("cpu"), reason="one backend only")
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_backends_agree(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        seeds = torch.arange(3)
        for shape in [(3, 5), (3, 100_003), (3, 64, 64)]:
            assert ops.normal(seeds, shape, 9, backend="cpu").equal(ops.normal(seeds, shape, 9, backend="reference"))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_round_the_float32_normals(backend, device, dtype):
    seeds = torch.arange(4, device=device)
    exact = ops.normal(seeds, (4, 9), backend=backend)
    assert ops.normal(seeds, (4, 9), dtype=dtype, backend=backend).equal(exact.to(dtype))


def test_empty(backend, device):
    assert ops.normal(torch.empty(0, dtype=torch.int64, device=device), (0, 3), backend=backend).shape == (0, 3)
    assert ops.normal(torch.arange(3, device=device), (3, 0, 2), backend=backend).shape == (3, 0, 2)
    assert ops.normal(torch.arange(3, device=device), (3,), backend=backend).shape == (3,)
