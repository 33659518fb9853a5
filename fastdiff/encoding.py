"""From data to the noise that a deterministic solver makes them of: its own steps, on the levels in reverse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .arguments import resolve_shape
from .calls import make_request
from .solvers import Driver, ddim_inversion, name_of
from .symbols import Clip, Draw, NotLinearError, Point, Scaled
from .trace import Choose

if TYPE_CHECKING:
    from .sampler import Sampler

ONE_WAY = ("dpm_fast", "predictor_corrector")  # whose formulas take the first level for the noisiest


@torch.no_grad()
def encode(sampler: Sampler, x: Tensor, labels: Any = None, cond: dict[str, Any] | None = None) -> Tensor:
    """See `Sampler.encode`."""
    solver = name_of(sampler.solver)
    draws, chooses = _looked_at(sampler)
    driven = isinstance(sampler.solver, Driver) and not sampler.solver.encodes
    if driven or sampler.solver is ddim_inversion or chooses or solver in ONE_WAY:
        raise ValueError(f"solver must make steps from level to level to encode, got {solver!r}")
    if sum(level.sigma > 0 for level in sampler.levels) < 2:
        raise ValueError(f"steps must give at least 2 noisy levels to encode, got {sampler.levels.steps}")
    if draws:
        options = f"draws noise with options {sampler.options}"
        raise ValueError(f"solver must be deterministic to encode, and {solver!r} {options}")
    size = resolve_shape(x.shape if isinstance(x, Tensor) else x, None)
    return sampler.run(make_request(sampler, size, seeds=0, labels=labels, cond=cond, x_init=x, upwards=True))


def _looked_at(sampler: Sampler) -> tuple[bool, bool]:
    """Whether a run draws noise after its start, and whether samples choose their levels; a solver that cannot be
    traced is taken not to."""
    if isinstance(sampler.solver, Driver):
        return False, False
    try:
        trace = sampler.trace(sampler.levels)
    except NotLinearError:
        return False, False
    values = [value for event in trace.events for value in event.values]
    values += [atom.value for atom in trace.atoms if isinstance(atom, (Point, Clip, Scaled))]
    draws = any(isinstance(atom, Draw) and atom.k > 0 for value in values for atom in value.terms)
    return draws, any(isinstance(event, Choose) for event in trace.events)
