"""Runs a case through the library by one of its routes and keeps everything the reference recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastdiff
from fastdiff.ops import native

from ..tolerances import CLOSED_FORM, FLOAT32_FLOOR_FACTOR, FLOAT32_STATE
from .cases import Case, compare_results, error

ROUTES: dict[str, dict[str, Any]] = {
    "readable": {"compiled": False},
    "reference": {"backend": "reference"},
    "cpu": {"backend": "cpu"},
}
"""The solver's own lines on tensors; the compiled plan in PyTorch; the compiled plan in C++."""

ROUTE_PARAMS = [
    pytest.param(
        name, marks=pytest.mark.skipif(name == "cpu" and not native.available("cpu"), reason=native.reason("cpu"))
    )
    for name in ROUTES
]
COMPILED_ROUTE_PARAMS = [param for param in ROUTE_PARAMS if param.values[0] != "readable"]


@dataclass
class Calls:
    """A model that remembers its calls in order; `rounded`: it hears and answers in float32 precision."""

    model: Callable[..., Tensor]
    rounded: bool = False
    inputs: list[Tensor] = field(default_factory=list)
    times: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        out = self._precise(self.model(self._precise(x), t, **cond))
        self.inputs.append(x.clone())
        self.times.append(t.clone())
        self.outputs.append(out.clone())
        return out

    def _precise(self, value: Tensor) -> Tensor:
        return value.float().to(value.dtype) if self.rounded else value


@dataclass
class Run:
    """A finished run: states [N+1, B, ...] (the start first), the predicted x_0 [N, B, ...], and its sampler."""

    sampler: fastdiff.Sampler
    calls: Calls
    states: Tensor
    denoised: Tensor
    sigma_hat: np.ndarray
    first_calls: list[int]  # the number of every step's first call

    @property
    def final(self) -> Tensor:
        return self.states[-1]


def of_step(draw: int, step: int) -> int:
    """Entry i of the recorded noise is the draw of step i."""
    return step


def in_order(draw: int, step: int) -> int:
    """Entry i of the recorded noise is the i-th draw that is made."""
    return draw - 1


def run(
    model: Callable[..., Tensor],
    route: str,
    x_init: np.ndarray,
    *,
    noise: np.ndarray | None = None,
    entry: Callable[[int, int], int] = of_step,
    labels: np.ndarray | None = None,
    dtype: torch.dtype = torch.float64,
    rounded: bool = False,
    **options: Any,
) -> Run:
    """One run from `x_init`, with entry(draw, step) of `noise` [n, B, ...] for each draw; `options` are the sampler's.

    `model` may be a `Calls` already, for guidance terms that watch it. Without `noise` the run must not draw.
    `rounded`: what the run is given (start, noise, the model's outputs) and gives to the model is rounded to float32,
    and nothing else.
    """
    calls = model if isinstance(model, Calls) else Calls(model, rounded)
    denoised, levels, first_calls = [], [], [0]
    sampler = fastdiff.Sampler(calls, dtype=dtype, **ROUTES[route], **options)

    def given(array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, dtype=torch.float32 if rounded else dtype).to(dtype)

    def replayed(draw: int, step: int) -> Tensor:
        assert noise is not None, f"step {step} drew noise, the reference did not"
        return given(noise[entry(draw, step)])

    def look(info: fastdiff.StepInfo) -> None:
        denoised.append(info.denoised.clone())
        first_calls.append(len(calls.inputs))
        levels.append(info.level.sigma_ve if isinstance(info.level.sigma_ve, float) else np.nan)  # one for all samples

    start = given(x_init)
    final, states = sampler(
        start.shape,
        x_init=start,
        noise=replayed,
        labels=None if labels is None else torch.as_tensor(labels),
        callback=look,
        return_trajectory=True,
    )
    plain = sampler(
        start.shape, x_init=start, noise=replayed, labels=None if labels is None else torch.as_tensor(labels)
    )
    assert torch.equal(final, states[-1])
    if dtype == torch.float64:
        torch.testing.assert_close(plain, final, rtol=CLOSED_FORM, atol=CLOSED_FORM)
    for recorded in (calls.inputs, calls.times, calls.outputs):
        del recorded[len(recorded) // 2 :]
    return Run(sampler, calls, states, torch.stack(denoised), np.array(levels), first_calls[:-1])


def same_for_all(times: list[Tensor]) -> np.ndarray:
    """[n] from n times [B] that must not differ inside the batch."""
    stacked = torch.stack(times)
    assert (stacked == stacked[:, :1]).all()
    return stacked[:, 0].numpy()


def check_float32_state(case: Case, route: str, replay: Callable[..., Mapping[str, Any]], states: str) -> None:
    """A run with a float32 state against the same run in float64: all states together, and the samples by themselves.

    Each stays within the tolerance, except where float32 itself does not allow it: with x_0 = (x - sigma eps) / alpha
    and alpha = 5e-5, say, rounding nothing but what goes in and out (start, noise, the network's inputs and outputs)
    changes x_0 by 1e-3. That change of the same quantity is measured, and FLOAT32_FLOOR_FACTOR times as much is
    allowed: the sums of a step round as well. For the compiled routes, which are what runs: the solver's lines on
    tensors form x_0 and eps one after the other, and lose digits that the composed coefficients keep.
    """
    exact = replay(case, route)[states]
    single = replay(case, route, torch.float32)[states]
    rounded = replay(case, route, rounded=True)[states]
    for name, part in {"states": slice(None), "samples": slice(-1, None)}.items():
        floor = error(case.folder, rounded[part], exact[part])
        bound = max(FLOAT32_STATE, FLOAT32_FLOOR_FACTOR * floor)
        label = f"float32 {name}, {route}"
        compare_results(case, {name: single[part]}, {name: exact[part]}, bound, label=label)
