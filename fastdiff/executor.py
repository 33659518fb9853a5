"""Walking a plan: launches of the kernel and calls of the network in between. Nothing here reads a tensor back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .denoiser import require_shape, require_variance, split_variance
from .ops import native
from .plan import Call, Launch, Plan
from .process import Level
from .trace import Apply, Evaluate, Guide, Report

WELL_CONDITIONED = 64.0


@dataclass
class Callbacks:
    """What the executor needs of the outside world.

    Attributes:
        network: (x in the network's dtype, time [B]) -> output.
        guides: guidance terms (state, level) -> gradient.
        noise: (draw, step) -> tensor, for plans that read their noise from tensors.
        report: (step, level, state, x_0 or None), at the end of every step of an observed plan; step -1 is the start.
        tick: (step), called before every network evaluation.
        branch: () -> `graphs.Branch`, a second stream for guidance gradients beside the network; None: one stream.
    """

    network: Callable[[Tensor, Tensor], Tensor]
    guides: Sequence[Callable[[Tensor, Level], Tensor]]
    noise: Callable[[int, int], Tensor] | None = None
    report: Callable[[int, Level | None, Tensor, Tensor | None], None] | None = None
    tick: Callable[[int], None] | None = None
    branch: Callable[[], Any] | None = None


@dataclass
class Request:
    """One call of a sampler.

    Attributes:
        model, terms: the network `(x, t, **cond)` and the guidance terms `(x, level, **cond)`.
        shape: [B, ...]; seeds: int64 [B]; x_init: [B, ...] or None; cond: keywords of the model and the terms.
        rows: how many of the B samples are wanted; the others fill up a batch.
        noise, report, tick: as in `Callbacks`.
    """

    model: Callable[..., Tensor]
    terms: Sequence[Callable[..., Tensor]]
    shape: torch.Size
    seeds: Tensor
    x_init: Tensor | None
    cond: dict[str, Any]
    rows: int
    noise: Callable[[int, int], Tensor] | None = None
    report: Callable[[int, Level | None, Tensor, Tensor | None], None] | None = None
    tick: Callable[[int], None] | None = None

    def callbacks(self) -> Callbacks:
        """The network and the guidance terms with their conditioning, and what the caller wants to hear."""
        guides = [lambda x, level, term=term: term(x, level, **self.cond) for term in self.terms]
        return Callbacks(lambda x, t: self.model(x, t, **self.cond), guides, self.noise, self.report, self.tick)


@dataclass
class Numbers:
    """The coefficients and times of a plan on the device: all that differs between plans of one structure.

    Attributes:
        wide, narrow: the rows of the launches that compute in float64, and of those in the state's dtype, in order.
        times: of the network evaluations, [NFE] or [NFE, B].
    """

    wide: Tensor
    narrow: Tensor
    times: Tensor

    def for_batch(self, batch: int) -> Numbers:
        """The same with a time per sample."""
        return replace(self, times=self.times[:, None].expand(-1, batch).contiguous())

    def clone(self) -> Numbers:
        """A copy in memory of its own."""
        return Numbers(self.wide.clone(), self.narrow.clone(), self.times.clone())

    def copy_(self, other: Numbers) -> None:
        """Overwrite in place; `other` may have one time for all samples."""
        self.wide.copy_(other.wide)
        self.narrow.copy_(other.narrow)
        self.times.copy_(other.times if other.times.ndim == 2 else other.times[:, None])


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
        self.combine = native.operation("combine_out", backend)
        # A launch that cancels large terms (a long step at a tiny sigma, the noisiest cosine steps) computes in
        # float64, beside a float32 state too.
        self._wide = [dtype == torch.float64 or launch.cancelling > WELL_CONDITIONED for launch in plan.launches]
        self.numbers = self._numbers(time_dtype)
        self._tables = self.tables(self.numbers)
        self.functions = list(dict.fromkeys(plan.functions))
        self.structure = plan.structure(tuple(self._wide), dtype, network_dtype, time_dtype, device, backend)

    def _numbers(self, time_dtype: torch.dtype) -> Numbers:
        rows: dict[bool, list[Tensor]] = {True: [torch.empty(0)], False: [torch.empty(0)]}
        for launch, wide in zip(self.plan.launches, self._wide):
            rows[wide].append(torch.from_numpy(launch.row))
        calls = [item.event for item in self.plan.items if isinstance(item, Call)]
        times = torch.tensor([event.time for event in calls if isinstance(event, Evaluate)], dtype=torch.float64)
        return Numbers(
            torch.cat(rows[True]).to(self.device, torch.float64),
            torch.cat(rows[False]).to(self.device, self.dtype),
            times.to(time_dtype).to(self.device),
        )

    def tables(self, numbers: Numbers) -> list[Tensor]:
        """Every launch's coefficients [1, W], views of `numbers`."""
        parts = {}
        for wide, flat in ((True, numbers.wide), (False, numbers.narrow)):
            widths = [len(launch.row) for launch, w in zip(self.plan.launches, self._wide) if w == wide]
            parts[wide] = iter(flat.split(widths) if widths else ())
        return [next(parts[wide])[None] for wide in self._wide]

    def run(self, request: Request) -> Tensor:
        """The final state, [B, ...] in the state's dtype."""
        times = self.numbers.for_batch(request.shape[0]).times
        walk = Walk(self, self._tables, times, request.shape, request.seeds, request.x_init, request.callbacks())
        walk.advance(len(self.plan.items))
        return walk.final


class Walk:
    """One run in progress: how far it came, and the tensors alive there.

    Args:
        tables: of `Executor.tables`; times: [NFE, B].
        seeds: int64 [B], x_init: [B, ...] or None.

    Only memory of the arguments is read, so that the same work can be done again with other values in it.
    """

    def __init__(
        self,
        executor: Executor,
        tables: Sequence[Tensor],
        times: Tensor,
        shape: torch.Size,
        seeds: Tensor,
        x_init: Tensor | None,
        calls: Callbacks,
    ):
        self._executor, self._plan, self._calls = executor, executor.plan, calls
        self._shape, self._seeds = shape, seeds
        self._slots: list[Tensor | None] = [None] * len(self._plan.names)
        if self._plan.x_init is not None:
            self._slots[self._plan.x_init] = x_init
        self._tables, self._times = iter(tables), iter(times)
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
        if isinstance(event, Evaluate):
            if calls.tick is not None:
                calls.tick(event.step)
            output, variance = split_variance(calls.network(values[0], next(self._times)), self._shape)
            slots[call.output] = self._readable(output)  # type: ignore[index]
            if call.variance is not None:
                slots[call.variance] = self._readable(require_variance(variance, output.shape))
        elif isinstance(event, Guide):
            gradient = calls.guides[event.term](values[0], event.level)
            slots[call.output] = self._readable(require_shape("guidance", gradient, self._shape))  # type: ignore[index]
        elif isinstance(event, Apply):
            x0 = event.function(values[0])
            slots[call.output] = self._readable(require_shape("denoised_fn", x0, self._shape))  # type: ignore[index]
        elif isinstance(event, Report) and calls.report is not None:
            calls.report(event.step, event.level, values[0], values[1] if len(values) > 1 else None)

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
        inputs = [self._slots[s] for s in launch.inputs]
        out = [
            torch.empty(self._shape, dtype=run.network_dtype if o.for_network else run.dtype, device=run.device)
            for o in launch.outputs
        ]
        variance = None if launch.variance is None else self._slots[launch.variance]
        seeds = self._seeds if launch.draws else None
        run.combine(inputs, next(self._tables), None, seeds, launch.draws, variance, launch.clip, out)
        for output, tensor in zip(launch.outputs, out):
            self._slots[output.slot] = tensor

    def _readable(self, tensor: Tensor) -> Tensor:
        """Round a float64 output beside a float32 state; the kernel reads everything else as it is."""
        return tensor.to(self._executor.dtype) if tensor.dtype == torch.float64 else tensor
