"""What a run tells its user on the way: steps, a progress bar, and where a result stopped being finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .process import Level

Report = Callable[[int, "Level | None", Tensor, "Tensor | None"], None]


class StepInfo(NamedTuple):
    """What a callback receives at the end of a step.

    Attributes:
        step: its number, from 0.
        level: where it began.
        x: the state after it, [B, ...] in the state's dtype. Only to be read: writing to it has no defined effect (an
            eager run may go on with it, a graph never does).
        denoised: the last predicted x_0 of the step, alike.
    """

    step: int
    level: Level
    x: Tensor
    denoised: Tensor


class Progress:
    """A tqdm bar over the steps from number `first` on, or nothing."""

    def __init__(self, show: bool, steps: int, first: int = 0):
        self._show, self._steps, self._first, self._done = show, steps, first, first

    def __enter__(self) -> Callable[[int], None] | None:
        if not self._show:
            return None
        from tqdm.auto import tqdm

        self._bar = tqdm(total=self._steps - self._first, unit="step")
        return self._tick

    def _tick(self, step: int) -> None:
        self._bar.update(step - self._done)
        self._done = step

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self._show:
            self._bar.update(self._steps - self._done if kind is None else 0)
            self._bar.close()


def all_finite(x: Tensor) -> bool:
    """Whether nothing in x is NaN or Inf: if its sum is, nothing is; a sum can overflow."""
    return math.isfinite(x.sum()) or bool(torch.isfinite(x).all())


def blame(rerun: Callable[[Report], Tensor], seeds: Tensor) -> None:
    """The result is not finite: run again, looking at every state, and raise.

    Raises:
        FloatingPointError: naming the first bad step and the seeds.
    """
    found: list[str] = []

    def look(step: int, level: Level | None, x: Tensor, denoised: Tensor | None) -> None:
        bad = ~torch.isfinite(x).reshape(len(x), -1).all(1)
        if not found and bool(bad.any()):
            where = "in the starting state" if level is None else f"first in step {step} (sigma {level.sigma_ve:.4g})"
            listed = seeds[bad].tolist()
            more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
            found.append(f"{where}, in the samples with seeds {listed[:8]}{more}")

    rerun(look)
    where = (
        found[0] if found else "in the final state, but not when the run was repeated: the model is not deterministic"
    )
    raise FloatingPointError(f"the result has NaN or Inf, {where}. check=False returns it as it is.")
