"""Inpainting by replacement: at the end of every step the known part of the state is put in its place.

x <- (1 - m) x + m (alpha image + sigma z) at the level where the step ends (Song et al. 2021, Appendix I.2; Lugmayr et
al. 2022, "RePaint", Eq. 8, without resampling). The mask's factor is what a learned variance's is to the kernel,
1 - m = exp(log(1 - m)), so a replacement is a part of the launch that writes the state, and costs no other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .denoiser import State
from .process import Level

FIRST_DRAW = 1 << 30
"""The known part's noise at the end of step i is draw FIRST_DRAW + i, at the start draw 0: whatever a solver draws, it
draws alike with and without a mask."""


def with_known(engine: Any, x: State, level: Level, z: State | None = None) -> State:
    """x with the known part of the image, noised to `level`, in place of its own.

    Args:
        engine: `trace.Recorder` or `engine.TensorEngine`, in the step that ends here.
        z: the noise; default: the step's.
    """
    known = level.alpha * engine.given("image")
    if level.sigma > 0:
        known = known + level.sigma * (engine.drawn(FIRST_DRAW + engine.step) if z is None else z)
    return known + engine.outside_mask(x - known)


def log_outside(mask: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """log(1 - mask), [B, ...], for a mask checked by `arguments.check_mask`."""
    return torch.log1p(-mask.to(dtype)).expand(shape).contiguous()
