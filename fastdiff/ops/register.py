"""What torch needs to know of the compiled operators beside their kernels: shapes without data, and gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from .reference_ops import DTYPES


def register() -> None:
    """Register fake kernels and autograd for `torch.ops.fastdiff`; called once, when `fastdiff._C` is loaded."""
    torch.library.register_fake("fastdiff::combine", combine_fake)
    torch.library.register_fake("fastdiff::combine_out", lambda *_: None)
    torch.library.register_fake("fastdiff::sum_squares", sum_squares_fake)
    torch.library.register_fake("fastdiff::normal", normal_fake)
    torch.library.register_autograd("fastdiff::combine", combine_backward, setup_context=combine_context)


def combine_fake(inputs, table, rows, seeds, draws, learned_variance, clip, out_dtypes):  # type: ignore[no-untyped-def]
    return [torch.empty(inputs[0].shape, dtype=DTYPES[code], device=table.device) for code in out_dtypes]


def sum_squares_fake(inputs, table, rows, seeds, draws):  # type: ignore[no-untyped-def]
    return torch.empty(inputs[0].shape[0], dtype=torch.float64, device=table.device)


def normal_fake(seeds, shape, draw, dtype):  # type: ignore[no-untyped-def]
    return torch.empty(shape, dtype=DTYPES[dtype], device=seeds.device)


def combine_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    tensors, table, rows, seeds, draws, learned_variance, clip, _ = inputs
    ctx.count = len(tensors)
    nonlinear = clip or learned_variance is not None
    saved = tensors if nonlinear else []
    ctx.save_for_backward(table, rows, seeds, learned_variance, *saved)
    ctx.shape, ctx.dtypes = tensors[0].shape, [x.dtype for x in tensors]
    ctx.draws, ctx.clip, ctx.outputs = draws, clip, len(output)


def combine_backward(ctx, grads):  # type: ignore[no-untyped-def]
    """d y_m / d x_j = C[m,j] + c[m] P[j] (lo <= p <= hi) + e E[m,j] + e^2 D[m,j];
    d y_m / d v = a e (sum_k E[m,k] v_k + 2 e sum_k D[m,k] v_k)."""
    table, rows, seeds, learned_variance, *inputs = ctx.saved_tensors
    shape, learned = ctx.shape, learned_variance is not None
    columns = ctx.count + len(ctx.draws)
    row = reference.split_row(table if rows is None else table[rows], columns, ctx.outputs, ctx.clip, learned)

    def per_sample(value: Tensor) -> Tensor:
        return (
            value[:1].reshape(-1, *[1] * (len(shape) - 1))
            if rows is None
            else value.reshape(-1, *[1] * (len(shape) - 1))
        )

    grads = [None if g is None else g.to(table.dtype) for g in grads]
    if ctx.clip or learned:
        values = [x.to(table.dtype) for x in inputs]
        values += [reference.normal(seeds, shape, k).to(table.dtype) for k in ctx.draws]
    if ctx.clip:
        p = sum(per_sample(row["P"][:, k]) * v for k, v in enumerate(values))
        inside = ((p >= per_sample(row["lo"])) & (p <= per_sample(row["hi"]))).to(table.dtype)
    if learned:
        e = torch.exp(per_sample(row["a"]) * learned_variance.to(table.dtype) + per_sample(row["b"]))

    totals: list[Tensor] = []
    for j in range(ctx.count):
        total = torch.zeros(shape, dtype=table.dtype, device=table.device)
        for m, g in enumerate(grads):
            if g is None:
                continue
            weight = per_sample(row["C"][:, m, j])
            if ctx.clip:
                weight = weight + per_sample(row["c"][:, m]) * per_sample(row["P"][:, j]) * inside
            if learned:
                weight = weight + per_sample(row["E"][:, m, j]) * e
            if "D" in row:
                weight = weight + per_sample(row["D"][:, m, j]) * e * e
            total = total + weight * g
        totals.append(total.to(ctx.dtypes[j]))
    variance_grad = None
    if learned:
        variance_grad = torch.zeros(shape, dtype=table.dtype, device=table.device)
        for m, g in enumerate(grads):
            if g is not None:
                scaled = sum(per_sample(row["E"][:, m, k]) * v for k, v in enumerate(values))
                if "D" in row:
                    scaled = scaled + 2 * e * sum(per_sample(row["D"][:, m, k]) * v for k, v in enumerate(values))
                variance_grad = variance_grad + per_sample(row["a"]) * e * scaled * g
        variance_grad = variance_grad.to(learned_variance.dtype)
    no_draws: list[Tensor] | None = None if ctx.draws else []  # torch takes an empty list for a list of tensors
    return totals, None, None, None, no_draws, variance_grad, None, None
