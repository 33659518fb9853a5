"""The operators of `torch.ops.fastdiff` as Triton kernels: same arguments, same checks, same bits as the reference.

Nothing here waits for the device, so a CUDA graph can record it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from . import reference, register
from . import reference_ops as checks
from . import triton_kernels as kernels

INTERPRETED = bool(kernels.INTERPRETED.value)
"""Whether Triton interprets the kernels on the CPU: TRITON_INTERPRET=1 was set when it was imported."""

_PER_THREAD = 4  # elements: one Philox block, and one 16-byte word of float32
_MOST_WARPS = 8
_FEW_PROGRAMS = 512  # fewer leave a large GPU partly idle
_MOST_SAMPLES = 65535  # of one launch: the second dimension of a grid
_FEW_DRAWS = 2  # that arguments of a kernel name, and code is made for
_INTERPRETED_BLOCK = 1 << 16  # the interpreter takes its time for every program, hardly for its elements


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
    checks.check_combine_out(inputs, table, rows, seeds, draws, learned_variance, clip, out)
    _combine(inputs, table, rows, seeds, draws, learned_variance, clip, out)


@torch.library.custom_op(
    "fastdiff_triton::combine",
    mutates_args=(),
    schema="(Tensor[] inputs, Tensor table, Tensor? rows, Tensor? seeds, int[] draws, Tensor? learned_variance, "
    "bool clip, int[] out_dtypes) -> Tensor[]",
)
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
    """`fastdiff::combine`, with its gradient."""
    dtypes = checks.check_combine(inputs, table, rows, seeds, draws, learned_variance, clip, out_dtypes)
    out = [torch.empty(inputs[0].shape, dtype=dtype, device=table.device) for dtype in dtypes]
    _combine(inputs, table, rows, seeds, draws, learned_variance, clip, out)
    return out


@torch.library.custom_op(
    "fastdiff_triton::sum_squares",
    mutates_args=(),
    schema="(Tensor[] inputs, Tensor table, Tensor? rows, Tensor? seeds, int[] draws) -> Tensor",
)
def sum_squares(
    inputs: Sequence[Tensor], table: Tensor, rows: Tensor | None, seeds: Tensor | None, draws: Sequence[int]
) -> Tensor:
    """`fastdiff::sum_squares`: tiles, then the sum of the tiles; a sample's result depends on that sample alone."""
    checks.check_sum_squares(inputs, table, rows, seeds, draws)
    batch, elements = len(inputs[0]), math.prod(inputs[0].shape[1:])
    sums = torch.empty(batch, dtype=torch.float64, device=table.device)
    block, warps = _block(elements)
    tiles = triton.cdiv(elements, block)
    partial = torch.empty(batch, tiles, dtype=torch.float64, device=table.device)
    for part in _parts(batch):
        columns, strides = _columns([x[part] for x in inputs], elements)
        row, seed = _per_sample(rows, part), _per_sample(seeds, part) if draws else None
        grid = (tiles, len(sums[part]))
        if elements > 0:
            aligned = _alignment(elements, strides), block
            read = partial[part], columns, strides, table.contiguous(), row, seed
            if len(draws) > _FEW_DRAWS:
                numbers = _in_memory(tuple(draws), table.device), len(draws), elements
                _launch(kernels.sum_squares_many_kernel, grid, warps, (*read, *numbers, *aligned))
            else:
                _launch(
                    kernels.sum_squares_kernel, grid, warps, (*read, *_words(draws), elements, len(draws), *aligned)
                )
        _launch(kernels.add_tiles_kernel, (1, grid[1]), 1, (sums[part], partial[part], tiles, 128))
    return sums


@torch.library.custom_op(
    "fastdiff_triton::normal",
    mutates_args=(),
    schema="(Tensor seeds, SymInt[] shape, int draw, int dtype) -> Tensor",
)
def normal(seeds: Tensor, shape: Sequence[int], draw: int, dtype: int) -> Tensor:
    """`fastdiff::normal`."""
    checks.check_normal(seeds, shape, draw, dtype)
    out = torch.empty(shape, dtype=checks.DTYPES[dtype], device=seeds.device)
    elements = math.prod(shape[1:])
    block, warps = _block(elements, len(out))
    for part in _parts(len(out)) if elements > 0 else ():
        y, seed = out[part], _per_sample(seeds, part)
        grid = (triton.cdiv(elements, block), len(y))
        numbers = (_words([draw])[0], elements, _alignment(elements), block)
        _launch(kernels.normal_kernel, grid, warps, (y, seed, *numbers))
    return out


combine.register_fake(register.combine_fake)
combine.register_autograd(register.combine_backward, setup_context=register.combine_context)
sum_squares.register_fake(register.sum_squares_fake)
normal.register_fake(register.normal_fake)


def _combine(
    inputs: Sequence[Tensor],
    table: Tensor,
    rows: Tensor | None,
    seeds: Tensor | None,
    draws: Sequence[int],
    learned_variance: Tensor | None,
    clip: bool,
    out: Sequence[Tensor],
) -> None:
    """`combine_out` of checked arguments."""
    batch, elements = len(out[0]), math.prod(out[0].shape[1:])
    if batch == 0 or elements == 0:
        return
    if not inputs and not draws:  # only what a table without columns says: not worth a kernel
        reference.combine(inputs, table, rows, seeds, draws, learned_variance, clip, out)
        return
    if batch > _MOST_SAMPLES:
        for part in _parts(batch):
            sliced = None if learned_variance is None else learned_variance[part]
            some = [x[part] for x in inputs], table, _per_sample(rows, part), _per_sample(seeds, part), draws, sliced
            _combine(*some, clip, [y[part] for y in out])
        return
    variance = () if learned_variance is None else (learned_variance,)
    columns, strides = _columns((*inputs, *variance), elements)
    block, warps = _block(elements, batch)
    count = len(inputs)
    learned = learned_variance is not None
    squared = learned and table.shape[1] > checks.row_width(count + len(draws), len(out), clip, learned)
    many = len(draws) > _FEW_DRAWS
    arguments = (
        tuple(out),
        columns[:count],
        strides[:count],
        table.contiguous(),
        None if rows is None else rows.contiguous(),
        seeds.contiguous() if draws and seeds is not None else None,
        *((_in_memory(tuple(draws), table.device), len(draws)) if many else _words(draws)),
        columns[-1] if variance else None,
        strides[-1] if variance else 0,
        elements,
        *(() if many else (len(draws),)),
        clip,
        squared,
        _alignment(elements, strides),
        block,
    )
    kernel = kernels.combine_many_kernel if many else kernels.combine_kernel
    _launch(kernel, (triton.cdiv(elements, block), batch), warps, arguments)


def _launch(kernel: Any, grid: tuple[int, int], warps: int, arguments: tuple[Any, ...]) -> None:
    """Launch a kernel on the current stream of the device of its first argument."""
    first = arguments[0][0] if isinstance(arguments[0], tuple) else arguments[0]
    with torch.accelerator.device_index(first.device.index):
        kernel[grid](*arguments, num_warps=warps, enable_fp_fusion=False)


def _parts(batch: int) -> list[slice]:
    """The samples of each launch."""
    return [slice(i, i + _MOST_SAMPLES) for i in range(0, batch, _MOST_SAMPLES)]


def _block(elements: int, batch: int | None = None) -> tuple[int, int]:
    """Elements and warps of a program: many, but no more than a sample needs, nor so many that a GPU is not filled.

    Without `batch` the choice is by the sample alone.
    """
    if INTERPRETED:
        return min(triton.next_power_of_2(max(elements, _PER_THREAD)), _INTERPRETED_BLOCK), 1
    warp, warps = _PER_THREAD * _warp_size(), _MOST_WARPS
    while warps > 1:
        large = elements <= warps // 2 * warp
        few = batch is not None and triton.cdiv(elements, warps * warp) * batch < _FEW_PROGRAMS
        if not large and not few:
            break
        warps //= 2
    return warps * warp, warps


@cache
def _warp_size() -> int:
    return triton.runtime.driver.active.get_current_target().warp_size


def _columns(tensors: Sequence[Tensor], elements: int) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Tensors whose samples are contiguous, copied where they are not, and their strides from sample to sample."""
    dense = [x if x.is_contiguous() or x[0].is_contiguous() else x.contiguous() for x in tensors]
    return tuple(dense), tuple(x.stride(0) if len(x) > 1 else elements for x in dense)


def _alignment(elements: int, strides: Sequence[int] = ()) -> int:
    """What every sample's first and last element are a multiple of: a whole word of four, or nothing known."""
    return _PER_THREAD if all(n % _PER_THREAD == 0 for n in (elements, *strides)) else 1


def _per_sample(x: Tensor | None, part: slice) -> Tensor | None:
    return None if x is None else x[part].contiguous()


def _words(draws: Sequence[int]) -> tuple[int, int]:
    """Two draw numbers as the int32 of the same bits, which have one type: Triton compiles anew for another."""
    first, second = (k - 2**32 if k >= 2**31 else k for k in (*draws, 0, 0)[:2])
    return first, second


@cache  # for good: a CUDA graph may read it again; 256 bytes at most, for every launch of a plan
def _in_memory(draws: tuple[int, ...], device: torch.device) -> Tensor:
    """Draw numbers on a device, as the int32 of the same bits."""
    return torch.tensor([k - 2**32 if k >= 2**31 else k for k in draws], dtype=torch.int32).to(device)
