"""Per-step lambdas that match the norm of the predicted epsilon to that on data. Experimental."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..arguments import label_tensor
from ..engine import split_variance
from ..errors import check_count, check_finite
from ..prediction import PreviousX
from ..process import VP, Level
from ..random import seed_tensor
from ..reporting import StepInfo
from ..sampler import Sampler

__all__ = ["NormMatch", "match_norms"]


@dataclass(frozen=True)
class NormMatch:
    """A schedule and what it came from; all in sampling order.

    Attributes:
        schedule: lambda of every step.
        sampling, reference: mean L2 norm of the network's epsilon in the first evaluation of the step, while sampling
            with the lambdas of the steps before, and on noised data at the same level.
    """

    schedule: tuple[float, ...]
    sampling: tuple[float, ...]
    reference: tuple[float, ...]


@torch.no_grad()
def match_norms(
    sampler: Sampler,
    data: Tensor,
    *,
    seeds: Sequence[int] | int,
    labels: Any = None,
    cond: dict[str, Any] | None = None,
    strength: float = 1.0,
    clip: float = 0.1,
    batch: int = 250,
) -> NormMatch:
    """lambda_i = 1 + strength (r_i - 1) in [1 - clip, 1 + clip], r_i: norm of epsilon while sampling over that on data.

    Step by step: r_i is measured on the trajectory that the lambdas before it make, so N steps cost about N / 2 runs.
    The noise is paired: sample j starts from the same normal z_j that makes the reference alpha x_j + sigma z_j at
    every level, with the same label, so that the sampling noise of the two norms largely cancels. The norms are those
    of the network alone, before guidance.

    This is a diagnostic more than a selector. r_i holds what has gathered over all steps, not the error of step i. With
    a positive strength, the rule of the papers, the feedback is positive too: a lambda below 1 takes more noise away,
    which lowers the next ratio. A denoiser whose epsilon is 4 % too large therefore gets lambdas below 1 and a worse
    result. A negative strength works against the drift: on that denoiser, -1 comes to 1.04 by itself (with steps enough
    that the solver's own error is small). On real data neither sign helps everywhere.

    Args:
        sampler: its epsilon_scale is not looked at; all else stays as it is.
        data: [N, ...] in the model's range, of the shape of samples.
        seeds: one per image, or the first.
        labels: of the images, classes [N] or one-hot rows; needed by a class-conditional model.
        cond: further keyword arguments of the model and the guidance terms, the same for every batch.
        strength: 0 leaves 1; see above for its sign.
        clip: largest distance from 1, in [0, 1).
        batch: samples at a time.

    Raises:
        ValueError, TypeError: an argument that cannot be used.
        FloatingPointError: a norm is not finite, or 0 on data.
    """
    strength, clip = check_finite("strength", strength), check_finite("clip", clip)
    if not 0 <= clip < 1:
        raise ValueError(f"clip must be in [0, 1), the largest distance of lambda from 1, got {clip}")
    if not isinstance(data, Tensor) or not data.is_floating_point() or data.ndim < 2 or len(data) < 2:
        raise TypeError("data must be a floating-point tensor [N, ...] of two or more images")
    if sampler.shape is not None and data.shape[1:] != torch.Size(sampler.shape):
        raise ValueError(f"data must have shape [N, {', '.join(map(str, sampler.shape))}], got {list(data.shape)}")
    if isinstance(sampler.prediction, PreviousX):
        raise ValueError("norm matching needs a network whose output means something at one level, got 'previous_x'")
    classes = getattr(sampler.model, "label_dim", None)
    if classes and labels is None and (cond or {}).get("labels") is None:
        raise ValueError("data_labels must be given for a class-conditional model: norms differ between classes")
    known = None if labels is None else label_tensor(labels, len(data), classes, sampler.device)
    every = seed_tensor(seeds, len(data), sampler.device)
    size = check_count("batch", batch)
    parts = [slice(start, start + size) for start in range(0, len(data), size)]

    schedule = [1.0] * sampler.levels.steps
    found = []
    for step in range(len(schedule)):
        norms = [0.0, 0.0]
        for some in parts:
            labelled = None if known is None else known[some]
            sums = _Probe(sampler, data[some], every[some], step).measure(schedule, labelled, cond)
            norms = [norm + one / len(data) for norm, one in zip(norms, sums)]
        if not (math.isfinite(norms[0]) and math.isfinite(norms[1]) and norms[1] > 0):
            raise FloatingPointError(f"the norm of epsilon in step {step} is {norms[0]}, and {norms[1]} on data")
        scale = 1 + strength * (norms[0] / norms[1] - 1)
        schedule[step] = min(max(scale, 1 - clip), 1 + clip)
        found.append(norms)
    return NormMatch(tuple(schedule), *zip(*found))


class _Measured(Exception):
    """Ends a run whose norms are known."""


class _Probe:
    """Stands in for the model, until the first evaluation of one step."""

    def __init__(self, sampler: Sampler, data: Tensor, seeds: Tensor, step: int):
        self.sampler, self.seeds, self.wanted = sampler, seeds, step
        self.model = sampler.model
        self.data = data.to(sampler.device, sampler.dtype)
        self.z = ops.normal(seeds, self.data.shape, 0, sampler.dtype, sampler.backend)
        self.step = 0

    def __getattr__(self, name: str) -> Any:  # label_dim and whatever else the sampler and its terms look for
        return getattr(self.model, name)

    def measure(self, schedule: Sequence[float], labels: Tensor | None, cond: dict[str, Any] | None) -> list[float]:
        """Sums over the batch of the norms of epsilon while sampling and on data."""
        own = self.sampler
        run = own.replace(
            model=self, epsilon_scale=list(schedule), model_dtype=own.model_dtype, device=own.device, shape=own.shape,
            graph="off", compile=False, check=False,
        )  # fmt: skip

        def finished(info: StepInfo) -> None:
            self.step = info.step + 1

        try:
            run(tuple(self.data.shape), seeds=self.seeds, labels=labels, cond=cond, callback=finished)
        except _Measured as measured:
            return list(measured.args)
        raise ValueError(f"norm matching needs a solver that calls the network in every step, not in {self.wanted}")

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        output = self.model(x, t, **cond)
        if self.step < self.wanted:
            return output
        rows = len(self.data)  # of a batch that a guidance term has doubled, the sampler's own half comes first
        time = t.double()[:rows]
        sampling = self._norms(x[:rows], output[:rows], time)
        clean, noise, scale = self._columns(time, lambda level, c: (level.alpha, level.sigma, c.c_in))
        noised = (scale * (clean * self.data + noise * self.z)).to(x.dtype)
        again = torch.cat([noised, x[rows:]])
        reference = self._norms(noised, self.model(again, t, **cond)[:rows], time)
        raise _Measured(float(sampling.sum()), float(reference.sum()))

    def _norms(self, x: Tensor, output: Tensor, time: Tensor) -> Tensor:
        """||(u - alpha x_0) / sigma|| of every sample, float64 [B], from the network's input c_in u and output."""
        mean = split_variance(output, x.shape)[0].double()
        on_x, on_output = self._columns(
            time,
            lambda level, c: (
                (1 - level.alpha * c.c_skip) / (level.sigma * c.c_in),
                -level.alpha * c.c_out / level.sigma,
            ),
        )
        return (on_x * x.double() + on_output * mean).flatten(1).norm(dim=1)

    def _columns(self, time: Tensor, numbers: Any) -> list[Tensor]:
        """Numbers that depend on a sample's level, as tensors [B, 1, ...]."""
        prediction = self.sampler.prediction
        known = {}
        for value in time.unique().tolist():
            level = _level(self.sampler, value)
            known[value] = numbers(level, prediction.coefficients(level))
        table = torch.tensor([known[value] for value in time.tolist()], dtype=torch.float64, device=time.device)
        return [column.reshape(-1, *[1] * (self.data.ndim - 1)) for column in table.T]


def _level(sampler: Sampler, time: float) -> Level:
    """The level whose time the network was told: one of the run's, or one that a step went to by itself (churn)."""
    prediction, process = sampler.prediction, sampler.process
    for level in sampler.levels:
        if level.sigma > 0 and math.isclose(prediction.time(level), time, rel_tol=1e-5, abs_tol=1e-6):
            return level
    if prediction.own_time:
        return process.level_at_sigma(prediction.sigma_at(time))
    if isinstance(process, VP):
        return process.level(round(time * process.T / 1000 if process.rescale_timesteps else time))
    return process.level_at_sigma(time)
