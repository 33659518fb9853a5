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
from .plan import Call, Launch, Plan
from .request import Callbacks
from .trace import Apply, Choose, Evaluate, Event, Guide, Measure, Report

if TYPE_CHECKING:
    from .executor import Executor, Numbers


FEW = 16  # samples whose choices and measurements are numbers of Python: for more, tensors are sooner done

_empty_like, _CONTIGUOUS = torch.empty_like, torch.contiguous_format

ShortWay = Callable[[list[Any], Tensor], int]
"""(slots, seeds) -> how many launches were done on them, this and some that follow: see `ops.native.small_launch`."""

Script = list[tuple[Callable[["Walk", Any], None] | None, Any, list[int]]]
"""For every item of a plan what does it (None: it is a launch), the item, and the slots that nothing after it reads."""

Way = tuple[list[Tensor], ShortWay | None]
"""For the outputs of a launch tensors of their shape, dtype and device; and the short way, if there is one."""


class Walk:
    """One run in progress: how far it came, and the tensors alive there.

    Args:
        tables: of `Executor.tables`; numbers: for the batch.
        seeds: int64 [B], given: the tensors [B, ...] that the plan reads, by name.
        short: whether launches may go the short way; then `tables` are the executor's own. The choices and
            measurements of few samples are lists of numbers then, which a launch reads sooner than tensors.

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
        self._few = short and 0 < shape[0] <= FEW
        self._noise = deque(self._plan.noise)
        self._at = 0

    @property
    def final(self) -> Tensor:
        """The final state, once all items are done."""
        return self._slots[self._plan.final]

    def advance(self, stop: int) -> None:
        """Do the plan's items up to number `stop`."""
        slots, seeds, launches, noise = self._slots, self._seeds, self._launches, self._noise
        if self._at == 0:
            self._calls.terms.start(self._shape[0], self._executor.device, self._executor.dtype)
        script = self._executor.branched if self._calls.branch is not None else self._executor.script
        network, tick, times = self._calls.network, self._calls.tick, self._times
        dtype, shape = self._executor.dtype, self._shape
        ahead = 0  # launches already done
        for do, item, dead in script[self._at : stop]:
            if do is None:
                table, (like, short) = next(launches)
                if noise:
                    self._draw(item.inputs)
                if ahead == 0 and short is not None and self._short:
                    ahead = short(slots, seeds)
                if ahead > 0:
                    ahead -= 1
                else:
                    self._launch(item, table, like)
            elif do is _network and tick is None:
                x, time, made, _ = item
                output = network(slots[x], times[time])
                usual = type(output) is Tensor and output.dtype is dtype and output.shape == shape
                slots[made] = output if usual else self._output(output)
            else:
                do(self, item)
            for slot in dead:  # nothing after this reads them
                slots[slot] = None
        self._at = stop

    def _in_parallel(self, calls: Sequence[Call]) -> None:
        """The guidance gradients of one evaluation on a second stream, beside the network."""
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

    def _launch(self, launch: Launch, table: Tensor, like: list[Tensor]) -> None:
        slots = self._slots
        inputs = [slots[slot] for slot in launch.inputs]
        rows = None if launch.rows is None else self._tensor(slots[launch.rows])
        if launch.measured:
            table, rows = _measured_rows(table, rows)
        if launch.squares:
            sums = self._executor.sum_squares(inputs, table, rows, self._seeds, launch.draws)
            slots[launch.outputs[0].slot] = sums.tolist() if self._few else sums
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

    def _output(self, output: Any) -> Tensor:
        """The mean half of what the network returned."""
        if not isinstance(output, Tensor) or output.shape != self._shape:
            output = split_variance(output, self._shape)[0]
        return self._readable(output)

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
        if self._noise:
            self._draw(call.slots)
        things = [slots[slot] for slot in call.slots]
        if event.term is not None:
            things = [self._calls.terms.memory[event.term]]
        rows: Any = None
        if self._few:
            small = getattr(event.selector, "small", None)
            rows = None if small is None else small(*things, self._executor.told_of(event))
        if rows is None:
            rows = event.selector(*things, self._candidates(event))
            rows = rows.tolist() if self._few else rows
        slots[call.output] = rows  # type: ignore[index]

    def _measure(self, call: Call) -> None:
        slots, (squares, read, small) = self._slots, call.measured
        if self._noise:
            self._draw(read)
        if small is not None and self._few:
            told = self._executor.told_of(call.event)
            slots[call.output] = small([slots[s] for s in squares], told, *[slots[s] for s in read])  # type: ignore[index]
            return
        event = cast(Measure, call.event)
        together = torch.stack([self._tensor(slots[slot]) for slot in squares])
        measured = event.function(together, self._candidates(event), *[slots[slot] for slot in read])
        measured = require_measured(measured, event.count, self._shape[0])
        slots[_made(call)] = measured.tolist() if self._few else measured

    def _report(self, call: Call) -> None:
        event, values = call.event, [self._slots[slot] for slot in call.slots]
        assert isinstance(event, Report)
        if self._calls.report is not None:
            self._calls.report(event.step, event.level, values[0], values[1] if len(values) > 1 else None)

    def _numbers_of(self, call: Call, numbers: Sequence[Tensor]) -> list[Tensor]:
        """The numbers of an event, [B] each: from `numbers`, T of [B], by the samples' choices where there are any."""
        rows, places = None if call.rows is None else self._slots[call.rows], self._executor.places[call.event]
        if type(rows) is list and len(set(rows)) == 1:
            return [numbers[place.start + (rows[0] if place.stop - place.start > 1 else 0)] for place in places]
        return [
            numbers[place.start]
            if place.stop - place.start == 1
            else torch.stack(numbers[place]).gather(0, self._tensor(rows)[None])[0]  # type: ignore[arg-type]
            for place in places
        ]

    def _tensor(self, numbers: Any) -> Tensor:
        """Choices or measurements, where few are lists."""
        if isinstance(numbers, Tensor):
            return numbers
        integers = bool(numbers) and isinstance(numbers[0], int)
        return torch.tensor(numbers, dtype=torch.int64 if integers else torch.float64, device=self._executor.device)

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


def script(plan: Plan, places: Mapping[Event, Sequence[slice]], branched: bool = False) -> Script:
    """What is done for every item of a plan; `branched`: network and guidance of one evaluation beside each other, when
    the last of them is due."""
    lines: Script = []
    for item, dead in zip(plan.items, plan.dead):
        if isinstance(item, Launch):
            lines.append((None, item, dead))
        elif isinstance(item.event, Evaluate) and item.event.term is item.variance is item.rows is None:
            plain = item.slots[0], places[item.event][0].start, item.output, item.event.step
            lines.append((_network, plain, dead))
        else:
            lines.append((_DO[type(item.event)], item, dead))
    at = 0
    while branched and at < len(lines):
        if together := plan.parallel(at):
            group, last = plan.items[at : at + together], at + together - 1
            lines[at:last] = [(_nothing, item, []) for item in group[:-1]]
            lines[last] = (Walk._in_parallel, group, [slot for dead in plan.dead[at : last + 1] for slot in dead])
        at += max(1, together)
    return lines


def _network(walk: Walk, plain: tuple[int, int, int, int]) -> None:
    """`Walk._evaluate` where there is the network alone, whose time is the same for all samples: the slot of its input,
    the number of its time, the slot of its output, and the step."""
    x, time, made, step = plain
    if walk._calls.tick is not None:
        walk._calls.tick(step)
    walk._slots[made] = walk._output(walk._calls.network(walk._slots[x], walk._times[time]))


def _nothing(walk: Walk, call: Call) -> None:
    """Done later."""


def _made(call: Call) -> int:
    """The slot of what a call makes."""
    assert call.output is not None
    return call.output


def _measured_rows(table: Tensor, measured: Any) -> tuple[Tensor, Tensor]:
    """A row of coefficients for every sample, [B, W], and its number [B], from measurements [K, B]."""
    table, numbers = table[:, None], measured.to(table.dtype)[:, :, None]
    mixed = table[0].expand(measured.shape[1], -1)
    for row, number in zip(table[1:], numbers):  # rounded one by one, as in C++, and never in TF32
        mixed = mixed + number * row
    return mixed if len(mixed) else table[0], torch.arange(len(mixed), device=table.device)
