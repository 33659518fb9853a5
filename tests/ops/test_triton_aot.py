"""The Triton kernels compiled for sm_90, on any machine: registers, spills, widths of memory accesses, rounding.

The launchers run as they do on a GPU, with a stand-in for Triton's driver, and each launch is compiled instead.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fastdiff import ops
from fastdiff.ops.reference_ops import row_width

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton interprets in this process")

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16


class Hopper:
    """What Triton asks a driver when it only compiles."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self):
        return torch.device("cuda", 0)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


@dataclass
class Compiled:
    """The kernel of one launch.

    Attributes:
        ptx: its assembly.
        cubin: file of its machine code.
        elements: computed by a thread.
    """

    ptx: str
    cubin: Path
    elements: int

    def disassemble(self, tool: str, option: str) -> str:
        path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
        return subprocess.run([path, option, self.cubin], capture_output=True, text=True, check=True).stdout

    def resources(self) -> dict[str, int]:
        """REG, STACK, LOCAL (of a thread) and SHARED (of a block)."""
        report = self.disassemble("cuobjdump", "-res-usage")
        return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", report)}

    def sass(self) -> list[str]:
        """Names of the instructions, in order, without padding."""
        report = self.disassemble("nvdisasm", "-c")
        names = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+ +)?([A-Z][A-Z0-9_.]*)", report, re.MULTILINE)
        return [name for name in names if name != "NOP"]

    def inexact(self) -> set[str]:
        """Floating-point arithmetic of the PTX that ptxas may fuse or that does not round to nearest even."""
        pattern = r"^\s*(?:@!?%p\d+ )?([a-z]\w*(?:\.\w+)*\.f(?:16|32|64)\w*)\s"
        names = set(re.findall(pattern, self.ptx, re.MULTILINE))
        moves = ("mov", "setp", "selp", "cvt", "ld", "st")
        exact = {f"{op}.rn.{kind}" for op in ("add", "sub", "mul") for kind in ("f32", "f64")} | {"sqrt.rn.f32"}
        return {n for n in names if ".ftz" in n or (n.split(".")[0] not in moves and n not in exact)}

    def accesses(self, what: str) -> set[str]:
        """Kinds of the loads ("ld") or stores ("st") of global memory, as in {"v4.b32"}."""
        return set(re.findall(rf"\b{what}\.global(?:\.L\w+::\w+)*\.((?:v\d\.)?b\d+)", self.ptx))


class Compiler:
    """Compiles what is launched; `fusion` overrides the launchers' choice."""

    def __init__(self, folder: Path):
        self.folder, self.launches, self.fusion = folder, [], None

    def record(self, kernel, block: int, warps: int) -> None:
        cubin = self.folder / f"{len(self.launches)}.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        self.launches.append(Compiled(kernel.asm["ptx"], cubin, block // (32 * warps)))


@pytest.fixture
def compiler(monkeypatch, tmp_path) -> Iterator[Compiler]:
    from triton.runtime import JITFunction, driver

    from fastdiff.ops import triton_ops

    compiler, run = Compiler(tmp_path), JITFunction.run

    def compile_only(kernel, *arguments, grid, warmup, **options):
        if compiler.fusion is not None:
            options["enable_fp_fusion"] = compiler.fusion
        done = run(kernel, *arguments, grid=grid, warmup=True, **options)
        compiler.record(done, arguments[-1], options["num_warps"])

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(driver, "_active", Hopper())
    triton_ops._warp_size.cache_clear()
    yield compiler
    triton_ops._warp_size.cache_clear()


@dataclass
class Launch:
    """A launch of combine: dtypes of its inputs and outputs, draws, and the rest of its form; `learned` 2: with the
    square of the factor."""

    inputs: tuple[torch.dtype, ...]
    outputs: tuple[torch.dtype, ...]
    draws: int = 0
    table: torch.dtype = F32
    clip: bool = False
    learned: int = 0
    rows: bool = False

    def run(
        self, shape: tuple[int, ...] = (64, 3, 32, 32), draws: tuple[int, ...] = (3, 2**32 - 1, *range(4, 66))
    ) -> None:
        from fastdiff.ops import triton_ops

        width = row_width(
            len(self.inputs) + self.draws, len(self.outputs), self.clip, self.learned > 0, self.learned == 2
        )
        per_sample = torch.zeros(shape[0], dtype=torch.int64)
        triton_ops.combine_out(
            [torch.zeros(shape, dtype=d) for d in self.inputs],
            torch.zeros(2, width, dtype=self.table),
            per_sample if self.rows else None,
            per_sample if self.draws else None,
            draws[: self.draws],
            torch.zeros(shape) if self.learned else None,
            self.clip,
            [torch.empty(shape, dtype=d) for d in self.outputs],
        )


# A multiprocessor has 65,536 registers for at most 2048 threads. With 32 a thread all of them run, each with two
# 16-byte loads under way: 64 KiB, more than hides the memory's latency (48 KiB on sm_90). With 64 half of them run;
# those read more tensors, or compute so much that memory is not what they wait for.
# name: launch, registers, instructions an element (static: with the square root's slow path, hardly ever taken)
LAUNCHES = {
    "deterministic": (Launch((F32, F32), (F32,)), 32, 20),
    "deterministic, bfloat16 network": (Launch((F32, BF16), (F32, BF16)), 32, 30),
    "noise": (Launch((F32, F32), (F32,), draws=1), 32, 90),
    "noise, bfloat16": (Launch((BF16, BF16), (BF16,), draws=1), 32, 95),
    "noise, bfloat16 network": (Launch((F32, BF16), (F32, BF16), draws=1), 32, 100),
    "latent": (Launch((), (F32,), draws=1), 32, 80),
    "two draws": (Launch((F32, F32), (F32, F32), draws=2), 64, 160),
    "float64": (Launch((F64, F32), (F64, F32), draws=1, table=F64), 64, 115),
    "learned variance": (Launch((F32, F32), (F32, F16), 1, clip=True, learned=1, rows=True), 64, 165),
    "guided learned variance": (Launch((F32, F32, F32), (F32,), 1, clip=True, learned=2), 64, 165),
    "largest": (Launch((F32,) * 8, (F32,) * 3, 2, clip=True, learned=1, rows=True), 128, 370),
    "largest, guided": (Launch((F32,) * 8, (F32,) * 3, 2, clip=True, learned=2, rows=True), 128, 430),
    "path": (Launch((F32, F32), (F32,), draws=33), 32, 95),  # once through the loop over draws
    "path, bfloat16 network": (Launch((F32, BF16), (F32, BF16), draws=33), 40, 110),
    "largest, many draws": (Launch((F32,) * 8, (F32,) * 3, 64, clip=True, learned=2, rows=True), 128, 400),
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_compiled_combine(compiler, name):
    launch, registers, instructions = LAUNCHES[name]
    launch.run()
    (kernel,) = compiler.launches
    used, sass = kernel.resources(), kernel.sass()
    count = len(sass) / kernel.elements
    print(f"{name}: {used['REG']} registers, {count:.1f} instructions an element")
    assert used["REG"] <= registers
    assert used["STACK"] == 0 and used.get("LOCAL", 0) == 0
    assert not [i for i in sass if i.startswith(("LDL", "STL"))]
    assert count <= instructions
    assert kernel.inexact() == set()
    assert "sqrt.rn.f32" in kernel.ptx or launch.draws == 0

    words = {F32: "v4.b32", F64: "v2.b64", F16: "v2.b32", BF16: "v2.b32"}
    assert {words[d] for d in launch.inputs} <= kernel.accesses("ld")
    assert {words[d] for d in launch.outputs} == kernel.accesses("st")
    if launch.table == F32:  # elements stay in the thread that loaded them
        assert used["SHARED"] == 0 and not [i for i in sass if i.startswith(("SHFL", "BAR"))]
    if 0 < launch.draws <= 2 and launch.inputs:  # the loads are under way while the noise is made
        last_load = max(i for i, name in enumerate(sass) if re.match(r"LDG\.E\.(128|64)", name))
        assert last_load < next(i for i, name in enumerate(sass) if name.startswith("MUFU.RSQ"))


def test_compiled_normal_and_sum_squares(compiler):
    seeds, x = torch.arange(8), torch.zeros(8, 3072)
    ops.native.operation("normal", "triton")(seeds, [8, 3072], 1, 6)
    ops.native.operation("sum_squares", "triton")([x, x], torch.zeros(1, 3), None, seeds, [0])
    normal, tiles, total = compiler.launches
    for kernel in compiler.launches:
        used = kernel.resources()
        assert used["REG"] <= 64 and used["STACK"] == 0 and used.get("LOCAL", 0) == 0
        assert kernel.inexact() == set()
    assert normal.accesses("st") == {"v4.b32"} and "v4.b32" in tiles.accesses("ld")
    assert total.accesses("st") == {"b64"}


def test_fusion_would_be_noticed(compiler):
    compiler.fusion = True
    Launch((F32, F32), (F32,), draws=1).run()
    assert compiler.launches[0].inexact()
    assert [i for i in compiler.launches[0].sass() if i.startswith("FFMA")]


def test_scalar_accesses_would_be_noticed(compiler):
    Launch((F32, F32), (F32,)).run((64, 3, 31, 31))
    assert compiler.launches[0].accesses("st") == {"b32"}


def test_seeds_draws_and_sizes_compile_nothing_new(compiler):
    launch = Launch((F32, F32), (F32,), draws=2)
    for shape, draws in [
        ((512, 3, 32, 32), (0, 1)),
        ((640, 3, 32, 32), (16, 2**31)),
        ((512, 3, 36, 36), (1, 2**32 - 1)),
        ((4096, 2064), (2, 3)),
    ]:
        launch.run(shape, draws)
    assert len({kernel.ptx for kernel in compiler.launches}) == 1


def test_numbers_of_many_draws_compile_nothing_new(compiler):
    for count in (3, 16, 33, 64):
        Launch((F32, F32), (F32,), draws=count).run()
        ops.native.operation("sum_squares", "triton")(
            [torch.zeros(8, 3072)], torch.zeros(1, 1 + count), None, torch.arange(8), list(range(count))
        )
    assert len({kernel.ptx for kernel in compiler.launches}) == 3


def test_programs_fit_the_sample_and_fill_the_device(compiler):
    from fastdiff.ops import triton_ops

    assert triton_ops._block(28, 4096) == (128, 1)
    assert triton_ops._block(3072, 1) == (128, 1)
    assert triton_ops._block(3072, 512) == (1024, 8)
    assert triton_ops._block(500, 4096) == (512, 4)
    assert triton_ops._block(3072) == triton_ops._block(3072, 1 << 20)
