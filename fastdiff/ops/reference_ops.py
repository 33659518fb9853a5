"""The operators of `torch.ops.fastdiff` in plain PyTorch: same arguments, same checks, same results."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference

MAX_INPUTS, MAX_DRAWS, MAX_OUTPUTS = 8, 64, 3
DTYPES = {5: torch.float16, 6: torch.float32, 7: torch.float64, 15: torch.bfloat16}


def combine(
    inputs: Sequence[Tensor],
    table: Tensor,
    rows: Tensor | None,
    seeds: Tensor | None,
    draws: Sequence[int],
    learned_variance: Tensor | None,
    clip: bool,
    out_dtypes: Sequence[int],
) -> list[Tensor]:
    """`fastdiff::combine`."""
    dtypes = check_combine(inputs, table, rows, seeds, draws, learned_variance, clip, out_dtypes)
    out = [torch.empty(inputs[0].shape, dtype=dtype, device=table.device) for dtype in dtypes]
    reference.combine(inputs, table, rows, seeds, draws, learned_variance, clip, out)
    return out


def combine_out(
    inputs: Sequence[Tensor],
    table: Tensor,
    rows: Tensor | None,
    seeds: Tensor | None,
    draws: Sequence[int],
    learned_variance: Tensor | None,
    clip: bool,
    out: Sequence[Tensor],
) -> None:
    """`fastdiff::combine_out`."""
    check_combine_out(inputs, table, rows, seeds, draws, learned_variance, clip, out)
    reference.combine(inputs, table, rows, seeds, draws, learned_variance, clip, out)


def sum_squares(
    inputs: Sequence[Tensor], table: Tensor, rows: Tensor | None, seeds: Tensor | None, draws: Sequence[int]
) -> Tensor:
    """`fastdiff::sum_squares`."""
    check_sum_squares(inputs, table, rows, seeds, draws)
    return reference.sum_squares(inputs, table, rows, seeds, draws)


def normal(seeds: Tensor, shape: Sequence[int], draw: int, dtype: int) -> Tensor:
    """`fastdiff::normal`."""
    check_normal(seeds, shape, draw, dtype)
    return reference.normal(seeds, shape, draw).to(DTYPES[dtype])


# --- checks, of this backend and of every other that is written in Python ---------------------------------------------


def check_combine(
    inputs: Sequence[Tensor],
    table: Tensor,
    rows: Tensor | None,
    seeds: Tensor | None,
    draws: Sequence[int],
    learned_variance: Tensor | None,
    clip: bool,
    out_dtypes: Sequence[int],
) -> list[torch.dtype]:
    """Refuse bad arguments of `combine`; the dtypes of its results."""
    _require(len(inputs) > 0, "combine: inputs must hold at least one tensor, got none")
    dtypes = [dtype_of("combine", code) for code in out_dtypes]
    _check("combine", inputs, table, rows, seeds, draws, learned_variance, clip, inputs[0].shape, len(dtypes))
    return dtypes


def check_combine_out(
    inputs: Sequence[Tensor],
    table: Tensor,
    rows: Tensor | None,
    seeds: Tensor | None,
    draws: Sequence[int],
    learned_variance: Tensor | None,
    clip: bool,
    out: Sequence[Tensor],
) -> None:
    """Refuse bad arguments of `combine_out`."""
    _require(len(out) > 0, "combine_out: out must hold at least one tensor, got none")
    shape = out[0].shape
    _check("combine_out", inputs, table, rows, seeds, draws, learned_variance, clip, shape, len(out))
    for m, y in enumerate(out):
        _require(y.shape == shape, f"combine_out: out[{m}] must have shape {list(shape)}, got {list(y.shape)}")
        _require(y.dtype in DTYPES.values(), f"combine_out: out[{m}] must be a floating tensor, got {y.dtype}")
        _require(y.device == table.device, f"combine_out: out[{m}] must be on {table.device}, got {y.device}")
        _require(y.is_contiguous(), f"combine_out: out[{m}] must be contiguous")
        for name, x in [*((f"inputs[{j}]", x) for j, x in enumerate(inputs)), ("learned_variance", learned_variance)]:
            overlap = x is not None and _overlap(x, y)
            _require(not overlap, f"combine_out: out[{m}] must not share memory with {name}")


def check_sum_squares(
    inputs: Sequence[Tensor], table: Tensor, rows: Tensor | None, seeds: Tensor | None, draws: Sequence[int]
) -> None:
    """Refuse bad arguments of `sum_squares`."""
    _require(len(inputs) > 0, "sum_squares: inputs must hold at least one tensor, got none")
    _check("sum_squares", inputs, table, rows, seeds, draws, None, False, inputs[0].shape, 1)


def check_normal(seeds: Tensor, shape: Sequence[int], draw: int, dtype: int) -> None:
    """Refuse bad arguments of `normal`."""
    _check_seeds("normal", seeds, shape, seeds.device)
    _check_elements("normal", shape)
    _check_draws("normal", [draw])
    dtype_of("normal", dtype)


def dtype_of(op: str, code: int) -> torch.dtype:
    """The dtype of a ScalarType number."""
    _require(
        code in DTYPES,
        f"{op}: out dtype must be float16, float32, float64 or bfloat16, got ScalarType {code}",
    )
    return DTYPES[code]


def row_width(columns: int, outputs: int, clip: bool, learned: bool, squared: bool = False) -> int:
    """Numbers in a table row: C [M,K]; clip: P [K], lo, hi, c [M]; learned variance: a, b, E [M,K], perhaps D [M,K]."""
    return outputs * columns + clip * (columns + 2 + outputs) + learned * (2 + (1 + squared) * outputs * columns)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(f"fastdiff::{message}")


def _overlap(x: Tensor, y: Tensor) -> bool:
    """Whether the address ranges of two tensors overlap."""

    def span(t: Tensor) -> tuple[int, int]:
        last = sum((n - 1) * s for n, s in zip(t.shape, t.stride()))
        return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()

    if torch.compiler.is_compiling() or x.numel() == 0 or y.numel() == 0:  # a traced tensor has no address
        return False
    (x0, x1), (y0, y1) = span(x), span(y)
    return x0 < y1 and y0 < x1


def _check_elements(op: str, shape: Sequence[int]) -> None:
    elements = math.prod(shape[1:])
    _require(elements <= 2**34, f"{op}: a sample must have at most 2^34 elements, got {elements}")


def _check_draws(op: str, draws: Sequence[int]) -> None:
    _require(all(0 <= k < 2**32 for k in draws), f"{op}: draws must be from 0 to 2^32 - 1, got {list(draws)}")


def _check_seeds(op: str, seeds: Tensor | None, shape: Sequence[int], device: torch.device) -> None:
    wanted = f"{op}: seeds must be an int64 tensor of shape [{shape[0] if len(shape) else 'B'}]"
    if seeds is None:
        raise RuntimeError(f"fastdiff::{wanted} when there are draws, got none")
    came = f"{seeds.dtype} {list(seeds.shape)}"
    good = len(shape) > 0 and seeds.dtype == torch.int64 and list(seeds.shape) == [shape[0]]
    _require(good, f"{wanted}, got {came}")
    _require(seeds.device == device, f"{op}: seeds must be on {device}, got {seeds.device}")


def _check(
    op: str,
    inputs: Sequence[Tensor],
    table: Tensor,
    rows: Tensor | None,
    seeds: Tensor | None,
    draws: Sequence[int],
    learned_variance: Tensor | None,
    clip: bool,
    shape: torch.Size,
    outputs: int,
) -> None:
    _require(len(shape) > 0, f"{op}: inputs and outputs must have shape [B, ...], got a scalar")
    _check_elements(op, shape)
    _require(len(inputs) <= MAX_INPUTS, f"{op}: inputs must hold at most {MAX_INPUTS} tensors, got {len(inputs)}")
    _require(len(draws) <= MAX_DRAWS, f"{op}: draws must hold at most {MAX_DRAWS} numbers, got {len(draws)}")
    _require(1 <= outputs <= MAX_OUTPUTS, f"{op}: there must be 1 to {MAX_OUTPUTS} outputs, got {outputs}")
    _check_draws(op, draws)
    good = table.dtype in (torch.float32, torch.float64) and table.ndim == 2 and len(table) > 0
    _require(good, f"{op}: table must be a float32 or float64 [R, W] tensor, got {table.dtype} {list(table.shape)}")
    learned = learned_variance is not None
    widths = [row_width(len(inputs) + len(draws), outputs, clip, learned, squared) for squared in (False, True)]
    wanted = f"{widths[0]} or {widths[1]}" if learned else f"{widths[0]}"
    _require(
        table.shape[1] in widths,
        f"{op}: table must have {wanted} columns for {len(inputs)} inputs, {len(draws)} draws and {outputs} outputs"
        f"{', clip' if clip else ''}{', learned_variance' if learned else ''}; got {list(table.shape)}",
    )
    named = [(f"inputs[{j}]", x) for j, x in enumerate(inputs)]
    if learned_variance is not None:
        named.append(("learned_variance", learned_variance))
    for name, x in named:
        _require(x.dtype in DTYPES.values(), f"{op}: {name} must be a floating tensor, got {x.dtype}")
        _require(x.shape == shape, f"{op}: {name} must have shape {list(shape)}, got {list(x.shape)}")
        _require(x.device == table.device, f"{op}: {name} must be on {table.device}, got {x.device}")
        wide = x.dtype == torch.float64 and table.dtype == torch.float32
        _require(not wide, f"{op}: {name} must not be float64 when the table is float32")
    if rows is not None:
        good = rows.dtype == torch.int64 and list(rows.shape) == [shape[0]]
        _require(
            good,
            f"{op}: rows must be an int64 tensor of shape [{shape[0]}], got {rows.dtype} {list(rows.shape)}",
        )
        _require(rows.device == table.device, f"{op}: rows must be on {table.device}, got {rows.device}")
        # A look at rows on another device would wait for it, and end the capture of a CUDA graph.
        if rows.device.type == "cpu" and rows.numel() > 0 and not torch.compiler.is_compiling():
            inside = int(rows.min()) >= 0 and int(rows.max()) < len(table)
            _require(inside, f"{op}: rows must be from 0 to {len(table) - 1}")
    if draws:
        _check_seeds(op, seeds, shape, table.device)
