"""A discrete VP process at noise levels between its steps, which the model is told as fractions of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .errors import check_count
from .process import CLEAN, VP, Array, Level, Levels, _checked_sigmas, named_schedule
from .spacing import time_at_sigma


class InterpolatingVP(VP):
    """A VP process whose runs visit any noise levels: sigma schedules for models that were trained on T steps.

    A level of noise s in VE terms has alpha = 1 / sqrt(1 + s^2), and the model is told its time by interpolation in
    log s, a float (k-diffusion's DiscreteSchedule without quantising; the Euler, Heun and LMS schedulers of diffusers).

    Args:
        betas: [T], in (0, 1); rescale_timesteps: as for `VP`.
    """

    explicit = "sigmas"

    def __init__(self, betas: Sequence[float] | Array, rescale_timesteps: bool = False):
        super().__init__(betas, rescale_timesteps)
        self.integer_time = False
        if self.alphas_cumprod[-1] == 0:
            raise ValueError(
                "betas must leave some signal at the last step here: sigma / alpha is infinite at beta = 1"
            )
        self.sigmas: Array = np.sqrt((1 - self.alphas_cumprod) / self.alphas_cumprod)

    def levels(self, steps=None, schedule=None, **options):  # type: ignore[no-untyped-def]
        """`steps` levels, noisiest first, then clean: at times evenly spaced over the process, or a sigma schedule's.

        Args:
            schedule: as for `VE`; its sigma_min and sigma_max are the process's own unless given.
        """
        n = check_count("steps", 50 if steps is None else steps)
        if schedule is None:
            if options:
                name, value = next(iter(options.items()))
                raise ValueError(f"{name} must be left out without a schedule, got {value!r}")
            times = np.linspace(self.T - 1, 0, n)
            return self.levels_at([*np.interp(times, np.arange(self.T), self.sigmas), 0.0])
        options = {"sigma_min": float(self.sigmas[0]), "sigma_max": float(self.sigmas[-1])} | options
        return self._at(_checked_sigmas("schedule", named_schedule(schedule)(n, **options)))

    def levels_at(self, values):  # type: ignore[no-untyped-def]
        sigmas = _checked_sigmas("sigmas", values)
        if (np.diff(sigmas) == 0).any():
            raise ValueError(f"sigmas must be strictly decreasing, got {values!r}")
        return self._at(sigmas)

    def _at(self, sigmas: Array) -> Levels:
        return Levels([self.level_at_sigma(float(s)) if s > 0 else CLEAN for s in sigmas], self)

    def level_at_sigma(self, sigma_ve: float) -> Level:
        alpha = 1 / math.sqrt(1 + sigma_ve**2)
        time = float(time_at_sigma(sigma_ve, self.sigmas))
        return Level(alpha, sigma_ve * alpha, time * 1000 / self.T if self.rescale_timesteps else time)
