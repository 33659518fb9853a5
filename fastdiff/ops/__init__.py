"""The three operations everything runs on, and the choice of their backend.

    combine       y_m = sum_j C[m,j] x_j + sum_n S[m,n] z_n: noise made in registers, optional clip, learned variance
    sum_squares   per-sample squared norm of such a combination, without writing it
    normal        the noise alone

Backends: `reference` (PyTorch, anywhere), `cpu` and `cuda` (compiled), `triton` (GPUs without the compiled part). They
make the same noise bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from . import native, reference
from .native import explain

BACKENDS = ("auto", "reference", "cpu", "cuda", "triton")
STATE_DTYPES = (torch.float32, torch.float64)
_CODES = {torch.float16: 5, torch.float32: 6, torch.float64: 7, torch.bfloat16: 15}
DTYPES = tuple(_CODES)


def resolve_backend(backend: str | None, device: torch.device | str = "cpu") -> str:
    """The backend that will run on `device`: "reference", "cpu", "cuda" or "triton".

    `None` reads FASTDIFF_BACKEND, else "auto": the compiled backend of the device if it was built, else on a GPU Triton
    if it runs there, else the reference.

    Raises:
        ValueError: an unknown name, or a backend of another device.
        RuntimeError: a backend that cannot run; the message says what is missing.
    """
    source = "backend" if backend is not None else "FASTDIFF_BACKEND"
    name = backend or os.environ.get("FASTDIFF_BACKEND") or "auto"
    if name not in BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(BACKENDS)}, got {name!r}")
    kind = torch.device(device).type
    if name == "auto":
        return native.best(kind)
    if name in ("cpu", "cuda") and name != kind:
        raise ValueError(f"{source}={name!r} runs on {name} tensors, got device {str(device)!r}")
    native.require(name, kind)
    return name


# What torch.compiler.assume_constant_result does, without importing the compiler: the choice is made, not traced.
resolve_backend._dynamo_marked_constant = True  # type: ignore[attr-defined]


def combine(
    inputs: Sequence[Tensor],
    table: Tensor,
    *,
    rows: Tensor | None = None,
    seeds: Tensor | None = None,
    draws: Sequence[int] = (),
    learned_variance: Tensor | None = None,
    clip: bool = False,
    out_dtypes: Sequence[torch.dtype] | None = None,
    out: Sequence[Tensor] | None = None,
    backend: str | None = None,
) -> list[Tensor]:
    """Linear combinations of tensors and noise, each tensor read once and each result written once.

    With v the inputs followed by the normals of `draws` (K of them), for every sample b, r = table[rows[b]] and every
    element, in the table's dtype, each operation rounded by itself::

        p   = clamp(sum_k P[k] v_k, lo, hi)                                   only with clip
        e   = exp(a * learned_variance + b)                                   only with learned_variance
        y_m = sum_k C[m,k] v_k  [+ c[m] p]  [+ e (sum_k E[m,k] v_k  [+ e sum_k D[m,k] v_k])]

    Args:
        inputs: up to 8 tensors of one shape [B, ...], float32, float64, float16 or bfloat16.
        table: [R, W] float32 or float64, the dtype of the arithmetic. Columns: C [M, K]; then with clip P [K], lo, hi,
            c [M]; then with learned_variance a, b, E [M, K] and, in tables M K columns wider, D [M, K].
        rows: int64 [B], row of each sample; without it all use row 0.
        seeds: int64 [B], needed with draws; a sample's noise depends on its seed, the draw and the element only.
        draws: up to 64 draw numbers, 0 to 2^32 - 1.
        learned_variance: tensor of the inputs' shape.
        out_dtypes: dtypes of the M <= 3 results; default: one, in the table's dtype.
        out: write into these tensors [B, ...] instead (contiguous, not overlapping the inputs).
        backend: see `resolve_backend`.

    Returns:
        M tensors of the inputs' shape (`out`, if given). Differentiable in inputs (linear), not in clip's bounds.

    Raises:
        RuntimeError, ValueError: an argument of the wrong shape, dtype or device; the message names it.
    """
    chosen = resolve_backend(backend, table.device)
    inputs, draws = list(inputs), list(draws)
    if out is None:
        if not inputs:
            raise ValueError("combine: inputs must hold at least one tensor, got none (with no inputs, give out=)")
        dtypes = out_dtypes or (table.dtype,)
        codes = [_code(dtype) for dtype in dtypes]
        gradient = torch.is_grad_enabled() and any(
            x is not None and x.requires_grad for x in (*inputs, learned_variance)
        )
        if gradient or torch.compiler.is_compiling():  # torch.compile moves an operator that writes to nothing
            operation = native.operation("combine", chosen)
            return operation(inputs, table, rows, seeds, draws, learned_variance, clip, codes)
        like, device = inputs[0], table.device  # 3 us less than torch.empty
        contiguous = torch.contiguous_format
        out = [torch.empty_like(like, dtype=dtype, device=device, memory_format=contiguous) for dtype in dtypes]
    native.operation("combine_out", chosen)(inputs, table, rows, seeds, draws, learned_variance, clip, list(out))
    return list(out)


def sum_squares(
    inputs: Sequence[Tensor],
    table: Tensor,
    *,
    rows: Tensor | None = None,
    seeds: Tensor | None = None,
    draws: Sequence[int] = (),
    backend: str | None = None,
) -> Tensor:
    """Per-sample sum of squares of one combination (M = 1, no clip), without writing it: float64 [B].

    Arguments as in `combine`; the table has K columns.
    """
    operation = native.operation("sum_squares", resolve_backend(backend, table.device))
    return operation(list(inputs), table, rows, seeds, list(draws))


def normal(
    seeds: Tensor,
    shape: Sequence[int],
    draw: int = 0,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> Tensor:
    """Standard normals of the noise contract.

    Args:
        seeds: int64 [B] on the device wanted; the 64 bits are the Philox key.
        shape: [B, ...].
        draw: number of the draw, 0 to 2^32 - 1; 0 is the initial latent.
        dtype: float32, or another floating dtype the float32 normals are rounded to.
    """
    operation = native.operation("normal", resolve_backend(backend, seeds.device))
    return operation(seeds, list(shape), draw, _code(dtype))


def _code(dtype: torch.dtype) -> int:
    if dtype not in _CODES:
        raise ValueError(f"dtype must be one of {', '.join(str(d) for d in _CODES)}, got {dtype}")
    return _CODES[dtype]


__all__ = ["BACKENDS", "combine", "explain", "normal", "reference", "resolve_backend", "sum_squares"]
