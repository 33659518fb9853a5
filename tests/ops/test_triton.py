"""The Triton backend through Triton's interpreter: the bits of the reference and of C++, without a GPU.

Triton decides when it is imported whether it interprets, so these tests run in a process of their own, which
`test_in_the_interpreter` starts: those of this file, and some that every backend must pass. An interpreted program
takes milliseconds, whatever its size: the cases are few.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdiff import Sampler, ops
from fastdiff.ops import native
from tests.ops import test_combine as shared
from tests.ops.oracle import normals_float32

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="test_in_the_interpreter runs it in its own process")
compiled = pytest.mark.skipif(INTERPRETED, reason="is about a process without TRITON_INTERPRET=1")

EVERY_BACKEND = (  # of tests/ops
    "strides_and_alignment or empty or casts or every_dtype or nan_passes or most_draws or refusals "
    "or test_sum_squares or frozen or seed_only or other_dtypes or values_are_those_of_eager "
    "or gradients_are_those_of_eager"
)


@compiled
def test_in_the_interpreter():
    root = Path(__file__).resolve().parents[2]
    files = [f"tests/ops/test_{name}.py" for name in ("triton", "combine", "noise", "compile")]
    chosen = f"interpreted or (triton and ({EVERY_BACKEND}))"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, *files]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    passed = re.search(r"(\d+) passed", result.stdout)
    assert result.returncode == 0 and passed, result.stdout[-20000:] + result.stderr[-2000:]
    assert int(passed[1]) > 100, "the choice of tests by name no longer finds them"


# ----------------------------------------------------------------------------------------------------------------------
# Interpreted
# ----------------------------------------------------------------------------------------------------------------------


def both(inputs, table, backends=("triton", "reference"), **arguments) -> list[list[torch.Tensor]]:
    return [ops.combine(inputs, table, **arguments, backend=backend) for backend in backends]


def same(got, want) -> bool:
    return all(a.dtype == b.dtype and a.equal(b) for a, b in zip(got, want, strict=True))


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("configuration", shared.CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("shape", [(3, 37), (2, 3, 8, 8)], ids=str)
def test_interpreted_combine(shape, configuration, dtype):
    inputs, draws, outputs, clip, learned, rows = configuration
    x, table, arguments = shared.case(shape, dtype, inputs, draws, outputs, clip, learned, rows, "cpu")
    arguments["out_dtypes"] = [dtype, torch.bfloat16, torch.float16][:outputs]
    if not learned:
        assert same(*both(x, table, **arguments))
    elif dtype == torch.float32 and native.available("cpu"):  # the reference's exp is torch's
        assert same(*both(x, table, ("triton", "cpu"), **arguments))
    else:
        arguments["out_dtypes"] = [dtype] * outputs
        for got, want in zip(*both(x, table, **arguments)):
            assert torch.allclose(got, want, rtol=1e-14 if dtype == torch.float64 else 1e-5, atol=1e-6)


@interpreted
@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63), 0x0123456789ABCDEF])
@pytest.mark.parametrize("draw", [0, 1, 2**31, 2**32 - 1])
def test_interpreted_normals_equal_the_oracle(seed, draw):
    got = ops.normal(torch.tensor([seed]), (1, 203), draw, backend="triton").numpy()[0]
    assert (got.view(np.uint32) == normals_float32(seed, draw, 203).view(np.uint32)).all()


@interpreted
@pytest.mark.parametrize("shape", [(2, 64), (2, 37), (1, 3)], ids=str)
def test_interpreted_tiles(monkeypatch, shape):
    """Samples of several tiles, whole and cut off: what a GPU does with large ones."""
    from fastdiff.ops import triton_ops

    monkeypatch.setattr(triton_ops, "_INTERPRETED_BLOCK", 16)
    x, table, arguments = shared.case(shape, torch.float32, 2, 1, 2, True, False, True, "cpu")
    assert same(*both(x, table, **arguments, out_dtypes=[torch.float32, torch.bfloat16]))
    seeds = arguments["seeds"]
    assert ops.normal(seeds, shape, 3, backend="triton").equal(ops.normal(seeds, shape, 3, backend="reference"))
    got, want = (ops.sum_squares(x, torch.ones(1, 2), backend=b) for b in ("triton", "reference"))
    assert torch.allclose(got, want, rtol=1e-14)


@interpreted
def test_interpreted_batches_larger_than_a_grid(monkeypatch):
    from fastdiff.ops import triton_ops

    monkeypatch.setattr(triton_ops, "_MOST_SAMPLES", 2)
    x, table, arguments = shared.case((5, 6), torch.float32, 2, 1, 1, False, False, True, "cpu")
    assert same(*both(x, table, **arguments))
    assert same(*both([x[0], x[1][:1].expand(5, 6)], table, **arguments))
    seeds = arguments["seeds"]
    assert ops.normal(seeds, (5, 6), backend="triton").equal(ops.normal(seeds, (5, 6), backend="reference"))
    one = table[:, :2].contiguous()
    got, want = (ops.sum_squares(x, one, rows=arguments["rows"], backend=b) for b in ("triton", "reference"))
    assert torch.allclose(got, want, rtol=1e-14)


@interpreted
def test_interpreted_launches_stay_inside_their_outputs():
    for n, offset in [(1, 1), (5, 2), (1027, 3)]:
        store = torch.full((2 * n + 8,), 42.0)
        out, seeds = store[offset : offset + 2 * n].view(2, n), torch.arange(2)
        ops.combine([], torch.ones(1, 1), seeds=seeds, draws=[0], out=[out], backend="triton")
        assert (store[:offset] == 42).all() and (store[offset + 2 * n :] == 42).all()
        assert out.equal(ops.normal(seeds, (2, n), backend="reference"))


@interpreted
def test_interpreted_table_without_columns():
    table, out = torch.tensor([[-1.0, 2.0, 3.0]]), [torch.empty(2, 3)]
    ops.combine([], table, clip=True, out=out, backend="triton")
    assert out[0].equal(torch.zeros(2, 3))


@interpreted
@pytest.mark.parametrize("name", shared.REFUSALS)
def test_interpreted_refusals_are_those_of_the_reference(name):
    messages = set()
    for backend in ("triton", "reference"):
        good = {
            "inputs": [torch.zeros(2, 3), torch.zeros(2, 3)],
            "table": torch.zeros(1, 3),
            "rows": None,
            "seeds": torch.arange(2),
            "draws": [0],
        }
        arguments = shared.REFUSALS[name](good)
        with pytest.raises((RuntimeError, ValueError)) as raised:
            ops.combine(arguments.pop("inputs"), arguments.pop("table"), **arguments, backend=backend)
        messages.add(str(raised.value))
    assert len(messages) == 1


@interpreted
@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_interpreted_sampler(solver):
    """A whole run, noise and all: a plan of linear combinations gives the reference's bits."""
    run = [
        Sampler(lambda x, t: 0.5 * x, solver=solver, steps=3, S_churn=5.0, backend=backend)((3, 2, 5), seeds=[1, -7, 9])
        for backend in ("triton", "reference")
    ]
    assert run[0].equal(run[1])


# ----------------------------------------------------------------------------------------------------------------------
# Choosing the backend
# ----------------------------------------------------------------------------------------------------------------------


@compiled
def test_the_cpu_needs_the_interpreter():
    with pytest.raises(RuntimeError, match=r"'triton' cannot run on cpu tensors: .*set TRITON_INTERPRET=1"):
        ops.resolve_backend("triton", "cpu")


def test_what_is_missing_is_named(monkeypatch):
    why = native._triton_reason.__wrapped__
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "pip install fastdiff[triton]" in why("cuda")
    old = type(sys)("triton")
    old.__version__ = "3.5.1"
    monkeypatch.setitem(sys.modules, "triton", old)
    assert "Triton 3.5.1 is older than 3.6" in why("cuda")


@compiled
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_a_device_without_a_driver():
    assert "Triton cannot use the device" in native._triton_reason("xpu")


@pytest.mark.parametrize(
    ("can_run", "kind", "chosen"),
    [
        ({"cuda", "triton"}, "cuda", "cuda"),
        ({"triton"}, "cuda", "triton"),
        ({"triton"}, "xpu", "triton"),
        ({"triton"}, "cpu", "reference"),
        (set(), "cuda", "reference"),
    ],
)
def test_auto_prefers_compiled_then_triton(monkeypatch, can_run, kind, chosen):
    monkeypatch.setattr(native, "available", lambda name, kind=None: name in can_run)
    monkeypatch.setattr(native, "fall_back", lambda kind: "reference")
    assert native.best(kind) == chosen
