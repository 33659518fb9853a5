"""Classifier guidance: the score plus the gradient of a classifier's log probability (Dhariwal & Nichol 2021)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import check_choice
from ..ops import DTYPES
from ..symbols import each
from .autograd import gradient_of, ordinary
from .term import Gradient, GradientCall, Position, Weight, checked_weight, weight_at
from .vp import input_scale, tau_of_sigma


class ClassifierGuidance(Gradient):
    """grad log p(label | x_t), by any solver's rule or one of ADM's two.

    Args:
        classifier: (x, t) -> logits [B, K]; labels are those of the call, class indices [B] or one-hot rows [B, K].
        scale: number, one for each step, or a function of the level; ADM's `classifier_scale`.
        rule: "x0" moves the predicted x_0 before it is clipped, with every solver and process. "mean" is ADM's
            Algorithm 1: solver "ddpm" adds scale times its variance times the gradient to the mean. "eps" is ADM's
            Algorithm 2 (DDIM): like "x0", but after clipping.
        space: "process": the classifier sees the state and the time that the model sees. "vp": the state in VP terms
            and its VP time in [0, 1], whatever the process, like a discriminator.
        scaled_again: with rule "eps" and epsilon scaling, divide the guided noise by lambda a second time, as ADM-ES's
            code does by its structure, and not as its paper says.
        shared: labels are the model's conditioning too; False for an unconditional model.
        dtype: of the classifier's input; None is the state's.
    """

    def __init__(
        self,
        classifier: Callable[..., Tensor],
        scale: Weight = 1.0,
        *,
        rule: str = "x0",
        space: str = "process",
        scaled_again: bool = False,
        shared: bool = True,
        dtype: torch.dtype | None = None,
    ):
        if not callable(classifier):
            raise TypeError(f"classifier must be callable (x, t) -> logits, got {classifier!r}")
        self.called = classifier
        self.scale = checked_weight("scale", scale)
        self.rule = {"eps": "clipped"}.get(check_choice("rule", rule, ("x0", "mean", "eps")), rule)
        self.space = check_choice("space", space, ("process", "vp"))
        self.scaled_again = bool(scaled_again)
        self.dtype = check_choice("dtype", dtype, (None, *DTYPES))
        self.keeps = None if shared else "labels"

    def call(self, at: Position) -> GradientCall | None:
        weight = weight_at("scale", self.scale, at)
        if not any(each(weight)):
            return None
        if self.space == "process":
            return GradientCall(weight, told=(at.level.time,))
        return GradientCall(weight, input_scale(at.level), (tau_of_sigma(at.level.sigma_ve),))

    def gradient(
        self, y: Tensor, told: Sequence[Tensor], how: Hashable, memory: dict[str, Tensor], cond: dict[str, Any]
    ) -> Tensor:
        if not isinstance(cond.get("labels"), Tensor):
            came = cond.get("labels")
            raise ValueError(f"labels must be given as classes to a sampler with classifier guidance, got {came!r}")

        def potential(leaf: Tensor) -> Tensor:  # runs outside inference mode
            labels, time = map(ordinary, (cond["labels"], told[0]))
            classes = labels.argmax(1) if labels.ndim == 2 else labels
            logits = self.called(leaf, time)
            return torch.log_softmax(logits, dim=-1).gather(1, classes[:, None])[:, 0]

        return gradient_of(potential, y, self.called)
