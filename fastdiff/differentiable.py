"""Gradients through a whole run: the same launches by the operator that has a gradient, networks recomputed."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .executor import Executor
from .ops import native
from .ops.reference_ops import DTYPES
from .readable import run_on_tensors
from .request import Callbacks, Request, TermCalls
from .solvers import Driver, name_of
from .walk import Walk

if TYPE_CHECKING:
    from .sampler import Sampler

_CODES = {dtype: code for code, dtype in DTYPES.items()}


def run_differentiably(sampler: Sampler, request: Request, recompute: bool) -> Tensor:
    """The final state of a request, with its autograd graph.

    Args:
        recompute: networks keep nothing for the backward pass but their inputs, and are called once more in it.

    Raises:
        ValueError: a solver whose steps or step sizes depend on states in a way that has no gradient.
    """
    if isinstance(sampler.solver, Driver):
        raise ValueError(
            f"solver {name_of(sampler.solver)!r} cannot be differentiated: it chooses its steps on the way"
        )
    request = recomputing(request) if recompute else request
    if not sampler.compiled:
        return run_on_tensors(sampler, request)
    executor = sampler.executor(**request.kind)
    if any(launch.measured for launch in executor.plan.launches):
        raise ValueError(
            f"solver {name_of(sampler.solver)!r} takes step sizes from norms of states, whose gradient only the "
            "readable route has: use Sampler(..., compiled=False)"
        )
    return walk(executor, request).final


def walk(executor: Executor, request: Request) -> Walk:
    """A whole run with its autograd graph; without one, where PyTorch records no gradients."""
    numbers = executor.numbers.for_batch(request.shape[0])
    kind = DifferentiableWalk if torch.is_grad_enabled() else Walk
    run = kind(
        executor,
        executor.tables(executor.numbers),
        numbers,
        request.shape,
        request.seeds,
        request.given,
        request.callbacks(),
    )
    run.advance(len(executor.plan.items))
    return run


class DifferentiableWalk(Walk):
    """A run whose launches autograd knows; nothing is written in place."""

    def _combine(self, launch, inputs, table, rows, variance, like):  # type: ignore[no-untyped-def]
        if not inputs:  # noise alone
            return super()._combine(launch, inputs, table, rows, variance, like)
        combine = native.operation("combine", self._executor.backend)
        seeds = self._seeds if launch.draws else None
        return combine(
            inputs, table, rows, seeds, launch.draws, variance, launch.clip, [_CODES[one.dtype] for one in like]
        )


def recomputing(request: Request) -> Request:
    """The same request, with networks that are called once more in the backward pass."""
    return _Recomputing(**{field.name: getattr(request, field.name) for field in fields(request)})


class _Recomputing(Request):
    def callbacks(self) -> Callbacks:
        calls = super().callbacks()
        network = calls.network
        calls.network = lambda x, t: checkpoint(network, x, t, use_reentrant=False)
        calls.terms = _RecomputingTerms(calls.terms)  # type: ignore[assignment]
        return calls


class _RecomputingTerms:
    def __init__(self, terms: TermCalls):
        self._terms = terms

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._terms, name)
        if name not in ("gradient", "opinion", "both"):
            return attribute
        return lambda *inputs: checkpoint(attribute, *inputs, use_reentrant=False)
