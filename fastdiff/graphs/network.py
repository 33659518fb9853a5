"""One network evaluation as a graph: what is left of a sampler's time when everything else costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .captured import WARM_UPS, weights_cast_in_every_call
from .device import exclusive, graph_device, is_captured, is_running
from .key import flags, layout, weights


class GraphedNetwork:
    """A network captured for one shape; called like the network.

    Arguments of another shape, weights that were moved or changed switches of PyTorch make it call the network itself,
    and so does a call while a graph is captured or replayed: by a callback, or as the model of a sampler.

    Args:
        model: (x, t, **cond) -> output.
        x, t: example arguments, [B, ...] and [B], on the device; their values do not matter.
        cond: example keyword arguments; tensors among them may change their values from call to call.

    Attributes:
        label_dim, sample_shape: the model's number of classes, and the shape of one sample of x.

    Raises:
        ValueError: arguments that no graph can stand for. What the model or the capture raises comes as it is.
    """

    def __init__(self, model: Callable[..., Tensor], x: Tensor, t: Tensor, **cond: Any):
        self.model, self._place = model, x.device
        self.label_dim, self.sample_shape = getattr(model, "label_dim", None), tuple(x.shape[1:])
        self._device = graph_device(x.device)
        self._signature, tensors = self._look((x, t, cond))
        self._kept = [tensor.untyped_storage() for tensor in tensors]  # they must not be freed before the graph
        self._arguments = pytree.tree_map(lambda a: a.clone() if isinstance(a, Tensor) else a, (x, t, cond))
        x, t, cond = self._arguments
        with torch.no_grad(), exclusive(self._device), weights_cast_in_every_call(x.device):
            for _ in range(WARM_UPS):
                self._device.warm_up(lambda: model(x, t, **cond))
            self._graph, self._output = self._device.capture(lambda: model(x, t, **cond))

    def _look(self, arguments: Any) -> tuple[Hashable, list[Tensor]]:
        """(what the recorded work depends on, the weights)."""
        signature, called = layout(arguments, self._place)
        tensors, state = weights([self.model, *called])
        return (signature, state, flags(self._place)), tensors

    def _is_recorded(self, arguments: Any) -> bool:
        """Whether the recorded work is that of a call."""
        if is_running(self._device) or is_captured(self._place):  # a part of that run or capture
            return False
        try:
            return self._look(arguments)[0] == self._signature
        except ValueError:
            return False

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
        if not self._is_recorded((x, t, cond)):
            return self.model(x, t, **cond)
        with exclusive(self._device):
            return self.replay(x, t, **cond).clone()

    def reset(self) -> None:
        """Free the graph; later calls are the network's own."""
        self._signature = None
        with exclusive(self._device):
            self._graph.reset()
