"""The course of a run: where it starts, which levels it visits, and what is put in place at the end of a step.

The same lines for tensors and for symbols.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from .denoiser import Denoiser, State
from .inpainting import with_known
from .process import Levels
from .solvers import Driver, name_of

if TYPE_CHECKING:
    from .planning import Planner


class Kind(NamedTuple):
    """What beside its levels makes one run of a sampler another plan than the next.

    Attributes:
        x_init: it starts from a given state.
        noise: noise comes as tensors (`noise=` or `generator=`).
        observe: states and predicted x_0 are written for a callback or a trajectory.
        image: it starts from a given image, noised, if nothing else is given to start from.
        mask: a part of the image is kept (inpainting).
        start: the number of the first step that is made.
        upwards: from data to noise, `x_init` being the data.
    """

    x_init: bool = False
    noise: bool = False
    observe: bool = False
    image: bool = False
    mask: bool = False
    start: int = 0
    upwards: bool = False


def visited(levels: Levels, kind: Kind) -> Levels:
    """The levels that a run visits, in order."""
    if kind.upwards:
        return Levels([level for level in reversed(levels) if level.sigma > 0], levels.process)
    return Levels(levels[kind.start :], levels.process) if kind.start else levels


def course(sampler: Planner, engine: Any, levels: Levels, kind: Kind) -> Iterator[tuple[State, Denoiser]]:
    """The starting state, then the state at the end of every step, with the denoiser as the step left it.

    Args:
        engine: `trace.Recorder` or `engine.TensorEngine`.

    Raises:
        ValueError: a mask, and a solver whose steps do not end at the levels.
    """
    path = visited(levels, kind)
    denoise = sampler.denoiser(engine, levels, kind.upwards)
    denoise.step = engine.step = kind.start
    x = _first(engine, sampler.process.prior_std(levels[0]), path, kind)
    yield x, denoise
    assert not isinstance(sampler.solver, Driver)
    n = 0
    for n, state in enumerate(sampler.solver(denoise, x, path, engine.noise, **sampler.options), 1):
        if kind.mask:
            if n > path.steps:
                raise _other_levels(sampler)
            engine.put(state, with_known(engine, state, path[n]))
        yield state, denoise
        denoise.finish_step()
    if kind.mask and n < path.steps:
        raise _other_levels(sampler)


def _first(engine: Any, prior_std: float, path: Levels, kind: Kind) -> State:
    """prior_std * (draw 0); a given state; or a given image with that noise at the first level (Meng et al. 2022,
    SDEdit)."""
    if kind.x_init:
        x = engine.given("x_init")
        return path[0].alpha * x if kind.upwards else x
    z = engine.latent()
    if kind.image and (kind.start or not kind.mask):
        return path[0].alpha * engine.given("image") + path[0].sigma * z
    return with_known(engine, prior_std * z, path[0], z) if kind.mask else z * prior_std


def _other_levels(sampler: Planner) -> ValueError:
    return ValueError(
        f"mask must be left out for solver {name_of(sampler.solver)!r}: its steps do not end at the sampler's levels"
    )
