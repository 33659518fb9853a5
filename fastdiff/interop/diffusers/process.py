"""A scheduler of diffusers as a process: the levels that its set_timesteps visits, and those between them.

A process is made for one number of steps: solvers are told things that depend on it (a stride, a lower order).
"""

from __future__ import annotations

import math

import numpy as np

from ...continuous import SDEProcess
from ...errors import check_count
from ...process import CLEAN, VP, Array, Level, Levels, Process
from ...sde import VESDE
from ...spacing import spaced_timesteps, time_at_sigma
from .configs import Config
from .grids import SMALLEST_ABAR, betas_of, dpm_grid, edm_grid, flow_match_grid, ipndm_levels, sigma_grid

CHAINS = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")
DPM = (
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
)


class ChainProcess(VP):
    """The process of DDIM, DDPM and PNDM: whole times, whose alpha_bar is looked up. Its levels end at clean data, or
    at step 0 again (set_alpha_to_one=False).
    """

    def __init__(self, config: Config, steps: int):
        super().__init__(betas_of(config))
        self.config, self._steps = config, check_count("steps", steps)
        self.last = CLEAN if config.get("set_alpha_to_one", True) else self.level(0)

    def levels(self, steps=None, schedule=None, **options):  # type: ignore[no-untyped-def]
        """The levels of a run of the number of steps that this was made for."""
        n, config = _own_steps(self._steps, steps, schedule, options), self.config
        times = spaced_timesteps(self.T, n, config["timestep_spacing"], config["steps_offset"])
        return Levels([*(self.level(t) for t in times), self.last], self)

    def levels_at(self, values):  # type: ignore[no-untyped-def]
        raise _own_levels()


class SchedulerProcess(Process):
    """The process of a scheduler of noise levels.

    States are variance preserving, x = alpha x_0 + sigma z, where a scheduler works in sigma space (Euler, Heun, LMS,
    KDPM2): its own state is x / alpha. A last level that is not clean has alpha = 1 there, so that samples are equal.

    Attributes:
        alphas_cumprod: [T] of a scheduler with betas.
    """

    def __init__(self, config: Config, steps: int, mu: float | None = None):
        """mu: of a flow whose shift depends on the image (set_timesteps(mu=...))."""
        self.config, self._steps, self._mu = config, check_count("steps", steps), mu
        self.integer_time = config.scheduler in DPM
        self.flow = bool(config.get("use_flow_sigmas")) or config.scheduler.startswith("FlowMatch")
        if "beta_schedule" in config:
            self.alphas_cumprod: Array = np.cumprod(1 - betas_of(config), dtype=np.float64)
            if config.get("rescale_betas_zero_snr"):
                self.alphas_cumprod[-1] = SMALLEST_ABAR

    @property
    def T(self) -> int:
        """The number of the steps that the model was trained on."""
        return int(self.config["num_train_timesteps"])

    @property
    def table(self) -> Array:
        """[T] noise levels of the steps in VE terms."""
        return np.asarray(np.sqrt((1 - self.alphas_cumprod) / self.alphas_cumprod), dtype=np.float64)

    def levels(self, steps=None, schedule=None, **options):  # type: ignore[no-untyped-def]
        """The levels of a run of the number of steps that this was made for."""
        n, name, config = _own_steps(self._steps, steps, schedule, options), self.config.scheduler, self.config
        if name == "IPNDMScheduler":
            sigmas, alphas = ipndm_levels(n)
            times = np.arctan2(sigmas, alphas) / math.pi * 2
            return Levels([*map(Level, alphas.tolist(), sigmas.tolist(), times.tolist())], self)
        if name.startswith("EDM"):
            sigmas, times = edm_grid(config, n)
        elif name.startswith("FlowMatch"):
            sigmas, times = flow_match_grid(config, n, self._mu)
        else:
            sigmas, times = (dpm_grid if name in DPM else sigma_grid)(config, self.table, n)
        noisy = [self._level(float(s), float(t)) for s, t in zip(sigmas, times)]
        return Levels([*noisy, self._last(float(sigmas[-1]))], self)

    def levels_at(self, values):  # type: ignore[no-untyped-def]
        raise _own_levels()

    def _level(self, sigma: float, time: float) -> Level:
        """The level of a noise as the scheduler knows it, told `time`."""
        if sigma == 0:
            return CLEAN
        if self.config.scheduler.startswith("EDM"):
            return Level(1.0, sigma, sigma)
        if self.flow:
            return Level(1 - sigma, sigma, time)
        alpha = 1 / math.sqrt(sigma**2 + 1)
        return Level(alpha, sigma * alpha, time)

    def _last(self, sigma: float) -> Level:
        in_sigma_space = self.config.scheduler not in DPM
        return Level(1.0, sigma, 0.0) if in_sigma_space and sigma > 0 else self._level(sigma, 0.0)

    def level_at_sigma(self, sigma_ve: float) -> Level:
        if self.config.scheduler.startswith("EDM"):
            return self._level(sigma_ve, sigma_ve)
        if self.flow:
            sigma = sigma_ve / (1 + sigma_ve)
            return self._level(sigma, float(math.floor(sigma * self.T)) if self.integer_time else sigma * self.T)
        time = float(time_at_sigma(sigma_ve, self.table))
        return self._level(sigma_ve, round(time) if self.integer_time else time)

    def prior_std(self, first: Level) -> float:
        """The scheduler's init_noise_sigma, of the state as it is here."""
        config = self.config
        if config.scheduler.startswith("EDM"):
            return math.sqrt(config["sigma_max"] ** 2 + 1)
        scaled = self.integer_time or self.flow or config.scheduler == "IPNDMScheduler"
        if scaled or config["timestep_spacing"] == "leading":
            return 1.0
        return first.sigma


def _own_steps(own: int, steps: object, schedule: object, options: object) -> int:
    if schedule is not None or options:
        raise ValueError("schedule and its options must be left out: the scheduler's configuration has its own")
    if steps is not None and steps != own:
        raise ValueError(f"steps must be {own}, for which sampler_options was asked, got {steps!r}; ask it again")
    return own


def _own_levels() -> ValueError:
    return ValueError("sigmas and timesteps must be left out: the scheduler's configuration gives the levels")


def process_of(config: Config, steps: int, mu: float | None = None) -> Process:
    """The process of a scheduler's configuration, for a number of steps."""
    if config.scheduler == "ScoreSdeVeScheduler":
        process = SDEProcess(VESDE(config["sigma_min"], config["sigma_max"]))
        process.last = config["sampling_eps"]
        return process
    return ChainProcess(config, steps) if config.scheduler in CHAINS else SchedulerProcess(config, steps, mu)
