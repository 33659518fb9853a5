"""The readable backend: every operation in plain PyTorch, on any device.

It is shipped, tested like the compiled backends, and used when there is no compiled part. The noise and the linear
arithmetic are the same bits as in C++, CUDA and Triton, because every operation is a separate IEEE-754 operation here
as there: no fused multiply-add, no library transcendental function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# --- the noise contract (csrc/philox.h holds the same constants) -----------------------------------------------------

PHILOX_M0, PHILOX_M1 = 0xD2511F53, 0xCD9E8D57
PHILOX_W0, PHILOX_W1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF
_TOGETHER = 1 << 16  # normals made by the same operations: many small draws cost as much as one


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low words of a 32 x 32 bit product. int64 wraps modulo 2^64, so the masked high word is exact."""
    product = b * a
    return (product >> 32) & _LOW, product & _LOW


def philox4x32_10(
    counter: Sequence[Tensor | int], key: Sequence[Tensor | int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 (Salmon et al. 2011) on words held in int64 tensors, values 0 to 2^32 - 1."""
    c0, c1, c2, c3 = (torch.as_tensor(c, dtype=torch.int64) for c in counter)
    k0, k1 = (torch.as_tensor(k, dtype=torch.int64) for k in key)
    for _ in range(10):
        hi0, lo0 = _multiply(PHILOX_M0, c0)
        hi1, lo1 = _multiply(PHILOX_M1, c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + PHILOX_W0) & _LOW, (k1 + PHILOX_W1) & _LOW
    return c0, c1, c2, c3


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Horner's rule from the highest power down, in float32, every product and sum rounded by itself."""
    y = torch.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        y = y * x + c  # torch rounds c to float32 first
    return y


LOG = (0.20887454, -0.32521993, 0.3427833, -0.39782923, 0.4996272, -0.66670835, 1.0)
SIN = (-3.5579415e-5, 2.4893708e-3, -8.074513e-2, 0.7853981)
COS = (3.4905204e-6, -3.2586334e-4, 1.5854282e-2, -0.30842513, 1.0)
MINUS_2_LN_2 = (4.2438888e-4, -1.38671875)  # low and high part


def minus_two_log(u: Tensor) -> Tensor:
    """-2 ln u for float32 u in [2^-33, 1]: u = 2^e (1 + f), -2 ln(1 + f) = f^2 (1 + f Q(f)) - 2 f."""
    bits = u.view(torch.int32)
    above = bits - 0x3F3504F3  # sqrt(1/2)
    e = (above >> 23).to(torch.float32)
    f = (bits - (above & -0x800000)).view(torch.float32) - 1.0
    low, high = MINUS_2_LN_2
    q = _polynomial(f, LOG) * (f * f)
    q = q - (f + f)
    q = q + e * low
    return q + e * high


def box_muller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two float32 normals of two 32-bit words (int64 tensors): sqrt(-2 ln u) (sin v, cos v), in cuRAND's order.

    u = a 2^-32 + 2^-33 in float32, v = (b + 1/2) 2^-32 turns, of which the integer b gives the quadrant exactly.
    """
    u = a.to(torch.float32) * 2.0**-32 + 2.0**-33
    # torch.sqrt of float32 may go to a vector library that is not correctly rounded; through float64 it is.
    radius = torch.sqrt(minus_two_log(u).double()).float()
    x = (((b << 2) | 2) & _LOW).to(torch.int32).to(torch.float32) * 2.0**-31
    z = x * x
    sin, cos = _polynomial(z, SIN) * x, _polynomial(z, COS)
    quadrant = ((b + (1 << 29)) >> 30) & 3
    odd = (quadrant & 1).bool()
    sin_v, cos_v = torch.where(odd, cos, sin), torch.where(odd, sin, cos)
    sin_v = torch.where(quadrant >= 2, -sin_v, sin_v)
    cos_v = torch.where((quadrant == 1) | (quadrant == 2), -cos_v, cos_v)
    return radius * sin_v, radius * cos_v


def normal(seeds: Tensor, shape: Sequence[int], draw: int = 0) -> Tensor:
    """Draw `draw` of the noise contract for every sample, float32 [B, ...]: element e is lane e % 4 of block e // 4."""
    return _normals(seeds, shape, [draw])[0]


def _normals(seeds: Tensor, shape: Sequence[int], draws: Sequence[int]) -> Tensor:
    """Several draws, float32 [N, B, ...]."""
    shape = tuple(shape)
    numel = math.prod(shape[1:])
    groups = torch.arange((numel + 3) // 4, dtype=torch.int64, device=seeds.device)[None, None, :]
    numbers = torch.cat([torch.full_like(groups, draw) for draw in draws])
    key = (seeds & _LOW)[:, None], ((seeds >> 32) & _LOW)[:, None]
    a, b, c, d = philox4x32_10((groups, numbers, 0 * groups, 0 * groups), key)
    lanes = torch.stack((*box_muller(a, b), *box_muller(c, d)), dim=-1)
    return lanes.reshape(len(draws), len(seeds), 4 * groups.shape[-1])[..., :numel].reshape(len(draws), *shape)


# --- combine and sum_squares ------------------------------------------------------------------------------------------


def split_row(table: Tensor, columns: int, outputs: int, clip: bool, learned: bool) -> dict[str, Tensor]:
    """Named views of a coefficient table [R, W]: C [R,M,K]; P [R,K], lo, hi [R], c [R,M]; a, b [R], E [R,M,K], and D
    [R,M,K] if it is wide enough."""
    parts, at = {}, 0

    def take(name: str, *shape: int) -> None:
        nonlocal at
        size = math.prod(shape)
        parts[name] = table[:, at : at + size].reshape(len(table), *shape)
        at += size

    take("C", outputs, columns)
    if clip:
        take("P", columns)
        take("lo")
        take("hi")
        take("c", outputs)
    if learned:
        take("a")
        take("b")
        take("E", outputs, columns)
        if at < table.shape[1]:
            take("D", outputs, columns)
    return parts


def _columns(
    inputs: Sequence[Tensor], table: Tensor, seeds: Tensor | None, draws: Sequence[int], shape: Sequence[int]
) -> list[Tensor]:
    columns = [x.to(table.dtype) for x in inputs]
    if draws:
        assert seeds is not None
        together = max(1, _TOGETHER // max(1, math.prod(shape)))
        for first in range(0, len(draws), together):
            columns.extend(_normals(seeds, shape, draws[first : first + together]).to(table.dtype).unbind())
    return columns


def _linear(coefficients: Tensor, columns: Sequence[Tensor]) -> Tensor:
    """sum_k coefficients[:, k] * columns[k], left to right, every product and sum rounded by itself."""
    total = None
    for k, v in enumerate(columns):
        term = coefficients[:, k].reshape(-1, *[1] * (v.ndim - 1)) * v
        total = term if total is None else total + term
    return coefficients.new_zeros(()) if total is None else total


def combine(
    inputs: Sequence[Tensor],
    table: Tensor,
    rows: Tensor | None,
    seeds: Tensor | None,
    draws: Sequence[int],
    learned_variance: Tensor | None,
    clip: bool,
    out: Sequence[Tensor],
) -> None:
    """Write the launch's outputs into `out` (see fastdiff.ops.combine for the arithmetic)."""
    shape = out[0].shape
    if out[0].numel() == 0:
        return
    columns = _columns(inputs, table, seeds, draws, shape)
    selected = table[:1] if rows is None else table[rows]
    row = split_row(selected, len(columns), len(out), clip, learned_variance is not None)

    def per_sample(value: Tensor) -> Tensor:
        return value.reshape(-1, *[1] * (len(shape) - 1))

    if clip:
        p = _linear(row["P"], columns)
        lo, hi = per_sample(row["lo"]), per_sample(row["hi"])
        p = torch.where(p < lo, lo, torch.where(p > hi, hi, p))
    if learned_variance is not None:
        e = torch.exp(per_sample(row["a"]) * learned_variance.to(table.dtype) + per_sample(row["b"]))
    for m, y in enumerate(out):
        value = _linear(row["C"][:, m], columns)
        if clip:
            value = value + per_sample(row["c"][:, m]) * p
        if learned_variance is not None:
            scaled = _linear(row["E"][:, m], columns)
            if "D" in row:
                scaled = scaled + e * _linear(row["D"][:, m], columns)
            value = value + e * scaled
        y.copy_(value)


def sum_squares(
    inputs: Sequence[Tensor], table: Tensor, rows: Tensor | None, seeds: Tensor | None, draws: Sequence[int]
) -> Tensor:
    """Per-sample sum of squares of one combination, accumulated in float64: [B]."""
    columns = _columns(inputs, table, seeds, draws, inputs[0].shape)
    y = _linear(table[:1] if rows is None else table[rows], columns)
    squares = y.double().square().reshape(len(y), math.prod(y.shape[1:]))
    while (n := squares.shape[1]) > 1:  # halves are added: an order that no batch and no thread changes
        head, rest = squares.split([(n + 1) // 2, n // 2], dim=1)
        squares = torch.cat([head[:, : n // 2] + rest, head[:, n // 2 :]], dim=1)
    return squares.sum(1)
