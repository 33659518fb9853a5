"""A compiled plan with its numbers on a device. Nothing here reads a tensor back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from .ops import native
from .plan import Call, Launch, Output, Plan
from .request import Request
from .symbols import each
from .trace import Evaluate, Event
from .walk import FEW, ShortWay, Walk, Way, script

WELL_CONDITIONED = 64.0
SMALL = 32768  # elements: for more, the operator's own time is nothing
KEPT = 8192  # items of plans that are ready for one shape or batch: some MB

K = TypeVar("K")
V = TypeVar("V")


@dataclass
class Numbers:
    """The coefficients and times of a plan on the device: all that differs between plans of one structure.

    Attributes:
        wide, narrow: the tables of the launches that compute in float64, and of those in the state's dtype, in order.
        times: of the network evaluations, [T] or [T, B]; where samples choose, one for each candidate.
        told: to guidance terms and functions, likewise.
    """

    wide: Tensor
    narrow: Tensor
    times: Tensor
    told: Tensor

    def for_batch(self, batch: int) -> Numbers:
        """The same with a time per sample, in memory of its own."""
        return Numbers(self.wide, self.narrow, _for_each(self.times, batch), _for_each(self.told, batch))

    @cached_property
    def single(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The single times, and what is told: views."""
        return self.times.unbind(), self.told.unbind()

    @property
    def written(self) -> bool:
        """Whether somebody who was given a time or what is told wrote to it."""
        return bool(self.times._version or self.told._version)

    def clone(self) -> Numbers:
        """A copy in memory of its own."""
        return Numbers(self.wide.clone(), self.narrow.clone(), self.times.clone(), self.told.clone())

    def copy_(self, other: Numbers) -> None:
        """Overwrite in place; `other` may have one time for all samples."""
        self.wide.copy_(other.wide)
        self.narrow.copy_(other.narrow)
        for mine, theirs in ((self.times, other.times), (self.told, other.told)):
            if mine.numel():
                mine.copy_(theirs if theirs.ndim == 2 else theirs[:, None])


class Executor:
    """A plan with its numbers on a device.

    Args:
        plan: from `compile_plan`.
        dtype: of the state and all arithmetic.
        network_dtype: the network's inputs are written in this dtype.
        time_dtype: dtype of the network's time argument.
        backend: a resolved backend name.
    """

    def __init__(
        self,
        plan: Plan,
        dtype: torch.dtype,
        network_dtype: torch.dtype,
        time_dtype: torch.dtype,
        device: torch.device,
        backend: str,
    ):
        self.plan, self.dtype, self.network_dtype, self.device = plan, dtype, network_dtype, device
        self.backend = backend
        self.combine = native.operation("combine_out", backend)
        self.sum_squares = native.operation("sum_squares", backend)
        self.places = self._lay_out()
        self._ways: dict[torch.Size, list[Way]] = {}
        self._kinds = {self._kind(output) for launch in plan.launches for output in launch.outputs}
        self._batches: dict[int, Numbers] = {}
        self._told: dict[Event, list[float]] = {}
        # A launch that cancels large terms (a long step at a tiny sigma, the noisiest cosine steps) computes in
        # float64, beside a float32 state too.
        wide = dtype == torch.float64
        self._wide = [wide or launch.wide or launch.cancelling > WELL_CONDITIONED for launch in plan.launches]
        self.numbers = self._numbers(time_dtype)
        self._tables = self.tables(self.numbers)
        self.script, self.branched = script(plan, self.places), script(plan, self.places, branched=True)
        self.functions = list(dict.fromkeys(plan.functions))
        self.structure = plan.structure(tuple(self._wide), dtype, network_dtype, time_dtype, device, backend)

    def _lay_out(self) -> dict[Event, list[slice]]:
        """Where an event's numbers lie among the times, or among what is told."""
        places: dict[Event, list[slice]] = {}
        ends = {True: 0, False: 0}
        for event in self._events():
            places[event], kind = [], isinstance(event, Evaluate)
            for number in event.numbers:
                begin, ends[kind] = ends[kind], ends[kind] + len(each(number))
                places[event].append(slice(begin, ends[kind]))
        return places

    def ways(self, shape: torch.Size) -> list[Way]:
        """For every launch, on states [B, ...] of a shape: for each output a tensor that new ones are made like, in a
        third of the time, and the short way. Those of some shapes are kept."""
        found = self._ways.get(shape)
        if found is None:
            small = self.backend == "cpu" and shape.numel() <= SMALL
            size = shape if small else ()  # without memory
            one = {kind: torch.empty(size, dtype=kind, device=self.device).expand(shape) for kind in self._kinds}
            likes = [[one[self._kind(output)] for output in launch.outputs] for launch in self.plan.launches]
            short = self._short_ways(likes) if small else [None] * len(likes)
            found = list(zip(likes, short))
            self._ways = self._with(self._ways, shape, found)
        return found

    def _short_ways(self, likes: list[list[Tensor]]) -> list[ShortWay | None]:
        """For every launch, given what its outputs are like; launches with nothing between them are done in one go."""
        found: list[ShortWay | None] = []
        tables, items = iter(zip(self._tables, likes)), self.plan.items
        before: Any = None
        for item in items:
            if isinstance(item, Call):
                before = None
                continue
            launch = _short_way(item, *next(tables))
            if before is not None and launch is not None:
                before.then(launch)
            found.append(None if launch is None else launch.run)
            before = launch
        return found

    def _with(self, kept: dict[K, V], key: K, value: V) -> dict[K, V]:
        """What is kept and one more; if that is much, the new one alone."""
        return {**kept, key: value} if (len(kept) + 1) * len(self.plan.items) <= KEPT else {key: value}

    def _kind(self, output: Output) -> torch.dtype:
        return self.network_dtype if output.for_network else output.dtype or self.dtype

    def _events(self) -> list[Event]:
        return [item.event for item in self.plan.items if isinstance(item, Call)]

    def _numbers(self, time_dtype: torch.dtype) -> Numbers:
        rows: dict[bool, list[Tensor]] = {True: [torch.empty(0)], False: [torch.empty(0)]}
        for launch, wide in zip(self.plan.launches, self._wide):
            rows[wide].append(torch.from_numpy(launch.table.reshape(-1)))
        times: list[float] = []
        told: list[float] = []
        for event in self._events():
            for number in event.numbers:
                (times if isinstance(event, Evaluate) else told).extend(each(number))
        return Numbers(
            torch.cat(rows[True]).to(self.device, torch.float64),
            torch.cat(rows[False]).to(self.device, self.dtype),
            torch.tensor(times, dtype=torch.float64).to(time_dtype).to(self.device),
            torch.tensor(told, dtype=torch.float64).to(self.device, self.dtype),
        )

    def told_of(self, event: Event) -> list[float]:
        """What is told to an event, as numbers of Python."""
        told = self._told.get(event)
        if told is None:
            places = self.places[event]
            told = self.numbers.told[places[0].start : places[-1].stop].tolist() if places else []
            self._told[event] = told
        return told

    def tables(self, numbers: Numbers) -> list[Tensor]:
        """Every launch's coefficients [V, W], views of `numbers`."""
        parts = {}
        for wide, flat in ((True, numbers.wide), (False, numbers.narrow)):
            sizes = [launch.table.size for launch, w in zip(self.plan.launches, self._wide) if w == wide]
            parts[wide] = iter(flat.split(sizes) if sizes else ())
        return [next(parts[w]).view(launch.table.shape) for launch, w in zip(self.plan.launches, self._wide)]

    def run(self, request: Request) -> Tensor:
        """The final state, [B, ...] in the state's dtype."""
        alone, batch = self.device.type == "cpu" and native.unobserved(), request.shape[0]
        numbers = self._batches.get(batch) if alone else None
        if numbers is None or numbers.written:
            numbers = self.numbers.for_batch(batch)
            if alone:
                self._batches = self._with(self._batches, batch, numbers)
        calls = request.callbacks()
        walk = Walk(self, self._tables, numbers, request.shape, request.seeds, request.given, calls, alone)
        walk.advance(len(self.plan.items))
        return walk.final


def _for_each(numbers: Tensor, batch: int) -> Tensor:
    """[T, B] from [T]; a `repeat` takes three times as long."""
    if not numbers.numel():
        return numbers.view(0, batch)
    return numbers.unsqueeze(1).expand(-1, batch).clone(memory_format=torch.contiguous_format)


def _short_way(launch: Launch, table: Tensor, like: list[Tensor]) -> Any:
    """`_host.SmallLaunch` of a launch, if there is one."""
    by_sample = launch.rows is not None or launch.squares
    if launch.variance is not None or (by_sample and len(like[0]) > FEW):
        return None
    outputs, rows = [output.slot for output in launch.outputs], -1 if launch.rows is None else launch.rows
    return native.small_launch(
        table, launch.inputs, launch.draws, like, outputs, launch.clip, torch.empty_like, rows, launch.measured,
        launch.squares,
    )  # fmt: skip
