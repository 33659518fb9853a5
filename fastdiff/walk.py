"""Walking a plan: launches of the kernel and calls of the network in between. Nothing here reads a tensor back.

What is done at every step is kept short: for a small state on a CPU it takes as long as the arithmetic.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from .engine import require_measured, require_shape, require_variance, split_variance
from .plan import Call, Launch
from .request import Callbacks
from .trace import Apply, Choose, Evaluate, Event, Guide, Measure, Report

if TYPE_CHECKING:
    from .executor import Executor, Numbers


_empty_like, _CONTIGUOUS = torch.empty_like, torch.contiguous_format

ShortWay = Callable[[list[Any], Tensor], bool]
"""(slots, seeds) -> whether the launch was done on them: see `ops.native.small_launch`."""

Way = tuple[list[Tensor], ShortWay | None]
"""For the outputs of a launch tensors of their shape, dtype and device; and the short way, if there is one."""


class Walk:
    """One run in progress: how far it came, and the tensors alive there.

    Args:
        tables: of `Executor.tables`; numbers: for the batch.
        seeds: int64 [B], given: the tensors [B, ...] that the plan reads, by name.
        short: whether launches may go the short way; then `tables` are the executor's own.

    Only memory of the arguments is read, so that the same work can be done again with other values in it.
    """

    def __init__(
        self,
        executor: Executor,
        tables: Sequence[Tensor],
        numbers: Numbers,
        shape: torch.Size,
        seeds: Tensor,
        given: Mapping[str, Tensor],
        calls: Callbacks,
        short: bool = False,
    ):
        self._executor, self._plan, self._calls = executor, executor.plan, calls
        self._shape, self._seeds = shape, seeds
        self._slots: list[Any] = [None] * len(self._plan.names)
        for name, slot in self._plan.given.items():
            self._slots[slot] = given[name]
        self._launches, self._numbers = zip(tables, executor.ways(shape)), numbers
        self._times, self._told = numbers.single
        self._short = short
        self._noise = deque(self._plan.noise)
        self._at = 0

    @property
    def final(self) -> Tensor:
        """The final state, once all items are done."""
        return self._slots[self._plan.final]

    def advance(self, stop: int) -> None:
        """Do the plan's items up to number `stop`."""
        plan, slots, branch = self._plan, self._slots, self._calls.branch
        items, dead, at = plan.items, plan.dead, self._at
        if at == 0:
            self._calls.terms.start(self._shape[0], self._executor.device, self._executor.dtype)
        while at < stop:
            item = items[at]
            if isinstance(item, Launch):
                self._launch(item)
            elif branch is not None and (together := plan.parallel(at)):
                self._in_parallel(items[at : at + together])
                for slot in [slot for several in dead[at : at + together - 1] for slot in several]:
                    slots[slot] = None
                at += together - 1
            else:
                _DO[type(item.event)](self, item)
            for slot in dead[at]:  # nothing after this reads them
                slots[slot] = None
            at += 1
        self._at = at

    def _in_parallel(self, items: Sequence[Launch | Call]) -> None:
        """The guidance gradients of one evaluation on a second stream, beside the network."""
        calls = [item for item in items if isinstance(item, Call)]
        assert self._calls.branch is not None
        with self._calls.branch() as branch:
            for call in calls:
                if isinstance(call.event, Guide):
                    self._guide(call)
        for call in calls:
            if isinstance(call.event, Evaluate):
                self._evaluate(call)
        branch.join()

    # -- launches ---------------------------------------------------------------------------------------------------

    def _launch(self, launch: Launch) -> None:
        slots = self._slots
        if self._noise:
            self._draw(launch.inputs)
        table, (like, short) = next(self._launches)
        if short is not None and self._short and short(slots, self._seeds):
            return
        inputs = [slots[slot] for slot in launch.inputs]
        rows = None if launch.rows is None else slots[launch.rows]
        if launch.measured:
            table, rows = _measured_rows(table, rows)
        if launch.squares:
            sums = self._executor.sum_squares(inputs, table, rows, self._seeds, launch.draws)
            slots[launch.outputs[0].slot] = sums
            return
        variance = None if launch.variance is None else slots[launch.variance]
        out = self._combine(launch, inputs, table, rows, variance, like)
        for output, tensor in zip(launch.outputs, out):
            slots[output.slot] = tensor

    def _combine(
        self,
        launch: Launch,
        inputs: list[Tensor],
        table: Tensor,
        rows: Tensor | None,
        variance: Tensor | None,
        like: list[Tensor],
    ) -> list[Tensor]:
        out = [_empty_like(one, memory_format=_CONTIGUOUS) for one in like]
        seeds = self._seeds if launch.draws else None
        self._executor.combine(inputs, table, rows, seeds, launch.draws, variance, launch.clip, out)
        return out

    def _draw(self, read: Sequence[int]) -> None:
        """Ask for the noise that is read: once each, in the order of the draws, so with those drawn before it."""
        while any(self._slots[s] is None for s in read):
            noise, slot = self._noise.popleft()
            assert self._calls.noise is not None
            z = self._calls.noise(noise.k, noise.step)
            if slot is not None:
                self._slots[slot] = z

    # -- calls ------------------------------------------------------------------------------------------------------

    def _evaluate(self, call: Call) -> None:
        calls, slots, event = self._calls, self._slots, cast(Evaluate, call.event)
        alike = call.rows is None
        t = self._times[self._executor.places[event][0].start] if alike else self._numbers_of(call, self._times)[0]
        x = slots[call.slots[0]]
        if event.term is None or event.second is not None:
            if calls.tick is not None:
                calls.tick(event.step)
        if event.second is not None:
            output, second = calls.terms.both(event.term, x, t)  # type: ignore[arg-type]
            slots[call.second] = self._readable(split_variance(second, self._shape)[0])  # type: ignore[index]
        else:
            output = calls.network(x, t) if event.term is None else calls.terms.opinion(event.term, x, t)
        variance = None
        if not isinstance(output, Tensor) or output.shape != self._shape:
            output, variance = split_variance(output, self._shape)
        slots[_made(call)] = output if output.dtype is self._executor.dtype else self._readable(output)
        if call.variance is not None:
            slots[call.variance] = self._readable(require_variance(variance, output.shape))

    def _guide(self, call: Call) -> None:
        slots, event = self._slots, call.event
        assert isinstance(event, Guide)
        told = self._numbers_of(call, self._told)
        gradient = self._calls.terms.gradient(event.term, slots[call.slots[0]], told, event.how)
        slots[_made(call)] = self._readable(require_shape("guidance", gradient, self._shape))

    def _apply(self, call: Call) -> None:
        slots, event = self._slots, call.event
        assert isinstance(event, Apply)
        result = event.function(*(slots[slot] for slot in call.slots), *self._numbers_of(call, self._told))
        slots[_made(call)] = self._readable(require_shape("denoised_fn", result, self._shape))

    def _choose(self, call: Call) -> None:
        slots, event = self._slots, call.event
        assert isinstance(event, Choose)
        remembers = event.term is not None
        if self._noise:
            self._draw(call.slots)
        things = [self._calls.terms.memory[event.term]] if remembers else [slots[slot] for slot in call.slots]  # type: ignore[index]
        slots[_made(call)] = event.selector(*things, self._candidates(event))

    def _measure(self, call: Call) -> None:
        slots, event = self._slots, call.event
        assert isinstance(event, Measure)
        measured = event.function(torch.stack([slots[slot] for slot in call.slots]), self._candidates(event))
        slots[_made(call)] = require_measured(measured, event.count, self._shape[0])

    def _report(self, call: Call) -> None:
        event, values = call.event, [self._slots[slot] for slot in call.slots]
        assert isinstance(event, Report)
        if self._calls.report is not None:
            self._calls.report(event.step, event.level, values[0], values[1] if len(values) > 1 else None)

    def _numbers_of(self, call: Call, numbers: Sequence[Tensor]) -> list[Tensor]:
        """The numbers of an event, [B] each: from `numbers`, T of [B], by the samples' choices where there are any."""
        rows = None if call.rows is None else self._slots[call.rows]
        return [
            numbers[place.start]
            if place.stop - place.start == 1
            else torch.stack(numbers[place]).gather(0, rows[None])[0]  # type: ignore[arg-type, index]
            for place in self._executor.places[call.event]
        ]

    def _candidates(self, event: Event) -> Tensor:
        """What is told about the candidates of a choice, or to a measurement: [n]."""
        places, numbers = self._executor.places[event], self._numbers.told
        told = (
            numbers[:, 0] if numbers.shape[1] else self._executor.numbers.told
        )  # for no samples, never another plan's
        return told[places[0].start : places[-1].stop] if places else told[:0]

    def _readable(self, tensor: Tensor) -> Tensor:
        """Round a float64 output beside a float32 state; the kernel reads everything else as it is."""
        return tensor.to(self._executor.dtype) if tensor.dtype is torch.float64 else tensor


_DO: Mapping[type[Event], Callable[[Walk, Call], None]] = {
    Evaluate: Walk._evaluate,
    Guide: Walk._guide,
    Apply: Walk._apply,
    Choose: Walk._choose,
    Measure: Walk._measure,
    Report: Walk._report,
}


def _made(call: Call) -> int:
    """The slot of what a call makes."""
    assert call.output is not None
    return call.output


def _measured_rows(table: Tensor, measured: Any) -> tuple[Tensor, Tensor]:
    """A row of coefficients for every sample, [B, W], and its number [B], from measurements [K, B]."""
    batch = measured.shape[1]
    rows = torch.arange(batch, device=table.device)
    return torch.addmm(table[0], measured.t().to(table.dtype), table[1:]) if batch else table, rows
