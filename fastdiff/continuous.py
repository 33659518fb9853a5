"""Processes in continuous time that models are trained on here: flow matching's straight line and the SDEs of `sde`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .errors import check_choice, check_count, check_finite
from .process import CLEAN, Array, Level, Levels, Process

if TYPE_CHECKING:
    from .sde import SDE

__all__ = ["Flow", "SDEProcess", "process_of"]


class _InTime(Process):
    """A process whose levels are times in (0, 1], 1 the noisiest."""

    explicit = "timesteps"
    first = 1.0  # the time that sampling starts from
    last = 0.0  # the time of the last noisy level; 0: every level but the last one, which is clean, is inside (0, 1]

    def level(self, t: float) -> Level:
        """The level of time t."""
        raise NotImplementedError

    def levels(  # type: ignore[override]
        self, steps: int | None = None, schedule: Callable[..., Array] | None = None, **options: float
    ) -> Levels:
        """`steps` times from the first to the last, equally spaced, then the clean level.

        Args:
            steps: at least 1; default 50.
            schedule: a function of `steps` that gives decreasing times instead.
        """
        n = check_count("steps", 50 if steps is None else steps)
        if options:
            name, value = next(iter(options.items()))
            raise ValueError(f"{name} must be left out for process {type(self).__name__}, got {value!r}")
        if isinstance(schedule, str):
            raise ValueError(f"schedule must be a function of steps that gives times here, got {schedule!r}")
        if schedule is not None:
            return self.levels_at(schedule(n))
        spaced = np.linspace(self.first, self.last, n) if self.last else np.linspace(self.first, 0.0, n + 1)[:-1]
        return self.levels_at(spaced)

    def levels_at(self, values: Sequence[float] | Array) -> Levels:
        """Explicit times in (0, 1], strictly decreasing; the clean level is added."""
        times = [check_finite("timesteps", value) for value in values]
        if times and times[-1] == 0:
            times = times[:-1]
        if not times or not all(0 < t <= 1 for t in times) or any(b >= a for a, b in pairwise(times)):
            raise ValueError(f"timesteps must be strictly decreasing times in (0, 1], got {list(values)!r}")
        return Levels([*map(self.level, times), CLEAN], self, [*times, 0.0])


class Flow(_InTime):
    """Flow matching's straight line x_t = (1 - t) x_0 + t z; the model is told t (Lipman et al. 2023, Liu et al. 2023).

    At t = 1 nothing is left of x_0, so samplers need a prediction that says something there ("flow", "x0"), and `ddim`,
    which is Euler's method on the flow.
    """

    def level(self, t: float) -> Level:
        return Level(1 - t, t, t)

    def level_at_sigma(self, sigma_ve: float) -> Level:
        return self.level(sigma_ve / (1 + sigma_ve))

    def prior_std(self, first: Level) -> float:
        return first.sigma


class SDEProcess(_InTime):
    """An SDE of Song et al. 2021, from t = 1 to its eps; the model is told what score_sde's networks are told.

    Args:
        sde: `fastdiff.sde.VESDE`, `VPSDE` or `subVPSDE`.
        continuous: whether the model was trained at all times, or on the chain of N; then a time has the alpha and the
            sigma of the chain's step that the model takes it for (sub-VP has no chain).
    """

    def __init__(self, sde: SDE, continuous: bool = True):
        self.sde, self.continuous = sde, continuous
        self.last = sde.eps
        self.integer_time = not sde.label(torch.ones(1), continuous).is_floating_point()

    def level(self, t: float) -> Level:
        time = torch.tensor([t], dtype=torch.float64)
        label = float(self.sde.label(time, self.continuous))
        alpha, sigma = self.sde.moments(time, self.continuous)
        return Level(float(alpha), float(sigma), label)

    def level_at_sigma(self, sigma_ve: float) -> Level:
        return self.level(float(self.sde.time(torch.tensor([sigma_ve], dtype=torch.float64))))

    def prior_std(self, first: Level) -> float:
        return float(self.sde.prior_std)


def process_of(description: Mapping[str, Any]) -> Process:
    """A process as a model file describes it: {"name": "vp", "betas": "linear", "T": 1000}, "flow", "sde", "ve", "edm".

    Raises:
        ValueError, TypeError: it describes none.
    """
    from .process import EDM, VE, VP
    from .sde import get_sde

    options: dict[str, Any] = dict(description)
    name = check_choice("process", options.pop("name", None), ("edm", "flow", "sde", "ve", "vp"))
    if name == "vp":
        makers = {"linear": VP.linear, "cosine": VP.cosine}
        return makers[check_choice("betas", options.pop("betas", None), makers)](**options)
    if name == "sde":
        continuous = options.pop("continuous", True)
        return SDEProcess(get_sde(options.pop("sde", None), **options), continuous)
    in_time: dict[str, Callable[..., Process]] = {"edm": EDM, "ve": VE, "flow": Flow}
    return in_time[name](**options)
