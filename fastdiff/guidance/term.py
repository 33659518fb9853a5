"""What a guidance term is to the sampler.

Two kinds. A `Gradient` says, at a state, which way a log-density rises; its gradient joins the launch that follows the
network: one more read of an element, no launch. A `Contrast` is a second opinion of the network's output, from other
conditioning or another network, that the prediction is pushed away from.

A term never sees numbers of the run on the host while it works: what it needs (a time, a switch) it asks for in `call`,
where the level is known, and receives as tensors with one number per sample. So one CUDA graph serves other levels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import check_finite
from ..process import Level
from ..symbols import Chosen, Number, chosen_by, each

Weight = float | Sequence[float] | Callable[[Level], float]
"""One number, one per step in sampling order, or a function of the level."""


@dataclass(frozen=True)
class Position:
    """Where in a run an evaluation is: step (0 is the noisiest) of how many, number within the step (Heun: 0 and 1),
    level."""

    step: int
    steps: int
    order: int
    level: Level


@dataclass(frozen=True)
class GradientCall:
    """One use of a gradient term.

    Attributes:
        weight: w; the score is moved by w times the gradient with respect to the state.
        c_in: the term is called on c_in x; its gradient there times c_in is that with respect to x.
        told: numbers, handed over as tensors [B].
        how: everything else that the term's work depends on; hashable, the same for the same work.
    """

    weight: Number
    c_in: Number = 1.0
    told: Sequence[Number] = ()
    how: Hashable = None


class Gradient:
    """A term whose gradient is added; nothing is where alpha = 0, for there the state says nothing of x_0.

    Attributes:
        called: the user's network or function, which CUDA graphs watch.
        dtype: of its input; None is the state's.
        rule: "x0" adds w sigma^2 / alpha G to the predicted x_0, before it is clipped; "clipped" afterwards; "mean"
            adds w times the posterior variance times G to the mean of solver "ddpm".
        scaled_again: with rule "clipped", epsilon scaling divides the guided noise once more (ADM-ES's DDIM).
        keeps: name of a conditioning argument that is for the term alone: the model does not get it.
    """

    called: Callable[..., Any]
    dtype: torch.dtype | None = None
    rule: str = "x0"
    scaled_again: bool = False
    keeps: str | None = None

    def call(self, at: Position) -> GradientCall | None:
        """What to do at an evaluation; None leaves it unguided."""
        raise NotImplementedError

    def start(self, batch: int, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """What it remembers of a run, as tensors, when the run begins."""
        return {}

    def gradient(
        self, y: Tensor, told: Sequence[Tensor], how: Hashable, memory: dict[str, Tensor], cond: dict[str, Any]
    ) -> Tensor:
        """The gradient at y, of its shape."""
        raise NotImplementedError


class Contrast:
    """A term with a second opinion: x_0 + (w - 1) (x_0 - its x_0).

    Attributes:
        called: another network, or None: the sampler's own with other conditioning.
        prediction: how `called`'s output is read; None: as the sampler's.
        batched: one call of the network on twice the batch gives both outputs.
        rescale: see `ClassifierFree`.
        gives: values that the network gets from the term, which CUDA graphs watch like `called`.
    """

    called: Callable[..., Any] | None = None
    prediction: Any = None
    batched: bool = False
    rescale: float = 0.0
    keeps: str | None = None
    gives: Mapping[str, Any] | None = None

    @staticmethod
    def mix(output: Tensor, opinion: Tensor, w: Tensor, phi: Tensor) -> Tensor:
        """The pushed output, for terms with `rescale`."""
        raise NotImplementedError

    def weight(self, at: Position) -> Number:
        """w at an evaluation; 1 leaves it unguided, and nothing is called."""
        raise NotImplementedError

    def opinion(self, model: Callable[..., Tensor], cond: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        """(x, t) -> the output it is contrasted with."""
        raise NotImplementedError

    def both(
        self, model: Callable[..., Tensor], cond: dict[str, Any]
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(x, t) -> (output, opinion) from one call, for `batched`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Plain(Gradient):
    """A user's function `(x, level, **cond) -> gradient`, called on the state itself."""

    called: Callable[..., Tensor] = field()

    def call(self, at: Position) -> GradientCall:
        if any(not isinstance(value, (int, float)) for value in at.level[:2]):
            raise ValueError(
                "guidance must be a fastdiff.guidance.Gradient where samples choose their own levels (boosting, time "
                "shift): a function (x, level) sees one level for all"
            )
        return GradientCall(1.0, how=at.level)

    def gradient(self, y, told, how, memory, cond):  # type: ignore[no-untyped-def]
        return self.called(y, how, **cond)


def checked_weight(name: str, weight: Weight) -> Weight:
    """A weight whose numbers are finite."""
    if callable(weight):
        return weight
    if getattr(weight, "ndim", 0) or (isinstance(weight, Sequence) and not isinstance(weight, str)):
        return [check_finite(name, w) for w in weight]  # type: ignore[union-attr]
    return check_finite(name, weight)


def at_each(function: Callable[[Level], float], level: Level) -> Number:
    """function(level); where samples choose among levels, one number for each candidate."""
    rows = next(iter(chosen_by(level)), None)
    if rows is None:
        return function(level)
    values = [function(Level(*map(float, one))) for one in zip(*np.broadcast_arrays(*map(each, level)))]
    return values[0] if len(set(values)) == 1 else Chosen(values, rows)


def weight_at(name: str, weight: Weight, at: Position) -> Number:
    """The number that a weight is at an evaluation; a function never sees but one level at a time.

    Raises:
        ValueError: a list of another length than the steps, or a function's value that is not finite.
    """
    if callable(weight):
        return at_each(lambda level: check_finite(name, weight(level)), at.level)
    if isinstance(weight, Sequence):
        if len(weight) != at.steps:
            raise ValueError(f"{name} must have one entry per step ({at.steps}), got {len(weight)}")
        return float(weight[at.step])
    return float(weight)
