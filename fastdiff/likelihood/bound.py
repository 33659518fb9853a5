"""The variational bound of any model that a Sampler takes: on the chain it was trained on, or on one of its levels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..arguments import conditioning
from ..engine import split_variance
from ..errors import check_choice
from ..prediction import Prediction, get_prediction
from ..process import VP, Levels, Process, get_process
from ..random import seed_tensor
from ..training.chain import Chain
from ..training.losses.bound import PREDICTIONS, Bound, calc_bpd
from .quantisation import level_index

__all__ = ["nll_bound"]


def nll_bound(
    model: Callable[..., Tensor],
    x: Tensor,
    *,
    process: str | Process = "edm",
    prediction: str | Prediction = "x0",
    steps: int | str | None = None,
    variance: str = "fixed_small",
    clip: bool = True,
    cdf: str = "tanh",
    levels: int = 256,
    seeds: int | Sequence[int] | Tensor | None = None,
    labels: Any = None,
    cond: Mapping[str, Any] | None = None,
) -> Bound:
    """An upper bound on the bits per dimension of discrete data (Ho et al. 2020, Eq. 5), one draw of x_t a term.

    A model of another process than VP is read as one that predicts x_0 on a VP chain: every process is one up to the
    scale of its states (Karras et al. 2022, section 2), with alpha_bar = alpha^2 / (alpha^2 + sigma^2). Its chain is
    that of the process's schedule, and a longer one gives a tighter bound.

    Args:
        model: as a `Sampler`'s.
        x: [B, C, ...] data in [-1, 1] with `levels` values, not dequantised.
        process, prediction: as a `Sampler`'s.
        steps: of the chain, as `Process.levels`; default: all of a VP's, 1000 levels of another process.
        variance: "fixed_small", "fixed_large"; for a VP model with a variance head "learned" or "learned_range".
        clip: clamp the predicted x_0 to [-1, 1].
        cdf: of the last term, "tanh" (guided-diffusion's) or "exact": see `discretized_gaussian_log_likelihood`.
        levels: values of the data: 256 for 8-bit images.
        seeds: one integer per sample, or an int s for s, s+1, ...: a sample's bound depends on its seed, not on the
            batch; None takes fresh ones from PyTorch's generator.
        labels, cond: as in a call of a `Sampler`.

    Returns:
        `fastdiff.training.losses.Bound`; `.total` [B] is the bound. Float64.

    Raises:
        ValueError, TypeError: a bad argument, values of x that are none of the levels; before any work.
    """
    chosen, predicts = get_process(process), get_prediction(prediction)
    level_index(x, levels)
    kwargs = conditioning(cond, labels, len(x), getattr(model, "label_dim", None), x.device)
    seed = seed_tensor(seeds, len(x), x.device)
    if isinstance(chosen, VP):
        check_choice("prediction", predicts.name, PREDICTIONS)
        chain, reading = Chain(chosen, steps, device=x.device, dtype=torch.float64), predicts.name

        def network(state: Tensor, time: Tensor, **kwargs: Any) -> Tensor:
            return model(state.to(x.dtype), time if time.dtype == torch.int64 else time.to(x.dtype), **kwargs)
    else:
        check_choice("variance", variance, ("fixed_small", "fixed_large"))
        grid = chosen.levels(1000 if steps is None else steps)
        chain, reading = Chain(_as_vp(grid), device=x.device, dtype=torch.float64), "x0"
        network = _predictor(model, predicts, grid, x)
    options: dict[str, Any] = {"prediction": reading, "variance": variance, "clip": clip, "cdf": cdf, "bins": levels}
    return calc_bpd(network, x, chain, seed, cond=kwargs, **options)


def _as_vp(levels: Levels) -> VP:
    """The VP chain of these levels, whose step i is the i-th cleanest of the noisy ones."""
    abar = np.array([level.alpha**2 / (level.alpha**2 + level.sigma**2) for level in levels if level.sigma > 0][::-1])
    return VP(1 - abar / np.append(1.0, abar[:-1]))


def _predictor(model: Callable[..., Tensor], prediction: Prediction, grid: Levels, x: Tensor) -> Callable[..., Tensor]:
    """(state of the VP chain, its step) -> x_0, of a model of another process."""
    noisy = [level for level in grid if level.sigma > 0][::-1]

    def network(state: Tensor, time: Tensor, **kwargs: Any) -> Tensor:
        level = noisy[int(time[0])] if len(time) else noisy[0]
        y, c = state * float(np.hypot(level.alpha, level.sigma)), prediction.coefficients(level)
        told = torch.full((len(x),), float(prediction.time(level)), dtype=x.dtype, device=x.device)
        output, _ = split_variance(model((c.c_in * y).to(x.dtype), told, **kwargs), x.shape)
        return c.c_skip * y + c.c_out * output

    return network
