"""Every operator against float64 and against the reference's bits: odd sizes, misaligned views, all dtypes, streams."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.ops import reference_ops
from tests.ops.oracle import normals_float32
from tests.ops.test_combine import CONFIGURATIONS, DTYPES, LARGEST, case, exact
from tests.tolerances import ROUNDING

SHAPES = [(1, 3), (2, 17), (3, 255), (2, 1027), (1, 65_537), (5, 3, 31, 33), (129, 77)]
CODES = {torch.float16: 5, torch.float32: 6, torch.float64: 7, torch.bfloat16: 15}


def moved(values: dict, device: str) -> dict:
    return {name: v.to(device) if isinstance(v, Tensor) else v for name, v in values.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("configuration", [*CONFIGURATIONS, LARGEST], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_combine(gpu_backend, shape, configuration, dtype):
    inputs, draws, outputs, clip, learned, rows = configuration
    x, table, arguments = case(shape, dtype, inputs, draws, outputs, clip, learned, rows, "cpu")
    on_gpu = [t.cuda() for t in x], table.cuda()
    got = ops.combine(*on_gpu, **moved(arguments, "cuda"), out_dtypes=[dtype] * outputs, backend=gpu_backend)
    for y, want in zip(got, exact(x, table, **arguments, outputs=outputs, shape=shape)):
        assert (y.cpu().double() - want).abs().max() / want.abs().max().clamp(min=1) < ROUNDING[dtype]
    bits = ops.combine(x, table, **arguments, out_dtypes=[dtype] * outputs, backend="reference")
    for y, want in zip(got, bits):
        if learned:  # exp may differ in the last bits
            assert torch.allclose(y.cpu(), want, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])
        else:
            assert y.cpu().equal(want)


@pytest.mark.parametrize("out_dtype", DTYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_dtype_and_misalignment(gpu_backend, dtype, out_dtype):
    """Inputs of every dtype and outputs off their 16-byte boundaries; nothing beside the outputs is written."""
    wanted = [d for d in DTYPES if d != torch.float64 or dtype == torch.float64]
    for n in (1, 5, 63, 4099):
        for offset in range(8):
            stores = [torch.randn(2 * n + 16).to(d).cuda() for d in wanted]
            x = [store[offset : offset + 2 * n].view(2, n) for store in stores]
            table = torch.randn(1, len(x) + 1).to(dtype).cuda()
            seeds = torch.arange(2).cuda()
            store = torch.full((2 * n + 16,), 42.0, dtype=out_dtype, device="cuda")
            out = store[offset : offset + 2 * n].view(2, n)
            ops.combine(x, table, seeds=seeds, draws=[4], out=[out], backend=gpu_backend)
            cpu = [t.cpu() for t in x], table.cpu()
            (want,) = ops.combine(*cpu, seeds=seeds.cpu(), draws=[4], out_dtypes=[out_dtype], backend="reference")
            assert out.cpu().equal(want), (n, offset)
            assert (store[:offset] == 42).all() and (store[offset + 2 * n :] == 42).all(), (n, offset)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [*SHAPES, (2, 300_001)], ids=str)
def test_sum_squares(gpu_backend, shape, dtype):
    x, table, arguments = case(shape, dtype, 3, 1, 1, False, False, True, "cpu")
    del arguments["clip"], arguments["learned_variance"]
    got = ops.sum_squares([t.cuda() for t in x], table.cuda(), **moved(arguments, "cuda"), backend=gpu_backend)
    (y,) = ops.combine(x, table, **arguments, out_dtypes=[dtype], backend="reference")
    want = y.double().square().flatten(1).sum(1)
    assert got.dtype == torch.float64
    assert ((got.cpu() - want).abs() / want).max() < ROUNDING[torch.float64]


def test_repeats_give_the_same_bits(gpu_backend):
    x, table, arguments = case((3, 70_001), torch.float32, 3, 1, 1, False, False, True, "cuda")
    del arguments["clip"], arguments["learned_variance"]
    first = ops.sum_squares(x, table, **arguments, backend=gpu_backend)
    assert all(ops.sum_squares(x, table, **arguments, backend=gpu_backend).equal(first) for _ in range(5))


def test_work_is_on_the_current_stream(gpu_backend):
    """A stream that is busy filling an input: what ran elsewhere would read the old values."""
    x, table = torch.zeros(4, 1 << 20, device="cuda"), torch.full((1, 1), 2.0, device="cuda")
    seeds = torch.arange(4, device="cuda")
    ops.combine([x], table, backend=gpu_backend)  # loaded and compiled before
    ops.normal(seeds, (4, 5), backend=gpu_backend)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # some 25 ms
        x.fill_(3.0)
        (y,) = ops.combine([x], table, backend=gpu_backend)
        squares = ops.sum_squares([x], table, backend=gpu_backend)
        seeds.add_(1)
        z = ops.normal(seeds, (4, 5), backend=gpu_backend)
    stream.synchronize()
    assert (y == 6).all()
    assert (squares == 36.0 * (1 << 20)).all()
    assert z.cpu().equal(ops.normal(torch.arange(1, 5), (4, 5)))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device_than_the_current_one(gpu_backend):
    x = torch.randn(3, 1001, device="cuda:1")
    seeds = torch.arange(3, device="cuda:1")
    (y,) = ops.combine([x], torch.ones(1, 2, device="cuda:1"), seeds=seeds, draws=[1], backend=gpu_backend)
    assert torch.cuda.current_device() == 0
    assert y.device == x.device
    assert y.cpu().equal(x.cpu() + ops.normal(torch.arange(3), (3, 1001), 1))


@pytest.mark.parametrize("batch", [1, 3])
def test_more_than_2_to_the_31_elements(gpu_backend, batch, room):
    """Offsets need 64 bits: in one sample, and between samples."""
    elements = (2**31 + 4099) // batch
    room(2 * 2 * batch * elements + (6 << 30))
    x = torch.empty(batch, elements, dtype=torch.bfloat16, device="cuda")
    x.view(torch.int16).random_(0x3F80, 0x4000)  # from 1 to 2
    seeds, table = torch.arange(batch, device="cuda"), torch.tensor([[2.0, 0.5]], device="cuda")
    y = torch.empty_like(x)
    ops.combine([x], table, seeds=seeds, draws=[1], out=[y], backend=gpu_backend)
    for sample in range(batch):
        for begin in (0, elements // 2 // 4 * 4, elements - 1003):
            begin -= begin % 4
            end = min(elements, begin + 1003)
            z = torch.from_numpy(normals_float32(sample, 1, end - begin, begin // 4))
            want = (x[sample, begin:end].float().cpu() * 2 + 0.5 * z).to(torch.bfloat16)
            assert y[sample, begin:end].cpu().equal(want), (sample, begin)
    squares = ops.sum_squares([x], torch.ones(1, 1, device="cuda"), backend=gpu_backend)
    want = torch.stack([sum(part.double().square().sum() for part in row.split(1 << 28)) for row in x])
    assert torch.allclose(squares, want, rtol=1e-12)


def test_the_reference_backend_on_the_gpu():
    """The fallback where neither part is there."""
    x, table, arguments = case((2, 1027), torch.float32, 3, 1, 2, True, False, True, "cuda")
    got = ops.combine(x, table, **arguments, out_dtypes=[torch.float32] * 2, backend="reference")
    cpu = ops.combine(
        [t.cpu() for t in x],
        table.cpu(),
        **moved(arguments, "cpu"),
        out_dtypes=[torch.float32] * 2,
        backend="reference",
    )
    assert all(a.cpu().equal(b) for a, b in zip(got, cpu))
    assert reference_ops.normal(torch.arange(2).cuda(), [2, 5], 1, CODES[torch.float32]).is_cuda
