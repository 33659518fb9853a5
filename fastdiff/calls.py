"""From the arguments of a call of a sampler to the request that its plan is run with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .arguments import check_noise, check_state, conditioning
from .errors import check_count, check_finite
from .inpainting import log_outside
from .random import seed_tensor
from .request import Request
from .solvers import Driver, ddim_inversion, name_of

if TYPE_CHECKING:
    from .sampler import Sampler


def make_request(
    sampler: Sampler,
    size: torch.Size,
    *,
    seeds: int | Sequence[int] | Tensor | None = None,
    labels: Any = None,
    cond: Mapping[str, Any] | None = None,
    x_init: Tensor | None = None,
    image: Tensor | None = None,
    mask: Tensor | None = None,
    strength: float | None = None,
    start: int | None = None,
    noise: Callable[[int, int], Tensor] | None = None,
    generator: torch.Generator | None = None,
    upwards: bool = False,
) -> Request:
    """What a run needs, checked; the arguments are those of `Sampler.__call__`.

    Args:
        size: [B, ...].
        upwards: from data, `x_init`, to noise.

    Raises:
        ValueError, TypeError: a bad argument.
    """
    seed = seed_tensor(seeds, size[0], sampler.device)
    if x_init is not None:
        x_init = check_state("x_init", x_init, size, sampler.device).to(sampler.dtype).contiguous()
    elif sampler.solver is ddim_inversion:
        raise ValueError("x_init must be given to solver 'ddim_inversion': the data to invert")
    first = _first_step(sampler, x_init, image, mask, strength, start)
    more = {}
    if image is not None:
        more["image"] = check_state("image", image, size, sampler.device).to(sampler.dtype).contiguous()
    if mask is not None:
        more["mask"] = log_outside(_checked_mask(mask, size, sampler.device), size, sampler.dtype)
    if noise is not None and generator is not None:
        raise ValueError("generator must be left out when noise is given")
    if sampler.noise == "brownian" and (noise is not None or generator is not None):
        raise ValueError("noise and generator must be left out of calls of a sampler with noise='brownian'")
    classes = None if "labels" in [t.keeps for t in sampler.guidance] else getattr(sampler.model, "label_dim", None)
    cond = conditioning(cond, labels, size[0], classes, sampler.device)
    if generator is not None:
        noise = lambda draw, step: torch.randn(size, generator=generator, device=generator.device)  # noqa: E731
    source = None if noise is None else check_noise(noise, size, sampler.dtype, sampler.device)
    request = Request(sampler.network, sampler.guidance, size, seed, x_init, cond, size[0], source)
    request.more, request.start, request.upwards = more, first, upwards
    return request


def _first_step(
    sampler: Sampler,
    x_init: Tensor | None,
    image: Tensor | None,
    mask: Tensor | None,
    strength: float | None,
    start: int | None,
) -> int:
    """The number of the first step that is made."""
    given = {"image": image, "mask": mask, "strength": strength, "start": start}
    if (isinstance(sampler.solver, Driver) or sampler.solver is ddim_inversion) and any(
        value is not None for value in given.values()
    ):
        named = next(name for name, value in given.items() if value is not None)
        raise ValueError(
            f"{named} must be left out for solver {name_of(sampler.solver)!r}, which has no steps to choose"
        )
    if strength is not None and start is not None:
        raise ValueError(f"strength must be left out when start is given, got {strength!r}")
    if image is None and (mask is not None or strength is not None):
        raise ValueError(f"image must be given with {'strength' if mask is None else 'mask'}")
    if image is not None and mask is None and strength is None and start is None:
        raise ValueError("strength (or start) must be given with image, or a mask: from how much noise it is to start")
    if image is not None and x_init is not None and mask is None:
        raise ValueError("x_init must be left out when image gives the start")
    if start is not None:
        if image is None and x_init is None:
            raise ValueError("start must come with image or x_init: the state that step starts from")
        if check_count("start", start, 0) >= sampler.levels.steps:
            raise ValueError(f"start must be below the number of steps, {sampler.levels.steps}, got {start}")
        return int(start)
    if strength is None:
        return 0
    if not 0 < check_finite("strength", strength) <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength!r}")
    steps = sampler.levels.steps
    made = int(steps * strength + 1e-9)  # 50 * 0.58 is 28.999... in float64
    if made == 0:
        raise ValueError(f"strength must be at least 1 / {steps} for one of {steps} steps, got {strength}")
    return steps - made


def _checked_mask(mask: Any, size: torch.Size, device: torch.device) -> Tensor:
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a tensor, got {type(mask).__name__}")
    try:
        wide = mask.expand(size)
    except RuntimeError:
        raise ValueError(f"mask must have shape {list(size)} or broadcast to it, got {list(mask.shape)}") from None
    if mask.device != device:
        raise ValueError(f"mask must be on {device}, got {mask.device}")
    if mask.dtype != torch.bool and mask.numel() and not bool(((mask >= 0) & (mask <= 1)).all()):
        raise ValueError("mask must be from 0 (made anew) to 1 (kept as in image), got values outside")
    return wide
