"""Guidance: one protocol for every term that steers a sampler.

    guidance(x, level, **cond) -> gradient          of a log-density with respect to x, same shape as x

`x` is the state [B, ...] in the state's dtype, `level` a `process.Level`. A term with weight w adds
w sigma^2 / alpha * gradient to the predicted x_0, that is w * gradient to the score; the addition is part of the launch
that follows the network, and no solver knows of it. Several terms may be given, with one weight each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..errors import check_finite

Guidance = Callable[..., Tensor]


def guidance_terms(
    guidance: Guidance | Sequence[Guidance] | None, scale: float | Sequence[float]
) -> tuple[list[Guidance], list[float]]:
    """Terms and weights as two lists of one length.

    Raises:
        TypeError: a term that is not callable.
        ValueError: another number of weights than terms, or a weight that is not finite.
    """
    terms = [] if guidance is None else list(guidance) if isinstance(guidance, Sequence) else [guidance]
    for term in terms:
        if not callable(term):
            raise TypeError(f"guidance must be callable (x, level, **cond) -> gradient, got {term!r}")
    scales = list(scale) if isinstance(scale, Sequence) else [scale] * len(terms)
    if len(scales) != len(terms):
        raise ValueError(f"guidance_scale must have one weight per guidance term ({len(terms)}), got {len(scales)}")
    return terms, [check_finite("guidance_scale", s) for s in scales]
