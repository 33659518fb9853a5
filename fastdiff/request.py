"""One call of a sampler, and what a run of its plan asks of the outside world."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .guidance.term import Contrast, Gradient
from .process import Level


class TermCalls:
    """The guidance terms of one run, with its conditioning and what they remember of it.

    Args:
        model: the network, with the conditioning that is for it.
        cond: all of the conditioning.
    """

    def __init__(
        self,
        terms: Sequence[Gradient | Contrast],
        model: Callable[..., Tensor],
        for_model: dict[str, Any],
        cond: dict[str, Any],
    ):
        self._terms, self._cond = terms, cond
        self.memory: list[dict[str, Tensor]] = [{} for _ in terms]
        contrasts = {k: term for k, term in enumerate(terms) if isinstance(term, Contrast)}
        self._both = {k: term.both(model, for_model) for k, term in contrasts.items() if term.batched}
        self._opinions = {
            k: t.opinion(model, for_model) for k, t in contrasts.items() if not t.batched or len(contrasts) > 1
        }

    def start(self, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        """Begin a run."""
        for k, term in enumerate(self._terms):
            if isinstance(term, Gradient):
                self.memory[k] = term.start(batch, device, dtype)

    def gradient(self, k: int, y: Tensor, told: Sequence[Tensor], how: Hashable) -> Tensor:
        """The gradient of term k at y."""
        term = self._terms[k]
        assert isinstance(term, Gradient)
        return term.gradient(y, told, how, self.memory[k], self._cond)

    def opinion(self, k: int, x: Tensor, t: Tensor) -> Tensor:
        """The second opinion of term k."""
        return self._opinions[k](x, t)

    def both(self, k: int, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The network's output and term k's opinion, from one call."""
        return self._both[k](x, t)


@dataclass
class Callbacks:
    """What the executor needs of the outside world.

    Attributes:
        network: (x in the network's dtype, time [B]) -> output.
        terms: the guidance terms.
        noise: (draw, step) -> tensor, for plans that read their noise from tensors.
        report: (step, level, state, x_0 or None), at the end of every step of an observed plan; step -1 is the start.
        tick: (step), called before every network evaluation.
        branch: () -> `graphs.Branch`, a second stream for guidance gradients beside the network; None: one stream.
    """

    network: Callable[[Tensor, Tensor], Tensor]
    terms: TermCalls
    noise: Callable[[int, int], Tensor] | None = None
    report: Callable[[int, Level | None, Tensor, Tensor | None], None] | None = None
    tick: Callable[[int], None] | None = None
    branch: Callable[[], Any] | None = None


@dataclass
class Request:
    """One call of a sampler.

    Attributes:
        model, terms: the network `(x, t, **cond)` and the guidance terms.
        shape: [B, ...]; seeds: int64 [B]; x_init: [B, ...] or None; cond: keywords of the model and the terms.
        more: other tensors [B, ...] that the plan reads, by name.
        rows: how many of the B samples are wanted; the others fill up a batch.
        noise, report, tick: as in `Callbacks`.
        start, upwards: see `course.Kind`.
    """

    model: Callable[..., Tensor]
    terms: Sequence[Gradient | Contrast]
    shape: torch.Size
    seeds: Tensor
    x_init: Tensor | None
    cond: dict[str, Any]
    rows: int
    noise: Callable[[int, int], Tensor] | None = None
    report: Callable[[int, Level | None, Tensor, Tensor | None], None] | None = None
    tick: Callable[[int], None] | None = None
    more: dict[str, Tensor] = field(default_factory=dict)
    start: int = 0
    upwards: bool = False

    @property
    def given(self) -> dict[str, Tensor]:
        """The tensors that the plan reads, by name."""
        return self.more if self.x_init is None else {"x_init": self.x_init, **self.more}

    @property
    def kind(self) -> dict[str, Any]:
        """The fields of the `course.Kind` of plan that it needs."""
        tensors = {name: name in self.given for name in ("x_init", "image", "mask")}
        seen = {"noise": self.noise is not None, "observe": self.report is not None}
        return {**tensors, **seen, "start": self.start, "upwards": self.upwards}

    @property
    def called(self) -> list[Any]:
        """The networks and functions that a run calls."""
        return [self.model, *(term.called for term in self.terms if term.called is not None)]

    @property
    def gives(self) -> list[Any]:
        """What the network gets from the terms."""
        return [term.gives for term in self.terms if isinstance(term, Contrast) and term.gives]

    @property
    def kinds(self) -> Hashable:
        """Which terms they are, and what they keep from the model."""
        return tuple((type(term), term.keeps) for term in self.terms)

    def callbacks(self) -> Callbacks:
        """The network and the guidance terms with their conditioning, and what the caller wants to hear."""
        kept = {term.keeps for term in self.terms}
        for_model = {name: value for name, value in self.cond.items() if name not in kept}
        terms = TermCalls(self.terms, self.model, for_model, self.cond)
        network = partial(self.model, **for_model) if for_model else self.model
        return Callbacks(network, terms, self.noise, self.report, self.tick)
