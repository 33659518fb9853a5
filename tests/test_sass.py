"""The machine code of the CUDA kernels, read without a GPU: instructions per element, loads, registers, contraction.

Counted is every instruction that a thread with whole quads executes, prologue and predicated ones included; sm_90.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastdiff.ops.reference_ops import row_width
from tests.cuda import sass

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "csrc"))
import ninja_file  # noqa: E402
import toolchain  # noqa: E402

KIB = 1024
# An H100's memory needs this many bytes under way on each multiprocessor.
BYTES_UNDER_WAY = 48 * KIB
REGISTER_FILE, MOST_THREADS = 65536, 2048

# Instructions per element, by (inputs, draws, outputs, clip): 4 and 8 elements to a thread; nvcc 13.0 gives 2 to 5 %
# less. Sums of products without fma and the prologue are in the figures without draws; a draw adds 45. A third input
# and a draw leave no registers for 8 elements.
FLOAT_LIMITS = {
    (0, 1, 1, 0): (57.0, 52.0),
    (1, 0, 1, 0): (9.2, 6.7),
    (2, 0, 1, 0): (13.0, 10.0),
    (2, 0, 2, 0): (17.5, 14.5),
    (2, 1, 1, 0): (64.0, 58.0),
    (2, 1, 2, 0): (71.0, 65.0),
    (3, 0, 1, 0): (16.7, 13.2),
    (3, 0, 2, 0): (23.3, 20.0),
    (3, 1, 1, 0): (68.0, 68.0),
    (3, 1, 2, 0): (77.0, 77.0),
    (5, 0, 2, 0): (35.5, 31.2),
    (5, 1, 2, 0): (88.5, 88.5),
    (2, 0, 1, 1): (23.6, 20.0),
    (2, 0, 2, 1): (30.3, 26.7),
    (2, 1, 1, 1): (77.0, 71.0),
}
# With inputs and perhaps outputs of a 16-bit type.
SHORT_LIMITS = {
    (1, 0, 1, 0): (13.8, 11.2),
    (2, 0, 1, 0): (17.7, 14.5),
    (2, 0, 2, 0): (23.8, 21.0),
    (2, 1, 1, 0): (69.0, 64.0),
    (2, 1, 2, 0): (77.3, 72.5),
    (3, 0, 1, 0): (21.2, 17.7),
    (3, 0, 2, 0): (31.6, 28.5),
    (3, 1, 1, 0): (72.5, 72.5),
    (3, 1, 2, 0): (85.5, 85.5),
    (5, 0, 2, 0): (43.5, 41.0),
    (5, 1, 2, 0): (97.3, 97.3),
    (2, 0, 1, 1): (28.3, 24.4),
    (2, 0, 2, 1): (36.6, 33.2),
    (2, 1, 1, 1): (81.8, 76.2),
    (2, 1, 2, 1): (92.9, 87.7),
}
NORMAL_LIMITS = (56.0, 51.0)

# Per Box-Muller pair: two in nvcc's own square root (its rounding needs the exact remainder), three whose product is
# exact, so that fusing changes nothing: the uniform number's 2^-32, -2 f, and -2 ln 2 to nine bits times the exponent.
EXACT_FACTORS = {"1.1641532182693481445e-10": 1, "-2": 1, "-1.6530975699424743652e-07": 1}
SQUARE_ROOT_FMAS = 2

NAME = re.compile(
    r"(combine|normal)_kernelINS\d?_\d*5FixedILi(\d)ELi(\d)ELi(\d)ELb([01])ELNS\d?_5DtypeE(\d+)ELi(\d+)EEELi(\d)ELb([01])E"
)


@dataclass(frozen=True)
class Kernel:
    """A fixed form and its code: numbers of columns, places of 16-bit inputs, quads to a thread, streaming?"""

    code: sass.Kernel
    normal: bool
    columns: tuple[int, int, int, int]  # inputs, draws, outputs, clip
    dtype: int
    short_inputs: int
    quads: int
    stream: bool

    def __str__(self) -> str:
        op, dtype = "normal" if self.normal else "combine", {5: "half", 6: "float", 15: "bfloat16"}[self.dtype]
        return f"{op}{self.columns} {dtype} {self.short_inputs} quads={self.quads}"

    @property
    def elements(self) -> int:
        return 4 * self.quads

    @property
    def wide_loads(self) -> tuple[int, int]:
        """How many loads of 16 and of 8 bytes there must be, weights and seeds aside."""
        short = self.short_inputs.bit_count()
        return (self.columns[0] - short) * self.quads, short * self.quads

    @property
    def limit(self) -> float:
        if self.normal:
            return NORMAL_LIMITS[self.quads - 1]
        return (FLOAT_LIMITS if self.dtype == 6 else SHORT_LIMITS)[self.columns][self.stream]


def compile_cubin(cuda: toolchain.Cuda, source: Path, cubin: Path) -> dict[str, sass.Kernel]:
    """Kernels of ``source`` as the build compiles them."""
    flags = [flag for flag in ninja_file.NVCC_FLAGS if not flag.startswith("--threads")]
    command = [cuda.nvcc, *flags, f"-I{ROOT / 'csrc'}", "-arch=sm_90", "-cubin", source, "-o", cubin]
    subprocess.run(command, check=True)
    return sass.kernels(sass.find_cuobjdump(), cubin)


@pytest.fixture(scope="session")
def cuda() -> toolchain.Cuda:
    """The CUDA toolkit; skips without it or without cuobjdump."""
    try:
        found = toolchain.find_cuda(toolchain.find_torch())
        sass.find_cuobjdump()
    except (toolchain.BuildError, FileNotFoundError) as error:
        pytest.skip(str(error))
    return found


@pytest.fixture(scope="session")
def compiled(cuda: toolchain.Cuda, tmp_path_factory: pytest.TempPathFactory) -> dict[str, sass.Kernel]:
    return compile_cubin(cuda, ROOT / "csrc/cuda/kernels.cu", tmp_path_factory.mktemp("sass") / "kernels.cubin")


@pytest.fixture(scope="session")
def fixed(compiled: dict[str, sass.Kernel]) -> list[Kernel]:
    """All fixed forms, small and large."""
    found = []
    for name, code in compiled.items():
        if match := NAME.search(name):
            op, inputs, draws, outputs, clip, dtype, mask, quads, stream = match.groups()
            columns = int(inputs), int(draws), int(outputs), int(clip)
            found.append(Kernel(code, op == "normal", columns, int(dtype), int(mask), int(quads), stream == "1"))
    assert len(found) == 2 * (len(FLOAT_LIMITS) + 2 * 17 + 1)
    return found


def wide(code: sass.Kernel, name: str, bits: int) -> list[int]:
    """Where on the path the loads or stores of tensors are: not those of weights and seeds, which are cached reads."""
    return [
        i
        for i, instruction in enumerate(code.path)
        if instruction.name == name and f".{bits}" in instruction.opcode and "CONSTANT" not in instruction.opcode
    ]


def check_memory(code: sass.Kernel) -> None:
    """No local memory, no spills."""
    assert code.local == 0
    assert not [i for i in code.instructions if i.name in ("LDL", "STL")]


def check_order(code: sass.Kernel) -> None:
    """Loads of tensors are under way before the noise, and before anything is multiplied or stored.

    The first product of a Philox block, of 19, may stand among them: it needs no seed.
    """
    loads = [*wide(code, "LDG", 128), *wide(code, "LDG", 64)]
    philox = [i for i, now in enumerate(code.path) if now.is_philox]
    later = [i for i, now in enumerate(code.path) if now.name in ("FMUL", "STG")]
    assert max(loads, default=-1) < min([*philox[len(philox) // 19 :], *later])


def check_rounding(code: sass.Kernel) -> None:
    """Nothing is fused but what does not change a bit."""
    fused = [i for i in code.path if i.name in ("FFMA", "HFMA2", "DFMA") and not is_constant(i)]
    roots = [i for i in code.path if i.opcode == "MUFU.RSQ"]
    for factor, count in EXACT_FACTORS.items():
        exact = [i for i in fused if factor in re.split(r", ", i.operands)]
        assert len(exact) == count * len(roots), factor
        fused = [i for i in fused if i not in exact]
    assert len(fused) == SQUARE_ROOT_FMAS * len(roots)
    assert not [i for i in code.path if i.name == "MUFU" and i.opcode != "MUFU.RSQ"]


def is_constant(instruction: sass.Instruction) -> bool:
    """HFMA2 with two zero operands is how a constant comes into a register."""
    return instruction.name == "HFMA2" and "-RZ, RZ" in instruction.operands


def test_no_local_memory(compiled: dict[str, sass.Kernel]) -> None:
    for code in compiled.values():
        check_memory(code)


def test_loads_come_first(fixed: list[Kernel]) -> None:
    for kernel in fixed:
        check_order(kernel.code)


def test_general_forms_bring_their_row_near(compiled: dict[str, sass.Kernel]) -> None:
    """Its numbers are read where they are used, behind branches: a prefetch ahead of the noise hides their latency."""
    general = [code for name, code in compiled.items() if "combine_kernel" in name and "3AnyI" in name]
    assert len(general) == 4
    for code in general:
        prefetches = [i for i, now in enumerate(code.instructions) if now.opcode.startswith("CCTL.E.PF1")]
        philox = [i for i, now in enumerate(code.instructions) if now.is_philox]
        assert len(prefetches) == 1 and prefetches[0] < philox[0]


def test_words_of_16_bytes(fixed: list[Kernel]) -> None:
    """8 bytes for quads of 16-bit types; the large launches stream, the small ones do not."""
    for kernel in fixed:
        code = kernel.code
        loads = [wide(code, "LDG", bits) for bits in (128, 64)]
        assert (len(loads[0]), len(loads[1])) == kernel.wide_loads, str(kernel)
        moves = [code.path[i] for i in sorted([*loads[0], *loads[1], *wide(code, "STG", 128), *wide(code, "STG", 64)])]
        assert len(moves) >= sum(kernel.wide_loads) + kernel.quads * kernel.columns[2], str(kernel)
        assert not [i for i in code.path if i.name == "STG" and i not in moves], str(kernel)
        assert all((".EF" in i.opcode) == kernel.stream for i in moves), str(kernel)
        assert wide(code, "STG", 128) or kernel.dtype != 6, str(kernel)


def test_no_contraction(fixed: list[Kernel]) -> None:
    for kernel in fixed:
        check_rounding(kernel.code)


def test_instructions_per_element(fixed: list[Kernel]) -> None:
    """Against tables of upper bounds, which may not stay far above either: a bound that is never near is none."""
    for kernel in fixed:
        measured = len(kernel.code.path) / kernel.elements
        assert 0.85 * kernel.limit < measured <= kernel.limit, f"{kernel}: {measured:.2f}, limit {kernel.limit}"


def test_registers(fixed: list[Kernel]) -> None:
    """At most 40 in small launches of short rows; in large ones, enough threads to keep the memory busy."""
    for kernel in fixed:
        inputs, draws, outputs, clip = kernel.columns
        registers = -(-kernel.code.registers // 8) * 8
        threads = min(MOST_THREADS, REGISTER_FILE // registers // 256 * 256)
        loads, short_loads = kernel.wide_loads
        bytes_loaded = 16 * loads + 8 * short_loads
        row = row_width(inputs + draws, outputs, bool(clip), False)
        if kernel.quads == 2:
            most = 72 if draws and row > 8 else 64
        else:
            most = 40 if row < 10 else 48 if row < 12 else 56
        assert registers <= most, str(kernel)
        if kernel.stream and inputs:
            # Stores wait for nobody: with as many bytes of them, less has to be under way.
            enough = BYTES_UNDER_WAY * (1 if bytes_loaded > 12 * outputs * kernel.quads else 0.75)
            under_way = threads * bytes_loaded
            assert threads == MOST_THREADS or under_way >= enough, f"{kernel}: {under_way / KIB} KiB"


BAD = """
#include "philox.h"
__global__ void contracted(const float4* x, float4* y) {
  const float4 v = x[threadIdx.x];
  y[threadIdx.x] = float4{v.x * v.y + v.z, v.y, v.z, v.w};
}
__global__ void in_local_memory(const float4* x, float4* y) {
  float values[32] = {};
  for (int k = 0; k < 32; ++k) values[static_cast<int>(x[k].y) & 31] = x[k].x;
  y[threadIdx.x].x = values[threadIdx.x & 31];
}
__global__ void late(const float4* x, float4* y) {
  const fastdiff::Normals4 z = fastdiff::normals4(7, 3, threadIdx.x);
  y[threadIdx.x] = x[static_cast<int>(z.z0)];
  y[threadIdx.x + 1024] = float4{z.z0, z.z1, z.z2, z.z3};
}
__global__ void with_loop(float4* y, int n) {
  for (int i = 0; i < n; ++i) y[i] = float4{};
}
"""


def test_the_checks_can_fail(cuda: toolchain.Cuda, tmp_path: Path) -> None:
    (tmp_path / "bad.cu").write_text(BAD)
    flags = [cuda.nvcc, "-std=c++20", f"-I{ROOT / 'csrc'}", "-arch=sm_90", "-cubin", tmp_path / "bad.cu"]
    subprocess.run([*flags, "-o", tmp_path / "bad.cubin"], check=True)
    bad = sass.kernels(sass.find_cuobjdump(), tmp_path / "bad.cubin")
    by_name = {name: next(bad[k] for k in bad if name in k) for name in ("contracted", "local", "late", "loop")}
    with pytest.raises(AssertionError):
        check_rounding(by_name["contracted"])
    with pytest.raises(AssertionError):
        check_memory(by_name["local"])
    with pytest.raises(AssertionError):
        check_order(by_name["late"])
    with pytest.raises(ValueError, match="loop"):
        _ = by_name["loop"].path
    check_rounding(by_name["late"])
