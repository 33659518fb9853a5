"""The CUDA part without a GPU: its threads run one by one on the host, and its library loads and registers."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff import Sampler, ops
from fastdiff.ops import native
from fastdiff.ops.reference_ops import row_width

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "csrc"))
import toolchain  # noqa: E402

CODES = {torch.float16: 5, torch.float32: 6, torch.float64: 7, torch.bfloat16: 15}
HUGE = 2**62  # bytes of a cache that holds everything
FLOAT, BF16, HALF = torch.float32, torch.bfloat16, torch.float16
OPERATORS = ("combine", "combine_out", "sum_squares", "normal")


@pytest.fixture(scope="session")
def cuda() -> toolchain.Cuda:
    """The CUDA toolkit."""
    try:
        return toolchain.find_cuda(toolchain.find_torch())
    except toolchain.BuildError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def host(cuda: toolchain.Cuda, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """host_loop.cu as a library."""
    folder = tmp_path_factory.mktemp("cuda")
    flags = ["-O1", "-std=c++20", "-fmad=false", "-Xcompiler=-fPIC,-ffp-contract=off", f"-I{ROOT / 'csrc'}"]
    source = Path(__file__).parent / "cuda/host_loop.cu"
    subprocess.run([cuda.nvcc, *flags, "-arch=sm_90", "-c", source, "-o", folder / "host_loop.o"], check=True)
    runtime = toolchain.cuda_runtime(cuda)
    link = [*toolchain.find_compiler(), "-shared", folder / "host_loop.o", runtime, f"-Wl,-rpath,{runtime.parent}"]
    subprocess.run([*link, "-o", folder / "host_loop.so"], check=True)
    return ctypes.CDLL(str(folder / "host_loop.so"))


class Launched(ctypes.Structure):
    """What host_loop.cu launched: a fixed form?, quads to a thread, streaming?, whole words?, geometry, units run."""

    _fields_ = [
        (name, ctypes.c_int)
        for name in ("fixed", "quads", "stream", "aligned", "threads_x", "threads_y", "blocks", "units")
    ]


def pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[Any]:
    return (ctypes.c_void_p * len(tensors))(*[None if t is None else t.data_ptr() for t in tensors])


def call(
    inputs: Sequence[Tensor],
    table: Tensor,
    rows: Tensor | None = None,
    seeds: Tensor | None = None,
    draws: Sequence[int] = (),
    learned_variance: Tensor | None = None,
    clip: bool = False,
    outputs: Sequence[Tensor] = (),
    shape: Sequence[int] = (),
) -> list[Any]:
    """The arguments of host_loop.cu's functions. Tensors are [B, elements]."""
    batch, elements = shape or inputs[0].shape
    numbers = [batch, elements, CODES[table.dtype], len(inputs), len(draws), len(outputs), int(clip)]
    learned = learned_variance is not None
    squared = learned and table.shape[1] > row_width(len(inputs) + len(draws), len(outputs), clip, learned)
    numbers += [learned + squared, *draws]
    read = [*inputs, *([] if learned_variance is None else [learned_variance])]
    moved = [*read, *outputs]
    return [
        (ctypes.c_int64 * len(numbers))(*numbers),
        pointers([table, rows, seeds, *moved]),
        (ctypes.c_int64 * max(1, len(read)))(*[t.stride(0) for t in read]),
        (ctypes.c_int * max(1, len(moved)))(*[CODES[t.dtype] for t in moved]),
    ]


def arguments(
    shape: tuple[int, int], dtype: torch.dtype, inputs: int, draws: int, outputs: int, clip: bool, learned: int
) -> dict[str, Any]:
    """Random arguments of combine: inputs of every type, rows in disorder, seeds of 64 bits; `learned` 2: with the
    square of the factor."""
    g = torch.Generator().manual_seed(1)
    kinds = [dtype, torch.bfloat16, torch.float32, torch.float16]
    width = row_width(inputs + draws, outputs, clip, learned > 0, learned == 2)
    table = torch.randn(4, width, generator=g, dtype=dtype)
    if clip:
        low = outputs * (inputs + draws) + inputs + draws
        table[:, low], table[:, low + 1] = -0.5, 0.75
    return {
        "inputs": [torch.randn(shape, generator=g, dtype=torch.float64).to(kinds[j % 4]) for j in range(inputs)],
        "table": table,
        "rows": torch.randint(0, 4, shape[:1], generator=g),
        "seeds": torch.randint(-(2**63), 2**63 - 1, shape[:1], generator=g) if draws else None,
        "draws": [2**32 - 1, *range(7, 6 + draws)][:draws],
        "learned_variance": torch.randn(shape, generator=g) if learned else None,
        "clip": clip,
    }


def combine(
    host: ctypes.CDLL, given: dict[str, Any], out: Sequence[Tensor], cache: int = HUGE, run: int = 1
) -> Launched:
    """host_combine: the launch that was chosen, and its results in ``out``."""
    launched = Launched()
    host.host_combine(*call(**given, outputs=out), ctypes.c_int64(cache), run, ctypes.byref(launched))
    return launched


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("inputs", "draws", "outputs", "clip", "learned"),
    [
        (1, 0, 1, 0, 0),
        (2, 1, 2, 0, 0),
        (2, 2, 3, 1, 0),
        (3, 1, 1, 1, 0),
        (4, 0, 2, 0, 0),
        (8, 2, 3, 1, 1),
        (5, 1, 1, 0, 1),
        (3, 1, 1, 0, 2),
        (8, 2, 3, 1, 2),
        (2, 3, 1, 0, 0),
        (1, 33, 2, 0, 0),
        (3, 5, 2, 1, 0),
        (2, 4, 3, 0, 2),
        (8, 64, 3, 1, 2),
    ],
)
@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (2, 7), (2, 64), (3, 1025), (2, 4096)], ids=str)
def test_the_general_form_is_the_reference_bit_for_bit(
    host: ctypes.CDLL,
    shape: tuple[int, int],
    inputs: int,
    draws: int,
    outputs: int,
    clip: int,
    learned: int,
    dtype: torch.dtype,
) -> None:
    given = arguments(shape, dtype, inputs, draws, outputs, bool(clip), learned)
    types = [dtype, torch.float16, torch.bfloat16][:outputs]
    want = ops.combine(**given, out_dtypes=types, backend="reference")
    got = [torch.full(shape, 42.0, dtype=t) for t in types]
    assert combine(host, given, got).fixed == 0
    for y, expected in zip(got, want):
        if learned:
            torch.testing.assert_close(y, expected)
        else:
            assert y.equal(expected)


# Every fixed form, as (inputs, draws, outputs, clip): in float32, ...
FLOAT_FORMS = [(0, 1, 1, 0), (1, 0, 1, 0), (2, 0, 1, 0), (2, 0, 2, 0), (2, 1, 1, 0), (2, 1, 2, 0), (3, 0, 1, 0)]
FLOAT_FORMS += [(3, 0, 2, 0), (3, 1, 1, 0), (3, 1, 2, 0), (5, 0, 2, 0), (5, 1, 2, 0)]
FLOAT_FORMS += [(2, 0, 1, 1), (2, 0, 2, 1), (2, 1, 1, 1)]
FORMS = [([FLOAT] * inputs, draws, [FLOAT] * outputs, clip) for inputs, draws, outputs, clip in FLOAT_FORMS]
# ... and with the inputs of a 16-bit type at these places; either output may be of that type.
SHORT_FORMS = {(1, 0, 1, 0): [{0}], (2, 0, 1, 0): [{1}], (2, 0, 2, 0): [{1}], (2, 1, 1, 0): [{1}], (2, 1, 2, 0): [{1}]}
SHORT_FORMS |= {(3, 0, 1, 0): [{1}], (3, 0, 2, 0): [{1}, {1, 2}], (3, 1, 1, 0): [{1}], (3, 1, 2, 0): [{1}, {1, 2}]}
SHORT_FORMS |= {(5, 0, 2, 0): [{1, 3}], (5, 1, 2, 0): [{1, 3}]}
SHORT_FORMS |= {(2, 0, 1, 1): [{1}], (2, 0, 2, 1): [{1}], (2, 1, 1, 1): [{1}], (2, 1, 2, 1): [{1}]}
FORMS += [
    ([short if j in places else FLOAT for j in range(inputs)], draws, list(types), clip)
    for short in (BF16, HALF)
    for (inputs, draws, outputs, clip), patterns in SHORT_FORMS.items()
    for places in patterns
    for types in ([(FLOAT,), (short,)] if outputs == 1 else [(FLOAT, FLOAT), (FLOAT, short), (short, FLOAT)])
]
Form = tuple[list[torch.dtype], int, list[torch.dtype], int]


def fixed_arguments(shape: tuple[int, int], form: Form) -> dict[str, Any]:
    """Random arguments without rows and learned variance."""
    inputs, draws, outputs, clip = form
    given = arguments(shape, FLOAT, len(inputs), draws, len(outputs), bool(clip), 0)
    g = torch.Generator().manual_seed(2)
    given["inputs"] = [torch.randn(shape, generator=g).to(dtype) for dtype in inputs]
    if clip:  # NaN passes, infinities are clamped
        given["inputs"][0][0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    return {**given, "rows": None}


def name(form: Form) -> str:
    letters = {FLOAT: "f", BF16: "b", HALF: "h"}
    inputs, draws, outputs, clip = form
    columns = "".join(letters[t] for t in inputs) + f"-z{draws}-" + "".join(letters[t] for t in outputs)
    return columns + "-clip" * clip


@pytest.mark.parametrize("form", FORMS, ids=name)
def test_every_fixed_form_is_the_reference_bit_for_bit(host: ctypes.CDLL, form: Form) -> None:
    """Each for small and large tensors; samples that fill their blocks and others; one sample, several, many short."""
    inputs, draws, outputs, _ = form
    for shape in ((1, 4), (300, 28), (3, 1024), (2, 2056), (2, 4100)):
        given = fixed_arguments(shape, form)
        source = dict(given)
        if not inputs:  # the reference takes the shape from an input
            source["inputs"] = [torch.zeros(shape)]
            source["table"] = torch.cat([torch.ones(len(given["table"]), 1), given["table"]], 1)
        want = ops.combine(**source, out_dtypes=outputs, backend="reference")
        for cache in (HUGE, 0):
            got = [torch.full(shape, 42.0, dtype=t) for t in outputs]
            arguments_ = given if inputs else {**given, "shape": shape}
            launched = combine(host, arguments_, got, cache)
            quads = 2 if cache == 0 and not (len(inputs) > 2 and draws) else 1
            assert (launched.fixed, launched.aligned) == (1, 1)
            assert (launched.quads, launched.stream) == (quads, cache == 0)
            for y, expected in zip(got, want):
                torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)


def test_only_what_fits_is_launched_in_a_fixed_form(host: ctypes.CDLL) -> None:
    """Words of 16 bytes, or 8 of a 16-bit type; samples of whole quads; no rows; offsets of 32 bits."""
    table = torch.tensor([[0.5, 2.0]])
    store = torch.randn(10_000)
    flat, short = store[:8192].view(2, -1), store.bfloat16()

    def launch(x: Tensor, y: Tensor, run: int = 1, **more: Any) -> Launched:
        out = torch.full(x.shape if run else (1, 1), 42.0)
        given = {"inputs": [x, y], "table": table, **more}
        launched = combine(host, given, [out], run=run)
        if run:
            assert out.equal(ops.combine(**given, backend="reference")[0])
        return launched

    def fixed(*tensors: Tensor, **more: Any) -> tuple[int, int]:
        launched = launch(*tensors, **more)
        return launched.fixed, launched.aligned

    assert fixed(flat, flat) == (1, 1)
    assert fixed(flat, short[:8192].view(2, -1)) == (1, 1)
    assert fixed(flat, short[4:8196].view(2, -1)) == (1, 1)  # 8 bytes
    assert fixed(flat, short[2:8194].view(2, -1)) == (0, 0)  # 4 bytes
    assert fixed(store[1:8193].view(2, -1), flat) == (0, 0)
    assert fixed(flat[:1, 4:8].expand(5, -1), flat[:1, 8:12].expand(5, -1)) == (1, 1)  # stride 0
    assert fixed(flat[:, :100], flat[:, 4:104]) == (1, 1)  # gaps between samples
    assert fixed(flat[:, :6], flat[:, :6]) == (0, 0)  # the second sample of the output starts at 24 bytes
    assert fixed(flat[:1, :6], flat[:1, :6]) == (0, 1)  # half a quad
    assert fixed(flat, flat, rows=torch.zeros(2, dtype=torch.int64)) == (0, 1)
    assert fixed(flat, flat.double().half().float().bfloat16()) == (1, 1)
    assert fixed(flat.half(), flat.bfloat16()) == (0, 1)
    large = torch.empty(2, 2**31 + 4, device="meta")
    assert launch(large, large, run=0).fixed == 0
    assert launch(large[:1], large[:1], run=0).fixed == 1


@pytest.mark.parametrize(
    ("batch", "elements", "threads", "blocks"),
    [
        (1, 28, (8, 1), 1),
        (64, 28, (8, 4), 16),
        (4096, 28, (8, 16), 256),
        (100_000, 4, (1, 256), 391),
        (1, 3072, (32, 1), 24),
        (64, 3072, (256, 1), 192),
        (512, 3072, (256, 1), 1536),
        (70_000, 3072, (256, 1), 3 * 2 * 65535),
    ],
)
def test_grids(host: ctypes.CDLL, batch: int, elements: int, threads: tuple[int, int], blocks: int) -> None:
    """Short samples share blocks of at most 256 threads; few threads are spread over many blocks."""
    x = torch.empty(batch, elements, device="meta")
    launched = combine(host, {"inputs": [x], "table": torch.ones(1, 1)}, [torch.empty(1, 1)], run=0)
    assert ((launched.threads_x, launched.threads_y), launched.blocks) == (threads, blocks)


def pull(x: Tensor, level: Any) -> Tensor:
    """A guidance term."""
    return -x.float() / (1 + level.sigma**2)


@pytest.mark.parametrize(
    ("model_dtype", "output_dtype"), [(None, FLOAT), (None, BF16), (BF16, BF16), (HALF, HALF)], ids=str
)
@pytest.mark.parametrize(
    "settings",
    [
        {"solver": "heun", "prediction": "edm"},
        {"solver": "heun", "prediction": "edm", "S_churn": 10.0},
        {"solver": "euler", "prediction": "edm"},
        {"solver": "ddim", "process": "vp", "prediction": "eps"},
        {"solver": "ddim", "process": "vp", "prediction": "v", "eta": 1.0},
        {"solver": "ddpm", "process": "vp", "prediction": "eps"},
        {"solver": "heun", "prediction": "edm", "guidance": pull},
        {"solver": "heun", "prediction": "edm", "guidance": pull, "S_churn": 10.0},
        {"solver": "euler", "prediction": "edm", "guidance": pull},
        {"solver": "ddim", "process": "vp", "prediction": "eps", "guidance": pull, "eta": 1.0},
        {"solver": "ddpm", "process": "vp_cosine", "prediction": "eps", "clip_denoised": True},
        {"solver": "ddim", "process": "vp_cosine", "prediction": "eps", "clip_denoised": True},
        {"solver": "ddim", "process": "vp", "prediction": "v", "clip_denoised": True, "eta": 0.5},
        {"solver": "euler", "prediction": "edm", "clip_denoised": True},
    ],
    ids=lambda s: "-".join(getattr(value, "__name__", str(value)) for value in s.values()),
)
def test_plans_launch_fixed_forms(
    host: ctypes.CDLL,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    model_dtype: torch.dtype | None,
    output_dtype: torch.dtype,
) -> None:
    """All that plans launch after the first network evaluation, unless it computes in float64."""
    launches: list[int] = []
    run = native.operation("combine_out", "reference")

    def recorded(*arguments: Any) -> None:
        inputs, table, rows, seeds, draws, variance, clip, out = arguments
        names = ("inputs", "table", "rows", "seeds", "draws", "learned_variance", "clip")
        flat = [x.reshape(len(x), -1) for x in inputs]
        given = dict(zip(names, (flat, table, rows, seeds, draws, variance, clip)))
        if inputs and table.dtype == FLOAT:
            launches.append(combine(host, given, out, run=0).fixed)
        run(*arguments)

    monkeypatch.setattr(native, "operation", lambda *_: recorded)
    model = lambda x, t: 0.5 * x.to(output_dtype)  # noqa: E731
    Sampler(model, steps=6, model_dtype=model_dtype, backend="reference", **settings)((2, 3, 8, 8), seeds=[1, 2])
    assert len(launches) > 4 and all(launches)


def test_nothing_is_written_beyond_the_output(host: ctypes.CDLL) -> None:
    table = torch.ones(1, 1)
    for elements in (1, 3, 4, 5, 9, 1023):
        for offset in range(4):
            store = torch.full((2 * elements + 8,), 42.0)
            out = store[offset : offset + 2 * elements].view(2, elements)
            seeds = torch.arange(2)
            given = call([], table, seeds=seeds, draws=[0], outputs=[out], shape=out.shape)
            host.host_combine(*given, ctypes.c_int64(HUGE), 1, ctypes.byref(Launched()))
            assert out.equal(ops.normal(seeds, out.shape, backend="reference"))
            assert (store[:offset] == 42).all() and (store[offset + 2 * elements :] == 42).all()


@pytest.mark.parametrize("dtype", CODES, ids=str)
@pytest.mark.parametrize("elements", [1, 4, 31, 4096, 100_001])
def test_normals_are_the_contract(host: ctypes.CDLL, elements: int, dtype: torch.dtype) -> None:
    seeds, launched = torch.tensor([0, 1, -1, 2**63 - 1]), Launched()
    for cache in (HUGE, 0):
        out = torch.empty(4, elements, dtype=dtype)
        given = call([], torch.ones(1, 1), seeds=seeds, draws=[3], outputs=[out], shape=out.shape)
        host.host_normal(*given, ctypes.c_int64(cache), ctypes.byref(launched))
        assert launched.fixed == (dtype == FLOAT and elements % 4 == 0)
        assert out.equal(ops.normal(seeds, out.shape, 3, dtype, backend="reference"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("elements", [1, 6, 1024, 5001])
def test_sum_squares(host: ctypes.CDLL, elements: int, dtype: torch.dtype) -> None:
    given = arguments((3, elements), dtype, 3, 1, 1, False, 0)
    sums = torch.zeros(3, dtype=torch.float64)
    host.host_sum_squares(*call(**given), ctypes.c_void_p(sums.data_ptr()))
    del given["learned_variance"], given["clip"]
    torch.testing.assert_close(sums, ops.sum_squares(**given, backend="reference"), rtol=1e-13, atol=0)


def test_the_cross_built_library_loads_and_registers(cuda: toolchain.Cuda, tmp_path: Path) -> None:
    """With stand-ins for the two libraries that a CPU-only torch lacks, every symbol resolves."""
    if not list((ROOT / "fastdiff").glob("_cuda.abi3.so")):
        pytest.skip("fastdiff._cuda is not built here; FASTDIFF_BUILD=cuda builds it")
    if torch.version.cuda:
        pytest.skip("a CUDA build of torch loads it without stand-ins")
    stub = tmp_path / "stub.cpp"
    stub.write_text('extern "C" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }\n')
    flags = ["-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so", "-o", tmp_path / "stub.so"]
    subprocess.run([*toolchain.find_compiler(), stub, *flags], check=True)
    script = f"""
        import ctypes, torch
        for library in ({str(toolchain.cuda_runtime(cuda))!r}, {str(tmp_path / "stub.so")!r}):
            ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
        import fastdiff._C, fastdiff._cuda
        for name in {OPERATORS}:
            assert torch._C._dispatch_has_kernel_for_dispatch_key("fastdiff::" + name, "CUDA"), name
    """
    environment = {"LD_BIND_NOW": "1", "PYTHONPATH": str(ROOT), "PATH": ""}
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, env=environment)
