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

from fastdiff import ops
from fastdiff.ops.reference_ops import row_width

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "csrc"))
import toolchain  # noqa: E402

CODES = {torch.float16: 5, torch.float32: 6, torch.float64: 7, torch.bfloat16: 15}
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
    numbers += [int(learned_variance is not None), *draws, 0, 0]
    read = [*inputs, *([] if learned_variance is None else [learned_variance])]
    moved = [*read, *outputs]
    return [
        (ctypes.c_int64 * len(numbers))(*numbers),
        pointers([table, rows, seeds, *moved]),
        (ctypes.c_int64 * max(1, len(read)))(*[t.stride(0) for t in read]),
        (ctypes.c_int * max(1, len(moved)))(*[CODES[t.dtype] for t in moved]),
    ]


def arguments(
    shape: tuple[int, int], dtype: torch.dtype, inputs: int, draws: int, outputs: int, clip: bool, learned: bool
) -> dict[str, Any]:
    """Random arguments of combine: inputs of every type, rows in disorder, seeds of 64 bits."""
    g = torch.Generator().manual_seed(1)
    kinds = [dtype, torch.bfloat16, torch.float32, torch.float16]
    table = torch.randn(4, row_width(inputs + draws, outputs, clip, learned), generator=g, dtype=dtype)
    if clip:
        low = outputs * (inputs + draws) + inputs + draws
        table[:, low], table[:, low + 1] = -0.5, 0.75
    return {
        "inputs": [torch.randn(shape, generator=g, dtype=torch.float64).to(kinds[j % 4]) for j in range(inputs)],
        "table": table,
        "rows": torch.randint(0, 4, shape[:1], generator=g),
        "seeds": torch.randint(-(2**63), 2**63 - 1, shape[:1], generator=g) if draws else None,
        "draws": [2**32 - 1, 7][:draws],
        "learned_variance": torch.randn(shape, generator=g) if learned else None,
        "clip": clip,
    }


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
    ],
)
@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (2, 7), (2, 64), (3, 1025), (2, 4096)], ids=str)
def test_combine_is_the_reference_bit_for_bit(
    host: ctypes.CDLL,
    shape: tuple[int, int],
    inputs: int,
    draws: int,
    outputs: int,
    clip: int,
    learned: int,
    dtype: torch.dtype,
) -> None:
    given = arguments(shape, dtype, inputs, draws, outputs, bool(clip), bool(learned))
    types = [dtype, torch.float16, torch.bfloat16][:outputs]
    want = ops.combine(**given, out_dtypes=types, backend="reference")
    for V in (4, 8):
        got = [torch.full(shape, 42.0, dtype=t) for t in types]
        assert abs(host.host_combine(*call(**given, outputs=got), V)) == V
        for y, expected in zip(got, want):
            if learned:
                torch.testing.assert_close(y, expected)
            else:
                assert y.equal(expected)


def test_a_launch_takes_whole_words_where_it_can(host: ctypes.CDLL) -> None:
    """8 elements to a thread for much 2-byte data, 4 otherwise; one by one where any address does not allow words."""
    table = torch.tensor([[0.5, 2.0]])

    def chosen(x: Tensor, y: Tensor) -> int:
        out = torch.empty(x.shape)
        taken = host.host_combine(*call([x, y], table, outputs=[out]), 0)
        assert out.equal(ops.combine([x, y], table, backend="reference")[0])
        return taken

    store = torch.randn(2 * 600_000 + 8)
    flat = store[: 2 * 600_000].view(2, -1)
    short = store.bfloat16()
    assert chosen(flat, flat) == 4
    assert chosen(flat, short[: 2 * 600_000].view(2, -1)) == 8
    assert chosen(flat[:, :1024], short[:2048].view(2, -1)) == 4
    assert chosen(flat, short[1 : 2 * 600_000 + 1].view(2, -1)) == -4
    assert chosen(store[1:2049].view(2, -1), flat[:, :1024]) == -4
    assert chosen(flat[:1, 4:8].expand(5, -1), flat[:1, 8:12].expand(5, -1)) == 4  # stride 0
    assert chosen(flat[:, :6], flat[:, :6]) == -4  # the second sample of the output starts at 24 bytes


def test_nothing_is_written_beyond_the_output(host: ctypes.CDLL) -> None:
    table = torch.ones(1, 1)
    for elements in (1, 3, 4, 5, 9, 1023):
        for offset in range(4):
            store = torch.full((2 * elements + 8,), 42.0)
            out = store[offset : offset + 2 * elements].view(2, elements)
            seeds = torch.arange(2)
            given = call([], table, seeds=seeds, draws=[0], outputs=[out], shape=out.shape)
            host.host_combine(*given, 4)
            assert out.equal(ops.normal(seeds, out.shape, backend="reference"))
            assert (store[:offset] == 42).all() and (store[offset + 2 * elements :] == 42).all()


@pytest.mark.parametrize("dtype", CODES, ids=str)
@pytest.mark.parametrize("elements", [1, 4, 31, 4096, 100_001])
def test_normals_are_the_contract(host: ctypes.CDLL, elements: int, dtype: torch.dtype) -> None:
    seeds = torch.tensor([0, 1, -1, 2**63 - 1])
    out = torch.empty(4, elements, dtype=dtype)
    host.host_normal(*call([], torch.ones(1, 1), seeds=seeds, draws=[3], outputs=[out], shape=out.shape))
    assert out.equal(ops.normal(seeds, out.shape, 3, dtype, backend="reference"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("elements", [1, 6, 1024, 5001])
def test_sum_squares(host: ctypes.CDLL, elements: int, dtype: torch.dtype) -> None:
    given = arguments((3, elements), dtype, 3, 1, 1, False, False)
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
