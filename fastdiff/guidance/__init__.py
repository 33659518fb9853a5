"""Guidance: terms that steer a sampler, in any combination.

    DiscriminatorGuidance   EDM-G++: towards what a discriminator takes for real
    ClassifierGuidance      ADM: towards a class
    ClassifierFree          away from the unconditional prediction
    AutoGuidance            away from a worse model
    (x, level, **cond) -> gradient of a log-density with respect to x, any function

`Sampler(guidance=term or terms, guidance_scale=...)` multiplies each term's own weight. A gradient with weight w adds
w sigma^2 / alpha * gradient to the predicted x_0, that is w * gradient to the score; the addition is part of the launch
that follows the network, and no solver knows of it.

A sampler reads a term when it is made. To change one, make another: `sampler.replace(guidance=..., guidance_scale=...)`
keeps the graphs that still fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..errors import check_choice, check_finite
from .classifier import ClassifierGuidance
from .contrast import AutoGuidance, ClassifierFree
from .discriminator import Boosting, DiscriminatorGuidance
from .term import Contrast, Gradient, GradientCall, Plain, Position

Guidance = Gradient | Contrast | Callable[..., Tensor]


def guidance_terms(
    guidance: Guidance | Sequence[Guidance] | None, scale: float | Sequence[float]
) -> tuple[list[Gradient | Contrast], list[float]]:
    """Terms and weights as two lists of one length.

    Raises:
        TypeError: a term that is not callable.
        ValueError: another number of weights than terms, a weight that is not finite, or an unknown rule.
    """
    terms: list[Any] = [] if guidance is None else list(guidance) if isinstance(guidance, Sequence) else [guidance]
    for term in terms:
        if not isinstance(term, (Gradient, Contrast)) and not callable(term):
            raise TypeError(f"guidance must be callable (x, level, **cond) -> gradient, got {term!r}")
    scales = list(scale) if isinstance(scale, Sequence) else [scale] * len(terms)
    if len(scales) != len(terms):
        raise ValueError(f"guidance_scale must have one weight per guidance term ({len(terms)}), got {len(scales)}")
    wrapped = [term if isinstance(term, (Gradient, Contrast)) else Plain(term) for term in terms]
    for term in wrapped:
        if isinstance(term, Gradient):
            check_choice("rule", term.rule, ("x0", "clipped", "mean"))
    return wrapped, [check_finite("guidance_scale", s) for s in scales]


__all__ = [
    "AutoGuidance",
    "Boosting",
    "ClassifierFree",
    "ClassifierGuidance",
    "Contrast",
    "DiscriminatorGuidance",
    "Gradient",
    "GradientCall",
    "Guidance",
    "Position",
    "guidance_terms",
]
