"""Walking a plan: launches of the kernel and calls of the network in between. Nothing here reads a tensor back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .engine import require_measured, require_shape, require_variance, split_variance
from .guidance.term import Contrast, Gradient
from .ops import native
from .plan import Call, Launch, Plan
from .process import Level
from .symbols import each
from .trace import Apply, Choose, Evaluate, Event, Guide, Measure, Report

WELL_CONDITIONED = 64.0


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
        return Callbacks(lambda x, t: self.model(x, t, **for_model), terms, self.noise, self.report, self.tick)


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
        """The same with a time per sample."""
        times, told = (flat[:, None].expand(-1, batch).contiguous() for flat in (self.times, self.told))
        return replace(self, times=times, told=told)

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
        self._places = self._lay_out()
        # A launch that cancels large terms (a long step at a tiny sigma, the noisiest cosine steps) computes in
        # float64, beside a float32 state too.
        wide = dtype == torch.float64
        self._wide = [wide or launch.wide or launch.cancelling > WELL_CONDITIONED for launch in plan.launches]
        self.numbers = self._numbers(time_dtype)
        self._tables = self.tables(self.numbers)
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

    def tables(self, numbers: Numbers) -> list[Tensor]:
        """Every launch's coefficients [V, W], views of `numbers`."""
        parts = {}
        for wide, flat in ((True, numbers.wide), (False, numbers.narrow)):
            sizes = [launch.table.size for launch, w in zip(self.plan.launches, self._wide) if w == wide]
            parts[wide] = iter(flat.split(sizes) if sizes else ())
        return [next(parts[w]).view(launch.table.shape) for launch, w in zip(self.plan.launches, self._wide)]

    def told(self, event: Event, numbers: Tensor, rows: Tensor | None) -> list[Tensor]:
        """The numbers of an event, [B] each: from `numbers` [T, B], by the samples' choices where there are any."""
        return [_picked(numbers[place], rows) for place in self._places[event]]

    def candidates(self, event: Choose | Measure, numbers: Tensor) -> Tensor:
        """What is told about the candidates of a choice, or to a measurement: [n]."""
        places = self._places[event]
        told = numbers[:, 0] if numbers.shape[1] else self.numbers.told  # for no samples, never another plan's
        return told[places[0].start : places[-1].stop] if places else told[:0]

    def run(self, request: Request) -> Tensor:
        """The final state, [B, ...] in the state's dtype."""
        numbers = self.numbers.for_batch(request.shape[0])
        walk = Walk(self, self._tables, numbers, request.shape, request.seeds, request.given, request.callbacks())
        walk.advance(len(self.plan.items))
        return walk.final


def _picked(candidates: Tensor, rows: Tensor | None) -> Tensor:
    """[B] of [V, B]."""
    if len(candidates) == 1:
        return candidates[0]
    assert rows is not None
    return candidates.gather(0, rows[None])[0]


def _measured_rows(table: Tensor, measured: Any) -> tuple[Tensor, Tensor]:
    """A row of coefficients for every sample, [B, W], and its number [B], from measurements [K, B]."""
    batch = measured.shape[1]
    rows = torch.arange(batch, device=table.device)
    return torch.addmm(table[0], measured.t().to(table.dtype), table[1:]) if batch else table, rows


class Walk:
    """One run in progress: how far it came, and the tensors alive there.

    Args:
        tables: of `Executor.tables`; numbers: for the batch.
        seeds: int64 [B], given: the tensors [B, ...] that the plan reads, by name.

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
    ):
        self._executor, self._plan, self._calls = executor, executor.plan, calls
        self._shape, self._seeds = shape, seeds
        self._slots: list[Tensor | None] = [None] * len(self._plan.names)
        for name, slot in self._plan.given.items():
            self._slots[slot] = given[name]
        self._tables, self._numbers = iter(tables), numbers
        self._noise = deque(self._plan.noise)
        self._at = 0

    @property
    def final(self) -> Tensor:
        """The final state, once all items are done."""
        final = self._slots[self._plan.final]
        assert final is not None
        return final

    def advance(self, stop: int) -> None:
        """Do the plan's items up to number `stop`."""
        plan, branch = self._plan, self._calls.branch
        if self._at == 0:
            self._calls.terms.start(self._shape[0], self._executor.device, self._executor.dtype)
        while self._at < stop:
            item, count = plan.items[self._at], 1
            if isinstance(item, Launch):
                if self._noise:
                    self._draw(item)
                self._launch(item)
            elif branch is not None and (together := plan.parallel(self._at)):
                count = together
                self._in_parallel(plan.items[self._at : self._at + count])
            else:
                self._call(item)
            for dead in plan.dead[self._at : self._at + count]:  # nothing after this reads them
                for slot in dead:
                    self._slots[slot] = None
            self._at += count

    def _in_parallel(self, items: Sequence[Launch | Call]) -> None:
        """The guidance gradients of one evaluation on a second stream, beside the network."""
        calls = [item for item in items if isinstance(item, Call)]
        assert self._calls.branch is not None
        with self._calls.branch() as branch:
            for call in calls:
                if isinstance(call.event, Guide):
                    self._call(call)
        for call in calls:
            if isinstance(call.event, Evaluate):
                self._call(call)
        branch.join()

    def _call(self, call: Call) -> None:
        event, calls, slots = call.event, self._calls, self._slots
        values: list[Tensor] = [slots[slot] for slot in call.slots]  # type: ignore[misc]
        rows = None if call.rows is None else slots[call.rows]
        if isinstance(event, Evaluate):
            self._evaluate(call, event, values[0], rows)
        elif isinstance(event, Guide):
            told = self._executor.told(event, self._numbers.told, rows)
            gradient = calls.terms.gradient(event.term, values[0], told, event.how)
            slots[call.output] = self._readable(require_shape("guidance", gradient, self._shape))  # type: ignore[index]
        elif isinstance(event, Apply):
            told = self._executor.told(event, self._numbers.told, rows)
            result = require_shape("denoised_fn", event.function(*values, *told), self._shape)
            slots[call.output] = self._readable(result)  # type: ignore[index]
        elif isinstance(event, Choose):
            things = values if event.term is None else [calls.terms.memory[event.term]]
            numbers = self._executor.candidates(event, self._numbers.told)
            slots[call.output] = event.selector(*things, numbers)  # type: ignore[index]
        elif isinstance(event, Measure):
            numbers = self._executor.candidates(event, self._numbers.told)
            measured = event.function(torch.stack(values), numbers)
            slots[call.output] = require_measured(measured, event.count, self._shape[0])  # type: ignore[index]
        elif isinstance(event, Report) and calls.report is not None:
            calls.report(event.step, event.level, values[0], values[1] if len(values) > 1 else None)

    def _evaluate(self, call: Call, event: Evaluate, x: Tensor, rows: Tensor | None) -> None:
        calls, slots = self._calls, self._slots
        (t,) = self._executor.told(event, self._numbers.times, rows)
        if event.term is None or event.second is not None:
            if calls.tick is not None:
                calls.tick(event.step)
        if event.second is not None:
            output, second = calls.terms.both(event.term, x, t)  # type: ignore[arg-type]
            slots[call.second] = self._readable(split_variance(second, self._shape)[0])  # type: ignore[index]
        else:
            output = calls.network(x, t) if event.term is None else calls.terms.opinion(event.term, x, t)
        output, variance = split_variance(output, self._shape)
        slots[call.output] = self._readable(output)  # type: ignore[index]
        if call.variance is not None:
            slots[call.variance] = self._readable(require_variance(variance, output.shape))

    def _draw(self, launch: Launch) -> None:
        """Ask for the noise a launch reads: once each, in the order of the draws, so with those drawn before it."""
        while any(self._slots[s] is None for s in launch.inputs):
            noise, slot = self._noise.popleft()
            assert self._calls.noise is not None
            z = self._calls.noise(noise.k, noise.step)
            if slot is not None:
                self._slots[slot] = z

    def _launch(self, launch: Launch) -> None:
        run = self._executor
        inputs: list[Tensor] = [self._slots[s] for s in launch.inputs]  # type: ignore[misc]
        table, rows = next(self._tables), None if launch.rows is None else self._slots[launch.rows]
        if launch.measured:
            table, rows = _measured_rows(table, rows)
        seeds = self._seeds if launch.draws else None
        if launch.squares:
            self._slots[launch.outputs[0].slot] = run.sum_squares(inputs, table, rows, seeds, launch.draws)
            return
        variance = None if launch.variance is None else self._slots[launch.variance]
        for output, tensor in zip(launch.outputs, self._combine(launch, inputs, table, rows, variance)):
            self._slots[output.slot] = tensor

    def _combine(self, launch: Launch, inputs: list[Tensor], table: Tensor, rows: Any, variance: Any) -> list[Tensor]:
        run, seeds = self._executor, self._seeds if launch.draws else None
        out = [torch.empty(self._shape, dtype=dtype, device=run.device) for dtype in self._dtypes(launch)]
        run.combine(inputs, table, rows, seeds, launch.draws, variance, launch.clip, out)
        return out

    def _dtypes(self, launch: Launch) -> list[torch.dtype]:
        run = self._executor
        return [run.network_dtype if o.for_network else o.dtype or run.dtype for o in launch.outputs]

    def _readable(self, tensor: Tensor) -> Tensor:
        """Round a float64 output beside a float32 state; the kernel reads everything else as it is."""
        return tensor.to(self._executor.dtype) if tensor.dtype == torch.float64 else tensor
