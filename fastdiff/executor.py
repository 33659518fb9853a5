"""Walking a plan: launches of the kernel and calls of the network in between. Nothing here reads a tensor back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .denoiser import require_shape, require_variance, split_variance
from .ops import native
from .plan import Launch, Plan
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
    """

    network: Callable[[Tensor, Tensor], Tensor]
    guides: Sequence[Callable[[Tensor, Level], Tensor]]
    noise: Callable[[int, int], Tensor] | None = None
    report: Callable[[int, Level | None, Tensor, Tensor | None], None] | None = None
    tick: Callable[[int], None] | None = None


class Executor:
    """A plan with its coefficient tables on a device.

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
        self._combine = native.operation("combine_out", backend)
        self._tables = _tables(plan, dtype, device)
        events = [item.event for item in plan.items if not isinstance(item, Launch)]
        times = [event.time for event in events if isinstance(event, Evaluate)]
        self._times = torch.tensor(times, dtype=torch.float64).to(time_dtype).to(device)

    def run(self, shape: torch.Size, seeds: Tensor | None, x_init: Tensor | None, calls: Callbacks) -> Tensor:
        """The final state, [B, ...] in the state's dtype."""
        slots: list[Tensor | None] = [None] * len(self.plan.names)
        if self.plan.x_init is not None:
            slots[self.plan.x_init] = x_init
        times = iter(self._times[:, None].expand(-1, shape[0]).contiguous())
        tables = iter(self._tables)
        waiting = deque(self.plan.noise)
        for item, dead in zip(self.plan.items, self.plan.dead):
            if isinstance(item, Launch):
                self._draw(item, slots, waiting, calls)
                self._launch(item, next(tables), slots, shape, seeds)
            else:
                event = item.event
                values = [slots[s] for s in item.slots]
                if isinstance(event, Evaluate):
                    if calls.tick is not None:
                        calls.tick(event.step)
                    output, variance = split_variance(calls.network(values[0], next(times)), shape)  # type: ignore[arg-type]
                    slots[item.output] = self._readable(output)  # type: ignore[index]
                    if item.variance is not None:
                        slots[item.variance] = self._readable(require_variance(variance, output.shape))
                elif isinstance(event, Guide):
                    gradient = calls.guides[event.term](values[0], event.level)  # type: ignore[arg-type]
                    slots[item.output] = self._readable(require_shape("guidance", gradient, shape))  # type: ignore[index]
                elif isinstance(event, Apply):
                    x0 = event.function(values[0])  # type: ignore[arg-type]
                    slots[item.output] = self._readable(require_shape("denoised_fn", x0, shape))  # type: ignore[index]
                elif isinstance(event, Report) and calls.report is not None:
                    calls.report(event.step, event.level, *[*values, None][:2])  # type: ignore[arg-type]
                del values  # what is dead is freed now, not after the next item
            for slot in dead:
                slots[slot] = None
        final = slots[self.plan.final]
        assert final is not None
        return final

    def _draw(self, launch, slots, waiting, calls):  # type: ignore[no-untyped-def]
        """Ask for the noise a launch reads: once each, in the order of the draws, so with those drawn before it."""
        while any(slots[s] is None for s in launch.inputs):
            noise, slot = waiting.popleft()
            z = calls.noise(noise.k, noise.step)
            if slot is not None:
                slots[slot] = z

    def _launch(self, launch, table, slots, shape, seeds):  # type: ignore[no-untyped-def]
        inputs = [slots[s] for s in launch.inputs]
        out = [
            torch.empty(shape, dtype=self.network_dtype if o.for_network else self.dtype, device=self.device)
            for o in launch.outputs
        ]
        variance = None if launch.variance is None else slots[launch.variance]
        self._combine(inputs, table, None, seeds if launch.draws else None, launch.draws, variance, launch.clip, out)
        for output, tensor in zip(launch.outputs, out):
            slots[output.slot] = tensor

    def _readable(self, tensor: Tensor) -> Tensor:
        """Round a float64 output beside a float32 state; the kernel reads everything else as it is."""
        return tensor.to(self.dtype) if tensor.dtype == torch.float64 else tensor


def _tables(plan: Plan, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Every launch's coefficients [1, W] on the device, in one transfer per dtype.

    A launch whose coefficients are large cancels large terms (a long step at a tiny sigma, the noisiest cosine steps):
    it computes in float64, beside a float32 state too.
    """
    wide = [dtype == torch.float64 or launch.largest > WELL_CONDITIONED for launch in plan.launches]
    parts = {}
    for kind, precision in ((True, torch.float64), (False, dtype)):
        rows = [torch.from_numpy(launch.row) for launch, w in zip(plan.launches, wide) if w == kind]
        table = torch.cat(rows).to(precision).to(device) if rows else torch.empty(0)
        parts[kind] = iter(table.split([len(row) for row in rows]))
    return [next(parts[w])[None] for w in wide]
