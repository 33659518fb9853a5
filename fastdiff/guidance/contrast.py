"""Second opinions: classifier-free guidance (Ho & Salimans 2022) and autoguidance (Karras et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import check_finite
from ..prediction import Prediction, get_prediction
from ..process import Level
from ..symbols import Number
from .term import Contrast, Position, Weight, at_each, checked_weight, weight_at


class _Interval(Contrast):
    """A weight that is 1 outside an interval of noise levels (Kynkaanniemi et al. 2024)."""

    def __init__(self, scale: Weight, interval: Sequence[float] | None):
        self.scale = checked_weight("scale", scale)
        self.interval = (0.0, math.inf)
        if interval is not None:
            try:
                lo, hi = (float(bound) for bound in interval)
            except (TypeError, ValueError):
                raise ValueError(f"interval must be (lo, hi) in sigma, got {interval!r}") from None
            if not lo < hi:
                raise ValueError(f"interval must be (lo, hi) with lo < hi, got {interval!r}")
            self.interval = lo, hi

    def weight(self, at: Position) -> Number:
        lo, hi = self.interval

        def inside(level: Level) -> Any:
            return weight_at("scale", self.scale, replace(at, level=level)) if lo < level.sigma_ve <= hi else 1.0

        return at_each(inside, at.level)


class ClassifierFree(_Interval):
    """x_0 = x_0(null) + scale (x_0(cond) - x_0(null)): the conditional prediction pushed away from one without.

    Args:
        scale: 1 is the conditional model, and calls nothing; a number, one for each step, or a function of the level.
        null: what replaces the conditioning: a dict of keyword arguments (None leaves one out, a number fills a tensor
            like the one that was given), or a function of the call's `cond` that returns the keywords.
        batched: one call of the network on twice the batch, instead of two calls. The null conditioning must then hold
            tensors where the other does.
        interval: (lo, hi): guided where lo < sigma <= hi, in VE terms (Kynkaanniemi et al. 2024).
        rescale: phi of Lin et al. 2024, Sec. 3.4: the guided output gets that share of the standard deviation of the
            conditional one back, over all elements of a sample. Not linear, so it costs a few PyTorch operations beside
            the launch.
    """

    def __init__(
        self,
        scale: Weight,
        *,
        null: Mapping[str, Any] | Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        batched: bool = False,
        interval: Sequence[float] | None = None,
        rescale: float = 0.0,
    ):
        super().__init__(scale, interval)
        if null is not None and not isinstance(null, Mapping) and not callable(null):
            raise TypeError(f"null must be a dict of keyword arguments or a function of cond, got {null!r}")
        self.null = null if callable(null) else {"labels": None} if null is None else dict(null)
        self.called, self.gives = (self.null, None) if callable(self.null) else (None, self.null)
        self.batched = bool(batched)
        self.rescale = check_finite("rescale", rescale)
        if not 0.0 <= self.rescale <= 1.0:
            raise ValueError(f"rescale must be from 0 to 1, got {rescale}")

    @staticmethod
    def mix(output: Tensor, opinion: Tensor, w: Tensor, phi: Tensor) -> Tensor:
        """Guided, with a share phi of the output's own standard deviation."""
        if math.prod(output.shape[1:]) < 2:
            raise ValueError(f"rescale must be 0 for samples of one element, got an output of shape {[*output.shape]}")
        shape = (-1, *(1,) * (output.ndim - 1))
        own, w, phi = output.to(w.dtype), w.view(shape), phi.view(shape)
        guided = opinion + w * (own - opinion)
        axes = tuple(range(1, output.ndim))
        ratio = own.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
        return guided * (phi * ratio + (1 - phi))

    def without(self, cond: dict[str, Any]) -> dict[str, Any]:
        """The conditioning with its null in place."""
        if callable(self.null):
            return self.null(cond)
        found = dict(cond)
        for name, value in self.null.items():
            given = cond.get(name)
            if value is None:
                found.pop(name, None)
            elif isinstance(value, (int, float)) and isinstance(given, Tensor):
                found[name] = torch.full_like(given, value)
            else:
                found[name] = value
        return found

    def opinion(self, model: Callable[..., Tensor], cond: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, t: model(x, t, **self.without(cond))

    def both(
        self, model: Callable[..., Tensor], cond: dict[str, Any]
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        def call(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            null = self.without(cond)
            if null.keys() != cond.keys():
                changed = ", ".join(sorted(cond.keys() ^ null.keys()))
                raise ValueError(f"null must give a value for {changed} when batched=True: both halves are one call")
            doubled = {name: _doubled(name, cond[name], null[name], len(x)) for name in cond}
            output = model(torch.cat([x, x]), torch.cat([t, t]), **doubled)
            return output[: len(x)], output[len(x) :]

        return call


class AutoGuidance(_Interval):
    """x_0 pushed away from that of a worse version of the model (Karras et al. 2024, "Guiding a diffusion model with a
    bad version of itself").

    Args:
        model: the guiding network, called like the sampler's with the same conditioning.
        scale: 1 is the model itself, and calls nothing; a number, one for each step, or a function of the level.
        prediction: how the guiding network's output is read; None: as the sampler's.
        interval: (lo, hi): guided where lo < sigma <= hi, in VE terms.
    """

    def __init__(
        self,
        model: Callable[..., Tensor],
        scale: Weight,
        *,
        prediction: str | Prediction | None = None,
        interval: Sequence[float] | None = None,
    ):
        super().__init__(scale, interval)
        if not callable(model):
            raise TypeError(f"model must be callable (x, t, **cond) -> output, got {model!r}")
        self.called = model
        self.prediction = None if prediction is None else get_prediction(prediction)

    def opinion(self, model: Callable[..., Tensor], cond: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        guide = self.called
        assert guide is not None
        return lambda x, t: guide(x, t, **cond)


def _doubled(name: str, given: Any, null: Any, batch: int) -> Any:
    """One value of the conditioning for both halves of a batch."""
    if isinstance(given, Tensor) and given.ndim and len(given) == batch:
        if not isinstance(null, Tensor) or null.shape != given.shape:
            raise ValueError(
                f"null[{name!r}] must be a tensor of shape {list(given.shape)} when batched=True, got {null!r}"
            )
        return torch.cat([given, null.to(given)])
    if given is not null:
        raise ValueError(f"cond[{name!r}] must hold one entry per sample when batched=True and null changes it")
    return given
