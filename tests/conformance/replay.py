"""Runs a case through the library by one of its routes and keeps everything the reference recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastdiff

ROUTES: dict[str, dict[str, Any]] = {
    "readable": {"compiled": False},
    "reference": {"backend": "reference"},
    "cpu": {"backend": "cpu"},
}
"""The solver's own lines on tensors; the compiled plan in PyTorch; the compiled plan in C++."""


@dataclass
class Calls:
    """A model that remembers its inputs, times and outputs, in call order."""

    model: Callable[..., Tensor]
    inputs: list[Tensor] = field(default_factory=list)
    times: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        out = self.model(x, t, **cond)
        self.inputs.append(x.clone())
        self.times.append(t.clone())
        self.outputs.append(out.clone())
        return out


@dataclass
class Run:
    """A finished run: states [N+1, B, ...] (the start first), the predicted x_0 [N, B, ...], and its sampler."""

    sampler: fastdiff.Sampler
    calls: Calls
    states: Tensor
    denoised: Tensor
    sigma_hat: np.ndarray

    @property
    def final(self) -> Tensor:
        return self.states[-1]


def run(
    model: Callable[..., Tensor],
    route: str,
    x_init: np.ndarray,
    *,
    noise: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> Run:
    """One run from `x_init`, with entry i of `noise` [n, B, ...] for the draw of step i; `options` are the sampler's.

    Without `noise` the run must not draw.
    """
    calls, denoised, levels = Calls(model), [], []
    sampler = fastdiff.Sampler(calls, dtype=dtype, **ROUTES[route], **options)

    def replayed(draw: int, step: int) -> Tensor:
        assert noise is not None, f"step {step} drew noise, the reference did not"
        return torch.as_tensor(noise[step], dtype=dtype)

    def look(info: fastdiff.StepInfo) -> None:
        denoised.append(info.denoised.clone())
        levels.append(info.level.sigma_ve)

    start = torch.as_tensor(x_init, dtype=dtype)
    final, states = sampler(
        start.shape,
        x_init=start,
        noise=replayed,
        labels=None if labels is None else torch.as_tensor(labels),
        callback=look,
        return_trajectory=True,
    )
    plain = sampler(start.shape, x_init=start, noise=replayed, labels=None if labels is None else torch.as_tensor(labels))
    assert torch.equal(final, states[-1])
    assert torch.equal(final, plain), "a run that is looked at must end where one that is not looked at ends"
    for recorded in (calls.inputs, calls.times, calls.outputs):
        del recorded[len(recorded) // 2 :]
    return Run(sampler, calls, states, torch.stack(denoised), np.array(levels))


def same_for_all(times: list[Tensor]) -> np.ndarray:
    """[n] from n times [B] that must not differ inside the batch."""
    stacked = torch.stack(times)
    assert (stacked == stacked[:, :1]).all()
    return stacked[:, 0].numpy()


Replay = Callable[..., Mapping[str, Any]]
