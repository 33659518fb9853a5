"""Gradients with respect to a state, and to nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def frozen(network: Any) -> Iterator[None]:
    """A module's parameters without gradients, so that autograd keeps nothing for them; as they were afterwards."""
    learned = [p for p in network.parameters() if p.requires_grad] if isinstance(network, nn.Module) else []
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)


def gradient_of(potential: Callable[[Tensor], Tensor], y: Tensor, network: Any) -> Tensor:
    """The gradient of sum(potential(y)) with respect to y: detached, but where y itself is differentiated.

    Args:
        potential: y [B, ...] -> [B].
        network: what `potential` calls; its parameters get no gradients.

    Raises:
        ValueError: the network's output has no gradient with respect to its input.
    """
    twice = torch.is_grad_enabled() and y.requires_grad  # amid a run that is differentiated
    with torch.inference_mode(False), torch.enable_grad(), frozen(network):
        leaf = y if twice else ordinary(y).detach().requires_grad_()
        total = potential(leaf).sum()
        if not total.requires_grad:
            raise ValueError(
                f"{type(network).__name__} must be differentiable with respect to its input, and its output has no "
                "gradient (does it run under torch.no_grad?)"
            )
        (gradient,) = torch.autograd.grad(total, leaf, create_graph=twice)
    return gradient


def ordinary(value: Any) -> Any:
    """A tensor that autograd may keep: a copy of one made in inference mode, and anything else as it is."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
