"""combine and sum_squares on every backend: values, bits, shapes, strides, dtypes, gradients, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.ops import native, reference
from fastdiff.ops.reference_ops import row_width
from tests.tolerances import ROUNDING

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [(1, 1), (2, 3), (3, 4), (2, 5), (1, 127), (2, 1023), (2, 3, 32, 32), (5,), (3, 1, 1025), (2, 33_001)]


def case(shape, dtype, inputs, draws, outputs, clip, learned, rows, device, generator_seed=0):
    """Random arguments of combine for one shape; `learned` 2: with the square of the factor."""
    g = torch.Generator().manual_seed(generator_seed)
    wanted = [dtype, torch.bfloat16, torch.float32, torch.float16]
    x = [torch.randn(shape, generator=g, dtype=torch.float64).to(wanted[j % 4]) for j in range(inputs)]
    width = row_width(inputs + draws, outputs, clip, bool(learned), learned == 2)
    table = torch.randn(4 if rows else 1, width, generator=g, dtype=torch.float64)
    if clip:
        lo = outputs * (inputs + draws) + inputs + draws
        table[:, lo], table[:, lo + 1] = -0.5, 0.75
    if learned == 2:  # squares as large as factors without them
        slope = row_width(inputs + draws, outputs, clip, False)
        table[:, slope : slope + 2] /= 2
    arguments = {
        "rows": torch.randint(0, 4, (shape[0],), generator=g) if rows else None,
        "seeds": torch.randint(-(2**63), 2**63 - 1, (shape[0],), generator=g) if draws else None,
        "learned_variance": torch.randn(shape, generator=g).to(torch.float32) if learned else None,
    }
    moved = {k: None if v is None else v.to(device) for k, v in arguments.items()}
    return (
        [t.to(device) for t in x],
        table.to(dtype).to(device),
        moved | {"draws": list(range(3, 3 + draws)), "clip": clip},
    )


def exact(inputs, table, rows, seeds, draws, learned_variance, clip, outputs, shape) -> list[Tensor]:
    """The formula in float64."""
    v = [x.double() for x in inputs]
    v += [reference.normal(seeds.cpu(), shape, k).double().to(table.device) for k in draws]
    r = table.double() if rows is None else table.double()[rows]
    r = r.expand(shape[0], -1) if rows is None else r
    columns = [r[:, i].reshape(-1, *[1] * (len(shape) - 1)) for i in range(r.shape[1])]
    K, at = len(v), outputs * len(v)

    def linear(first: int) -> Tensor:
        return sum((columns[first + k] * v[k] for k in range(K)), torch.zeros(shape, dtype=torch.float64))

    v = [x.cpu() for x in v]
    columns = [c.cpu() for c in columns]
    y = [linear(m * K) for m in range(outputs)]
    if clip:
        p = torch.minimum(torch.maximum(linear(at), columns[at + K]), columns[at + K + 1])
        y = [y[m] + columns[at + K + 2 + m] * p for m in range(outputs)]
        at += K + 2 + outputs
    if learned_variance is not None:
        e = torch.exp(columns[at] * learned_variance.double().cpu() + columns[at + 1])
        at += 2
        y = [y[m] + e * linear(at + m * K) for m in range(outputs)]
        at += outputs * K
        if at < r.shape[1]:
            y = [y[m] + e**2 * linear(at + m * K) for m in range(outputs)]
            at += outputs * K
    assert at == r.shape[1] or learned_variance is None
    return y


CONFIGURATIONS = [  # inputs, draws, outputs, clip, learned, rows
    (1, 0, 1, False, False, False),
    (2, 1, 1, False, False, False),
    (2, 1, 2, False, False, True),
    (3, 2, 3, False, False, True),
    (2, 1, 1, True, False, False),
    (3, 0, 2, True, False, True),
    (2, 1, 1, False, True, False),
    (2, 1, 2, True, True, True),
    (8, 2, 3, True, True, True),
    (5, 0, 1, False, False, False),
    (3, 1, 1, False, 2, False),
    (2, 0, 3, False, 2, True),
    (8, 2, 3, True, 2, True),
    (2, 3, 1, False, False, False),
    (1, 7, 2, False, False, True),
    (3, 5, 2, True, False, True),
    (2, 4, 2, False, True, False),
    (3, 5, 2, True, 2, True),
]
LARGEST = (8, 64, 3, True, 2, True)


def test_most_draws(backend, device):
    """64 draws beside all there can be else."""
    inputs, draws, outputs, clip, learned, rows = LARGEST
    shape = (1, 11)  # an interpreter takes its time for draws
    x, table, arguments = case(shape, torch.float32, inputs, draws, outputs, clip, learned, rows, device)
    got = ops.combine(x, table, **arguments, out_dtypes=[torch.float32] * outputs, backend=backend)
    for y, want in zip(got, exact(x, table, **arguments, outputs=outputs, shape=shape)):
        assert ((y.cpu().double() - want).abs().max() / want.abs().max()) < ROUNDING[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(backend, device, shape, configuration, dtype):
    inputs, draws, outputs, clip, learned, rows = configuration
    x, table, arguments = case(shape, dtype, inputs, draws, outputs, clip, learned, rows, device)
    out_dtypes = [torch.float64 if dtype == torch.float64 else torch.float32] * outputs
    got = ops.combine(x, table, **arguments, out_dtypes=out_dtypes, backend=backend)
    for y, want in zip(got, exact(x, table, **arguments, outputs=outputs, shape=shape)):
        scale = want.abs().max().clamp(min=1)
        assert y.shape == want.shape
        assert ((y.cpu().double() - want).abs().max() / scale) < ROUNDING[dtype]
    if not learned or dtype == torch.float64:
        for y, want in zip(
            got,
            ops.combine(
                [t.cpu() for t in x],
                table.cpu(),
                **{k: v.cpu() if isinstance(v, Tensor) else v for k, v in arguments.items()},
                out_dtypes=out_dtypes,
                backend="reference",
            ),
        ):
            if learned:
                assert torch.allclose(y.cpu(), want, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])
            else:
                assert y.cpu().equal(want), "linear arithmetic and clipping must be the same bits on every backend"


@pytest.mark.parametrize("out_dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 3, 8, 31, 1025])
def test_every_dtype_in_and_out(backend, device, out_dtype, n):
    table = torch.tensor([[1.0, 0.5, -2.0, 0.25]], device=device)
    x = [torch.randn(2, n).to(d).to(device) for d in (torch.float32, torch.float16, torch.bfloat16, torch.float32)]
    (y,) = ops.combine(x, table, out_dtypes=[out_dtype], backend=backend)
    want = sum(c * t.float() for c, t in zip(table[0], x)).to(out_dtype)
    assert y.dtype == out_dtype
    assert y.equal(want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_casts_round_to_nearest_even_and_keep_specials(backend, device, dtype):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    every = bits.view(dtype).reshape(1, -1).to(device)
    (wide,) = ops.combine([every], torch.ones(1, 1, device=device), backend=backend)
    assert torch.equal(wide.isnan(), every.isnan())
    assert wide[~wide.isnan()].equal(every[~every.isnan()].float())
    values = torch.cat(
        [wide.nan_to_num(), wide.nan_to_num() * (1 + 2**-9), torch.randn(1, 4099, device=device) * 1e-6], 1
    )
    values = torch.cat(
        [values, torch.tensor([[float("inf"), -float("inf"), float("nan"), 65519.0, 65520.0, 1e38]], device=device)], 1
    )
    (narrow,) = ops.combine([values], torch.ones(1, 1, device=device), out_dtypes=[dtype], backend=backend)
    want = values.to(dtype)
    assert torch.equal(narrow.isnan(), want.isnan())
    assert narrow[~want.isnan()].equal(want[~want.isnan()])


def test_strides_and_alignment(backend, device):
    """Transposed, batch-strided, expanded and misaligned views give what their contiguous copies give."""
    base = torch.randn(4, 6, 5, 7, device=device)
    flat = torch.randn(4 * 210 + 3, device=device)
    views = [
        base[:, :3],
        base[:, 3:],
        base[:, ::2],
        base.transpose(2, 3)[:, :3].transpose(2, 3),
        base[:1, :3].expand(4, 3, 5, 7),
        flat[1 : 1 + 420].view(4, 3, 5, 7),
        flat[3 : 3 + 420].view(4, 3, 5, 7),
        base[:, :3].to(memory_format=torch.channels_last),
    ]
    table = torch.randn(1, len(views), device=device)
    (got,) = ops.combine(views, table, backend=backend)
    (want,) = ops.combine([v.contiguous() for v in views], table, backend=backend)
    assert got.equal(want) and got.is_contiguous()


def test_no_write_beyond_a_misaligned_output(backend, device):
    """Sentinels around an unaligned output stay; with noise the same."""
    for n in (1, 3, 4, 5, 63, 1027):
        for offset in range(4):
            store = torch.full((2 * n + 8,), 42.0, device=device)
            out = store[offset : offset + 2 * n].view(2, n)
            ops.combine(
                [],
                torch.ones(1, 1, device=device),
                seeds=torch.arange(2, device=device),
                draws=[0],
                out=[out],
                backend=backend,
            )
            assert (store[:offset] == 42).all() and (store[offset + 2 * n :] == 42).all()
            assert out.equal(ops.normal(torch.arange(2, device=device), (2, n), backend=backend))


def test_empty_batches_and_samples(backend, device):
    for shape in [(0, 3), (3, 0), (0,)]:
        x = torch.empty(shape, device=device)
        seeds = torch.arange(shape[0], device=device)
        table = torch.ones(1, 2, device=device)
        (y,) = ops.combine([x], table, seeds=seeds, draws=[0], backend=backend)
        assert y.shape == shape
        assert ops.sum_squares([x], table[:, :1], backend=backend).tolist() == [0.0] * shape[0]


def test_nan_passes_the_clip(backend, device):
    x = torch.tensor([[float("nan"), 3.0, -3.0, 0.5]], device=device)
    table = torch.tensor([[0.0, 1.0, -1.0, 1.0, 1.0]], device=device)
    (y,) = ops.combine([x], table, clip=True, backend=backend)
    assert y.isnan().tolist() == [[True, False, False, False]]
    assert y[0, 1:].tolist() == [1.0, -1.0, 0.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 32, 32), (1, 70_001)], ids=str)
def test_sum_squares(backend, device, shape, dtype):
    x, table, arguments = case(shape, dtype, 3, 1, 1, False, False, True, device)
    del arguments["clip"], arguments["learned_variance"]
    got = ops.sum_squares(x, table, **arguments, backend=backend)
    (y,) = ops.combine(x, table, **arguments, out_dtypes=[dtype], backend=backend)
    want = y.double().square().flatten(1).sum(1)
    assert got.dtype == torch.float64
    assert ((got - want).abs() / want).max() < ROUNDING[torch.float64]


def test_sum_squares_of_a_sample_are_the_same_in_any_batch_and_on_any_threads(backend, device):
    x = torch.randn(3, 40001, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    one, before, found = torch.ones(1, 1, dtype=torch.float64, device=device), torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(ops.sum_squares([x], one, backend=backend))
            found.append(torch.cat([ops.sum_squares([row], one, backend=backend) for row in x.split(1)]))
    finally:
        torch.set_num_threads(before)
    assert all(sums.equal(found[0]) for sums in found)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("learned", [False, True, 2])
@pytest.mark.parametrize("rows", [False, True])
def test_gradients(backend, device, clip, learned, rows):
    x, table, arguments = case((3, 5), torch.float64, 2, 1, 2, clip, learned, rows, device)
    x = [t.double().requires_grad_() for t in x]
    variance = arguments.pop("learned_variance")
    variance = None if variance is None else variance.double().requires_grad_()

    def function(a: Tensor, b: Tensor, v: Tensor | None) -> tuple[Tensor, ...]:
        out = [torch.float64, torch.float64]
        return tuple(ops.combine([a, b], table, **arguments, learned_variance=v, out_dtypes=out, backend=backend))

    assert torch.autograd.gradcheck(function, (*x, variance))


def opcheck_samples() -> dict[str, list[tuple]]:
    """Arguments for every operator of the namespace; an operator without an entry fails the test below."""
    x, table, a = case((2, 3, 5), torch.float32, 2, 1, 2, True, True, True, "cpu")
    x[1] = x[1].transpose(1, 2).contiguous().transpose(1, 2)
    full = (x, table, a["rows"], a["seeds"], a["draws"], a["learned_variance"], True)
    plain = (
        [x[0].clone().requires_grad_(), x[0].clone().requires_grad_()],
        torch.ones(1, 2),
        None,
        None,
        [],
        None,
        False,
    )
    y, wide, b = case((2, 3, 5), torch.float32, 2, 1, 2, False, 2, True, "cpu")
    squared = (y, wide, b["rows"], b["seeds"], b["draws"], b["learned_variance"], False)
    empty = ([torch.empty(0, 3)], torch.ones(1, 1), None, None, [], None, False)
    summed = (x, torch.ones(4, 3), a["rows"], a["seeds"], [0])
    return {
        "combine": [(*full, [6, 5]), (*squared, [6, 5]), (*plain, [6]), (*empty, [6])],
        "combine_out": [(*full, [torch.empty(2, 3, 5), torch.empty(2, 3, 5)])],
        "sum_squares": [summed],
        "normal": [(torch.arange(2), [2, 3], 1, 6), (torch.arange(0), [0, 3], 1, 15)],
    }


@pytest.mark.skipif(not native.available("cpu"), reason=native.reason("cpu"))
def test_opcheck_on_every_operator_of_the_namespace():
    names = {s.name.split("::")[1] for s in torch._C._jit_get_all_schemas() if s.name.startswith("fastdiff::")}
    samples = opcheck_samples()
    assert names == set(samples)
    for name, cases in samples.items():
        for arguments in cases:
            torch.library.opcheck(getattr(torch.ops.fastdiff, name).default, arguments)


@pytest.mark.skipif(not native.available("cpu"), reason=native.reason("cpu"))
def test_fullgraph_compile():
    def step(x: Tensor, f: Tensor, table: Tensor, seeds: Tensor) -> Tensor:
        (y,) = torch.ops.fastdiff.combine([x, f.tanh()], table, None, seeds, [1], None, False, [6])
        return y * 2

    arguments = torch.randn(3, 7), torch.randn(3, 7), torch.randn(1, 3), torch.arange(3)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert compiled(*arguments).equal(step(*arguments))


REFUSALS = {
    "inputs": lambda a: a | {"inputs": [torch.zeros(2, 3), torch.zeros(2, 4)]},
    "inputs dtype": lambda a: a | {"inputs": [torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int32)]},
    "inputs float64": lambda a: a | {"inputs": [torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.float64)]},
    "too many inputs": lambda a: a | {"inputs": [torch.zeros(2, 3)] * 9},
    "scalar inputs": lambda a: a | {"inputs": [torch.zeros(()), torch.zeros(())]},
    "table": lambda a: a | {"table": torch.zeros(1, 4)},
    "table dtype": lambda a: a | {"table": torch.zeros(1, 3, dtype=torch.float16)},
    "table empty": lambda a: a | {"table": torch.zeros(0, 3)},
    "rows": lambda a: a | {"rows": torch.zeros(3, dtype=torch.int64)},
    "rows dtype": lambda a: a | {"rows": torch.zeros(2)},
    "rows range": lambda a: a | {"rows": torch.tensor([0, 1])},
    "rows negative": lambda a: a | {"rows": torch.tensor([0, -1])},
    "seeds": lambda a: a | {"seeds": torch.zeros(3, dtype=torch.int64)},
    "seeds dtype": lambda a: a | {"seeds": torch.zeros(2)},
    "seeds missing": lambda a: a | {"seeds": None},
    "draws": lambda a: a | {"draws": [-1]},
    "draws too large": lambda a: a | {"draws": [2**32]},
    "draws too many": lambda a: a | {"draws": list(range(65))},
    "learned_variance": lambda a: a | {"learned_variance": torch.zeros(2, 4), "table": torch.zeros(1, 8)},
    "table learned": lambda a: a | {"learned_variance": torch.zeros(2, 3), "table": torch.zeros(1, 9)},
    "table squared": lambda a: a | {"learned_variance": torch.zeros(2, 3), "table": torch.zeros(1, 14)},
    "table squared alone": lambda a: a | {"table": torch.zeros(1, 6)},
    "out": lambda a: a | {"out": [torch.zeros(2, 4)]},
    "out alias": lambda a: a | {"out": [a["inputs"][0]]},
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_name_the_operator_and_the_argument(backend, device, name):
    if name in ("rows range", "rows negative") and device != "cpu":
        pytest.skip("the values of rows are on the GPU: reading them would wait for it")
    with torch.device(device):
        good = {
            "inputs": [torch.zeros(2, 3), torch.zeros(2, 3)],
            "table": torch.zeros(1, 3),
            "rows": None,
            "seeds": torch.arange(2),
            "draws": [0],
        }
        arguments = REFUSALS[name](good)
    with pytest.raises((RuntimeError, ValueError)) as raised:
        ops.combine(arguments.pop("inputs"), arguments.pop("table"), **arguments, backend=backend)
    assert "combine" in str(raised.value)
    argument = name.split()[-1] if name.split()[0] in ("too", "scalar") else name.split()[0]
    assert argument in str(raised.value)


def test_resolve_backend(monkeypatch):
    with pytest.raises(ValueError, match="backend must be one of"):
        ops.resolve_backend("gpu")
    with pytest.raises(ValueError, match="backend='cuda' runs on cuda tensors"):
        ops.resolve_backend("cuda", "cpu")
    monkeypatch.setenv("FASTDIFF_BACKEND", "nonsense")
    with pytest.raises(ValueError, match="FASTDIFF_BACKEND must be one of"):
        ops.resolve_backend(None)
    monkeypatch.setenv("FASTDIFF_BACKEND", "reference")
    assert ops.resolve_backend(None) == "reference"
    assert ops.resolve_backend("auto") == ("cpu" if native.available("cpu") else "reference")
