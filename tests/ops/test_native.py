"""What is particular to the C++ backend: instruction sets, threads, blocks, the host module, its refusals."""

from __future__ import annotations

import hashlib
import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdiff.ops import native
from tests.ops import oracle
from tests.ops.test_combine import CONFIGURATIONS, DTYPES, case

pytestmark = pytest.mark.skipif(not native.available("cpu"), reason=native.reason("cpu"))
host = importlib.import_module("fastdiff._host") if native.available("cpu") else None
LEVELS = host.cpu_levels() if host else []
OPS = torch.ops.fastdiff


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a new process, in the source tree."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )


def everything() -> str:
    """A hash of every kind of result: all configurations, dtypes, sizes around the blocks of the loops."""
    digest = hashlib.sha256()
    for shape in [(1, 1), (3, 7), (2, 511), (2, 513), (1, 1023), (2, 1025), (3, 4099), (2, 3, 32, 32), (1, 33_003)]:
        for dtype in (torch.float32, torch.float64):
            for inputs, draws, outputs, clip, learned, rows in CONFIGURATIONS:
                x, table, a = case(shape, dtype, inputs, draws, outputs, clip, learned, rows, "cpu")
                codes = [7 if dtype == torch.float64 else 6, 5, 15][:outputs]
                given = (a["rows"], a["seeds"], a["draws"])
                for y in OPS.combine(x, table, *given, a["learned_variance"], clip, codes):
                    digest.update(y.view(torch.uint8 if y.ndim == 0 else torch.int16).numpy().tobytes())
                weights = table[:, : inputs + draws].contiguous()
                digest.update(OPS.sum_squares(x, weights, *given).numpy().tobytes())
        for code in (5, 6, 7, 15):
            y = OPS.normal(torch.arange(shape[0]) - 1, shape, 3, code)
            digest.update(y.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


# ----------------------------------------------------------------------------------------------------------------------
# Instruction sets, threads, blocks
# ----------------------------------------------------------------------------------------------------------------------


def test_every_level_gives_the_same_bits():
    """A process for each level: combine, sum_squares and normal in every configuration and dtype."""
    code = "from tests.ops.test_native import everything; print(everything())"
    results = {level: run(code, FASTDIFF_CPU=level) for level in LEVELS}
    assert all(r.returncode == 0 for r in results.values()), [r.stderr for r in results.values()]
    assert {r.stdout.strip() for r in results.values()} == {everything()}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 63, 64, 65, 127, 129, 1023, 1025, 4095, 40_001])
def test_normals_of_every_level_equal_the_oracle(level, n):
    for seed, draw in [(0, 0), (2**64 - 1, 2**32 - 1), (0x0123456789ABCDEF, 7)]:
        got = host.normals(seed, draw, n, level=level)
        assert (got.view(np.uint32) == oracle.normals_float32(seed, draw, n).view(np.uint32)).all()


def test_every_thread_count_gives_the_same_bits():
    before = torch.get_num_threads()
    try:
        hashes = set()
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            hashes.add(everything())
        assert len(hashes) == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_element_does_not_depend_on_where_its_block_ends(dtype):
    code = 7 if dtype == torch.float64 else 6
    x, table, a = case((1, 9000), dtype, 2, 2, 2, True, True, False, "cpu")

    def combine(n: int) -> list[torch.Tensor]:
        variance = a["learned_variance"][:, :n]
        return OPS.combine([t[:, :n] for t in x], table, None, a["seeds"], a["draws"], variance, True, [code, 15])

    whole = combine(9000)
    for n in (1, 2, 5, 511, 512, 513, 1023, 1024, 1025, 1027, 4095, 4096, 4097, 8191, 8999):
        for y, want in zip(combine(n), whole):
            assert y.equal(want[:, :n]), n


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_strides(dtype):
    """Samples far apart, shared by the batch, and at odd addresses are read in place."""
    base = torch.randn(4, 5, 33).to(dtype)
    views = [
        base[:, 1],
        base[::2, 0],
        base[:1, 2].expand(4, 33),
        base[1:2].expand(4, 5, 33)[:, 3],
        base.flatten()[1:67].view(2, 33),
    ]
    for view in views:
        (got,) = OPS.combine([view], torch.full((1, 1), 3.0, dtype=torch.float64), None, None, [], None, False, [7])
        assert got.equal(view.double() * 3)


# ----------------------------------------------------------------------------------------------------------------------
# The host module and the choice of the level
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "counter", "words"),
    [  # kat_vectors of Random123, philox4x32 with 10 rounds
        (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (2**64 - 1, (2**32 - 1,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            0x299F31D0A4093822,
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_random123_known_answers(seed, counter, words):
    assert tuple(host.philox(seed, counter)) == words


def test_words_equal_the_oracle():
    for seed, draw, n in [(0, 0, 0), (1, 2, 1), (-1, 2**32 - 1, 1023), (2**63, 5, 4096)]:
        got = host.words(seed, draw, n)
        assert got.dtype == np.uint32
        assert got.tolist() == oracle.words(seed, draw, (n + 3) // 4).reshape(-1)[:n].tolist()


def test_a_seed_is_its_64_bits():
    assert (host.normals(-1, 0, 9) == host.normals(2**64 - 1, 0, 9)).all()
    assert (host.normals(-1, 0, 9) == OPS.normal(torch.tensor([-1]), [1, 9], 0, 6).numpy()[0]).all()


@pytest.mark.parametrize("arguments", [(0, -1, 4), (0, 2**32, 4), (0, 0, -1), (0, 0, 2**34 + 1), (0.5, 0, 4)])
def test_host_refuses(arguments):
    with pytest.raises((TypeError, ValueError)):
        host.normals(*arguments)
    with pytest.raises((TypeError, ValueError)):
        host.words(*arguments)


def test_build_info():
    info = host.build_info()
    assert set(info) == {"compiler", "torch", "cuda", "archs", "git", "flags", "levels"}
    assert "-ffp-contract=off" in info["flags"]
    assert [level for level in info["levels"] if level in LEVELS] == LEVELS


HOST_ALONE = (  # without the package, which imports torch
    "import sys; from importlib.util import module_from_spec, spec_from_file_location as spec\n"
    f"s = spec('_host', {getattr(host, '__file__', '')!r}); host = module_from_spec(s); s.loader.exec_module(host)\n"
)


def test_the_host_module_needs_no_torch():
    assert run(HOST_ALONE + "print(host.normals(0, 0, 2).size, 'torch' in sys.modules)").stdout == "2 False\n"


def test_fastdiff_cpu_forces_a_level():
    code = HOST_ALONE + "print(host.cpu_level())"
    for level in LEVELS:
        for name in (level, level.removeprefix("x86-64-")):
            assert run(code, FASTDIFF_CPU=name).stdout.strip() == level
    assert run(code, FASTDIFF_CPU="").stdout.strip() == LEVELS[0]


def test_an_unknown_level_is_one_clear_error():
    levels = ", ".join(LEVELS)
    wanted = f"FASTDIFF_CPU must be one of the instruction sets that this machine can run ({levels}), got 'mmx'"
    result = run(HOST_ALONE + "host.cpu_level()", FASTDIFF_CPU="mmx")
    assert f"ValueError: fastdiff: {wanted}" in result.stderr
    result = run("import torch; from fastdiff import ops; ops.normal(torch.arange(1), (1, 1))", FASTDIFF_CPU="mmx")
    assert f"ValueError: fastdiff: {wanted}" in result.stderr
    with pytest.raises(ValueError, match="level must be one of"):
        host.normals(0, 0, 1, level="mmx")


# ----------------------------------------------------------------------------------------------------------------------
# Refusals
# ----------------------------------------------------------------------------------------------------------------------

X = torch.zeros(4, 3)
TABLE = torch.zeros(1, 2)


def arguments(**changes):
    """Arguments of combine_out that are good but for the changes."""
    good = {
        "inputs": [X, X],
        "table": TABLE,
        "rows": None,
        "seeds": None,
        "draws": [],
        "learned_variance": None,
        "clip": False,
        "out": [torch.zeros(4, 3)],
    }
    return list((good | changes).values())


MESSAGES = [
    ({"inputs": [X, X[:, :2]]}, "inputs[1] must have shape [4, 3], got [4, 2]"),
    ({"inputs": [X, X.int()]}, "inputs[1] must be float16, float32, float64 or bfloat16, got int32"),
    ({"inputs": [X, X.bool()]}, "inputs[1] must be float16, float32, float64 or bfloat16, got bool"),
    ({"inputs": [X.double(), X]}, "inputs[0] must not be float64 when table is float32"),
    ({"inputs": [X] * 9}, "inputs must hold at most 8 tensors, got 9"),
    ({"inputs": [torch.zeros(())]}, "inputs and outputs must have shape [B, ...], got a scalar"),
    ({"inputs": [], "out": []}, "out must hold at least one tensor, got none"),
    ({"out": []}, "there must be 1 to 3 outputs, got 0"),
    ({"out": [torch.zeros(4, 3)] * 4}, "there must be 1 to 3 outputs, got 4"),
    ({"out": [torch.zeros(4, 2)]}, "out[0] must have shape [4, 3], got [4, 2]"),
    ({"out": [torch.zeros(4, 3).int()]}, "out[0] must be float16, float32, float64 or bfloat16, got int32"),
    ({"out": [torch.zeros(4, 6)[:, ::2]]}, "out[0] must be contiguous, got strides [6, 2]"),
    ({"table": TABLE.half()}, "table must be a float32 or float64 tensor [R, W] with R at least 1, got float16 [1, 2]"),
    ({"table": TABLE[0]}, "table must be a float32 or float64 tensor [R, W] with R at least 1, got float32 [2]"),
    ({"table": TABLE[:0]}, "table must be a float32 or float64 tensor [R, W] with R at least 1, got float32 [0, 2]"),
    ({"clip": True}, "table must have 7 columns for 2 inputs, 0 draws and 1 outputs, clip; got [1, 2]"),
    (
        {"table": torch.zeros(1, 10), "learned_variance": X, "clip": True},
        "table must have 11 or 13 columns for 2 inputs, 0 draws and 1 outputs, clip, learned_variance; got [1, 10]",
    ),
    ({"rows": torch.zeros(4)}, "rows must be an int64 tensor of shape [4], got float32 [4]"),
    ({"rows": torch.zeros(3).long()}, "rows must be an int64 tensor of shape [4], got int64 [3]"),
    ({"rows": torch.tensor([0, 0, 1, 0])}, "rows must be from 0 to 0, got rows[2] = 1"),
    ({"rows": torch.tensor([0, -7, 0, 0])}, "rows must be from 0 to 0, got rows[1] = -7"),
    ({"inputs": [X], "draws": [0]}, "seeds must be given when there are draws, got none"),
    ({"inputs": [X], "draws": [0], "seeds": X[0]}, "seeds must be an int64 tensor of shape [4], got float32 [3]"),
    ({"inputs": [X], "draws": [2**32]}, "draws[0] must be from 0 to 2^32 - 1, got 4294967296"),
    ({"draws": list(range(65))}, "draws must hold at most 64 numbers, got 65"),
    (
        {"table": torch.zeros(1, 6), "learned_variance": X[:2]},
        "learned_variance must have shape [4, 3], got [2, 3]",
    ),
]


@pytest.mark.parametrize(("changes", "message"), MESSAGES, ids=[m for _, m in MESSAGES])
def test_refusals(changes, message):
    with pytest.raises(RuntimeError) as raised:
        OPS.combine_out(*arguments(**changes))
    assert str(raised.value).startswith(f"fastdiff::combine_out: {message}")


def test_refusals_of_the_other_operators():
    with pytest.raises(RuntimeError, match=r"fastdiff::combine: inputs must hold at least one tensor, got none"):
        OPS.combine([], TABLE, None, None, [], None, False, [6])
    with pytest.raises(RuntimeError, match=r"fastdiff::combine: out_dtypes\[1\] must be .*, got 4"):
        OPS.combine([X], TABLE, None, None, [], None, False, [6, 4])
    with pytest.raises(RuntimeError, match=r"fastdiff::sum_squares: table must have 1 columns .*; got \[1, 2\]"):
        OPS.sum_squares([X], TABLE, None, None, [])
    with pytest.raises(
        RuntimeError, match=r"fastdiff::normal: seeds must be an int64 tensor of shape \[3\], got int64 \[2\]"
    ):
        OPS.normal(torch.arange(2), [3, 5], 0, 6)
    with pytest.raises(RuntimeError, match=r"fastdiff::normal: draws\[0\] must be from 0 to 2\^32 - 1, got -1"):
        OPS.normal(torch.arange(2), [2, 5], -1, 6)


def test_shared_memory_is_refused():
    store = torch.zeros(64)
    x, y, near = store[:12].view(4, 3), store[11:23].view(4, 3), store[12:24].view(4, 3)
    table, seeds = store[30:33].view(1, 3), torch.zeros(4, dtype=torch.int64)
    two = {"table": torch.zeros(1, 4)}
    refused = [
        (arguments(inputs=[x, X], out=[y]), "out[0] must not share memory with inputs[0]"),
        (arguments(inputs=[X, x], out=[x]), "out[0] must not share memory with inputs[1]"),
        (arguments(**two, out=[x, y]), "out[1] must not share memory with out[0]"),
        (
            arguments(table=torch.zeros(1, 6), learned_variance=x, out=[y]),
            "out[0] must not share memory with learned_variance",
        ),
        (
            arguments(inputs=[X], table=table[:, :1], out=[store[20:32].view(4, 3)]),
            "out[0] must not share memory with table",
        ),
        (
            arguments(inputs=[X], draws=[0], seeds=seeds, out=[seeds.view(torch.float16)[:12].view(4, 3)]),
            "out[0] must not share memory with seeds",
        ),
    ]
    for given, message in refused:
        with pytest.raises(RuntimeError) as raised:
            OPS.combine_out(*given)
        assert message in str(raised.value)
    OPS.combine_out(*arguments(inputs=[x, x], out=[near]))
