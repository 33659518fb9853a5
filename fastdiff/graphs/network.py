"""One network evaluation as a graph: what is left of a sampler's time when everything else costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .device import exclusive, graph_device
from .key import flags, layout, modules_of, weights


class GraphedNetwork:
    """A network captured for one shape; called like the network.

    Arguments of another shape, weights that were moved or changed switches of PyTorch make it call the network itself.

    Args:
        model: (x, t, **cond) -> output.
        x, t: example arguments, [B, ...] and [B], on the device; their values do not matter.
        cond: example keyword arguments; tensors among them may change their values from call to call.
    """

    def __init__(self, model: Callable[..., Tensor], x: Tensor, t: Tensor, **cond: Any):
        self.model, self._place = model, x.device
        self._device = graph_device(x.device)
        self._signature, tensors = self._look((x, t, cond))
        self._kept = [tensor.untyped_storage() for tensor in tensors]  # they must not be freed before the graph
        self._arguments = pytree.tree_map(lambda a: a.clone() if isinstance(a, Tensor) else a, (x, t, cond))
        x, t, cond = self._arguments
        with torch.no_grad(), exclusive(self._device):
            for _ in range(3):
                self._device.warm_up(lambda: model(x, t, **cond))
            self._graph, self._output = self._device.capture(lambda: model(x, t, **cond))

    def _look(self, arguments: Any) -> tuple[Hashable, list[Tensor]]:
        """(what the recorded work depends on, the weights)."""
        tensors, state = weights(modules_of(self.model))
        return (layout(arguments, self._place), tuple(state), flags(self._place)), tensors

    def replay(self, *arguments: Any, **cond: Any) -> Tensor:
        """The output for these arguments, or the last ones, in memory that the next replay of any graph overwrites.

        Nothing is checked: the caller knows that only values have changed.
        """
        if arguments:
            for static, leaf in zip(pytree.tree_leaves(self._arguments), pytree.tree_leaves((*arguments, cond))):
                if isinstance(static, Tensor):
                    static.copy_(leaf)
        self._graph.replay()
        return self._output

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """The output [B, ...], in memory of its own."""
        if self._look((x, t, cond))[0] != self._signature:
            return self.model(x, t, **cond)
        with exclusive(self._device):
            return self.replay(x, t, **cond).clone()

    def reset(self) -> None:
        """Free the graph."""
        self._graph.reset()
