"""The times and noise levels that diffusers' set_timesteps visits, per family of schedulers, in float64.

Every function gives (sigmas [n + 1] in VE terms (flow: as they are), times [n]).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ... import schedules
from ...errors import check_choice, check_count
from ...process import Array
from ...spacing import spaced_timesteps, time_at_sigma
from .configs import Config

Grid = tuple[Array, Array]
SMALLEST_ABAR = 2.0**-24  # what diffusers' sigma schedulers take for alpha_bar = 0 at zero terminal SNR


def betas_of(config: Config) -> Array:
    """[T] betas of a configuration, with its zero-terminal-SNR rescale."""
    T, lo, hi = (
        check_count("num_train_timesteps", config["num_train_timesteps"]),
        config["beta_start"],
        config["beta_end"],
    )
    name = config["beta_schedule"]
    if config["trained_betas"] is not None:
        betas = np.array(config["trained_betas"], dtype=np.float64)
        if betas.shape != (T,):
            raise ValueError(f"trained_betas must be num_train_timesteps={T} numbers, got shape {list(betas.shape)}")
    elif name in ("linear", "sigmoid"):
        betas = schedules.betas(name, T, lo, hi)
    elif name == "scaled_linear":
        betas = schedules.betas("quad", T, lo, hi)
    elif name == "squaredcos_cap_v2":
        betas = schedules.cosine_betas(T)
    elif name == "exp":
        betas = np.full(T, min(-math.expm1(-12.0 / T), 0.999))
    elif name == "laplace":
        betas = _laplace_betas(T)
    else:
        known = "linear, scaled_linear, squaredcos_cap_v2, sigmoid, exp, laplace"
        raise ValueError(f"beta_schedule must be one of {known}, got {name!r}")
    return schedules.zero_terminal_snr(betas) if config.get("rescale_betas_zero_snr") else betas


def _laplace_betas(T: int) -> Array:
    """Of diffusers' "laplace", which takes the square root of Hang et al.'s alpha_bar, at times i / T."""
    half = 0.5 - np.arange(T + 1) / T
    snr = np.exp(-0.5 * np.copysign(1.0, half) * np.log(1 - 2 * np.abs(half) + 1e-6))
    abar = np.sqrt(snr / (1 + snr))
    return np.minimum(1 - abar[1:] / abar[:-1], 0.999)


def spaced_sigmas(kind: str, n: int, low: float, high: float, rho: float = 7.0) -> Array:
    """n levels from high to low, without the clean one, by a configuration's kind of schedule."""
    kinds: dict[str, Callable[[], Array]] = {
        "karras": lambda: schedules.karras(n, low, high, rho),
        "exponential": lambda: np.append(np.exp(np.linspace(math.log(high), math.log(low), n)), 0.0),
        "beta": lambda: schedules.beta_quantiles(n, low, high),
    }
    return kinds[kind]()[:-1]


def kind_of(config: Config) -> str | None:
    """The sigma schedule that a configuration asks for, if any.

    Raises:
        ValueError: more than one.
    """
    kinds = [kind for kind in ("karras", "exponential", "beta") if config.get(f"use_{kind}_sigmas")]
    if len(kinds) > 1:
        raise ValueError(f"scheduler must use at most one of karras, exponential and beta sigmas, got {kinds}")
    return kinds[0] if kinds else None


def sigma_grid(config: Config, table: Array, n: int) -> Grid:
    """Euler, Euler ancestral, Heun, LMS, KDPM2: times need not be whole, and sigma schedules span the spaced levels."""
    T = len(table)
    times = spaced_timesteps(T, n, config["timestep_spacing"], config["steps_offset"], rounded=False)
    sigmas = np.interp(times, np.arange(T), table)
    interpolation = check_choice(
        "interpolation_type", config.get("interpolation_type", "linear"), ("linear", "log_linear")
    )
    if interpolation == "log_linear":  # n + 1 levels: with n times, a run ends at the last
        sigmas = np.exp(np.linspace(math.log(table[-1]), math.log(table[0]), n + 1))
    kind = kind_of(config)
    if kind is not None:
        sigmas = spaced_sigmas(kind, n, *_limits(config, sigmas[-1], sigmas[0]))
        times = time_at_sigma(sigmas, table)
        times = times.round() if kind == "karras" and config.scheduler.startswith("KDPM2") else times
    if config.get("timestep_type") == "continuous" and config["prediction_type"] == "v_prediction":
        times = 0.25 * np.log(sigmas)  # of all n + 1 levels, if there are
    last = float(table[0]) if config.get("final_sigmas_type") == "sigma_min" else 0.0
    return np.append(sigmas, last)[: len(times) + 1], times


def dpm_grid(config: Config, table: Array, n: int) -> Grid:
    """DPM-Solver (multi- and single-step), UniPC, DEIS: whole times; sigma schedules span the whole table."""
    if config["use_flow_sigmas"]:
        return flow_grid(config, table, n)
    times = _spaced(config, table, n)
    kind, unipc = kind_of(config), config.scheduler == "UniPCMultistepScheduler"
    if kind is None and config.get("use_lu_lambdas"):
        sigmas = spaced_sigmas("exponential", n, table[0], table[-1])
    elif kind is None:
        sigmas = np.interp(times, np.arange(len(table)), table)
    else:
        sigmas = spaced_sigmas(kind, n, *_limits(config, table[0], table[-1]))
    if kind is not None or config.get("use_lu_lambdas"):
        times = time_at_sigma(sigmas, table)
        cosine = config["beta_schedule"] == "squaredcos_cap_v2" and config.scheduler == "DPMSolverMultistepScheduler"
        rounds = kind in ("karras", None) and not cosine
        times = times.round() if rounds else np.trunc(times)
    # Where the run ends: DEIS never at 0, and like UniPC at its own smallest level if a sigma schedule is used.
    last = float(sigmas[-1] if kind is not None and (unipc or config.scheduler.startswith("DEIS")) else table[0])
    return np.append(sigmas, 0.0 if config.get("final_sigmas_type") == "zero" else last), times


def _limits(config: Config, low: float, high: float) -> tuple[float, float]:
    """A configuration's own limits of sigma, where it has them."""
    given = config.get("sigma_min"), config.get("sigma_max")
    return float(low if given[0] is None else given[0]), float(high if given[1] is None else given[1])


def _spaced(config: Config, table: Array, n: int) -> Array:
    """The times visited without a sigma schedule; lambda_min_clipped leaves out the noisiest."""
    lambdas = -np.log(table[::-1])  # ascending
    T = len(table) - int(np.searchsorted(lambdas, float(config.get("lambda_min_clipped", -math.inf))))
    spacing = config.get("timestep_spacing", "linspace")
    if spacing == "trailing" and T < len(table):  # strides of the whole process from the noisiest time that is left
        return np.arange(T, 0, -len(table) / n).round() - 1.0
    return spaced_timesteps(T, n, spacing, config.get("steps_offset", 0), extra=spacing != "trailing")


def flow_grid(config: Config, table: Array, n: int) -> Grid:
    """Flow matching through the same schedulers: sigma = t, shifted; times are sigma T, cut to whole ones."""
    T, shift = config["num_train_timesteps"], config["flow_shift"]
    if config["use_dynamic_shifting"]:
        raise ValueError("use_dynamic_shifting must be off: its shift depends on the image; set flow_shift to exp(mu)")
    if kind_of(config) is not None:
        raise ValueError("use_flow_sigmas must not be combined with karras, exponential or beta sigmas")
    sigmas = np.linspace(1, 1 / T, n + 1)[:-1]
    if config.scheduler != "UniPCMultistepScheduler":
        sigmas = np.flip(1 - np.linspace(1, 1 / T, n + 1))[:-1]
    sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    last = float(table[0])
    if config.scheduler == "UniPCMultistepScheduler":
        sigmas = _stretched(sigmas, config["shift_terminal"])
        if abs(sigmas[0] - 1) < 1e-6:
            sigmas[0] -= 1e-6
        last = float(sigmas[-1])
    if config.scheduler.startswith("DEIS"):
        last = float(sigmas[-1])
    return np.append(sigmas, 0.0 if config.get("final_sigmas_type") == "zero" else last), np.trunc(sigmas * T)


def _stretched(sigmas: Array, terminal: float | None) -> Array:
    """Levels stretched so that the last one is `terminal`, the first one staying at 1."""
    if not terminal:
        return sigmas
    if len(sigmas) < 2:
        raise ValueError(
            "steps must be at least 2 with shift_terminal, which moves the last level and not the first, got 1"
        )
    return np.asarray(1 - (1 - sigmas) / ((1 - sigmas[-1]) / (1 - terminal)), dtype=np.float64)


def flow_match_grid(config: Config, n: int, mu: float | None) -> Grid:
    """FlowMatchEuler: sigma = t from 1 down to the process's last level, shifted once more than that level was."""
    if config["invert_sigmas"]:
        raise ValueError("invert_sigmas must be off: a model that counts time from data to noise has no counterpart")
    if (mu is None) == bool(config["use_dynamic_shifting"]):
        raise ValueError(f"mu must be given if use_dynamic_shifting is on, and only then, got {mu!r}")
    T, shift = config["num_train_timesteps"], config["shift"]
    lowest = 1 / T
    if not config["use_dynamic_shifting"]:
        lowest = shift * lowest / (1 + (shift - 1) * lowest)
    sigmas = np.linspace(1.0, lowest, n)
    if mu is not None:  # Esser et al. 2024, Eq. 23
        shift = math.exp(mu) if config["time_shift_type"] == "exponential" else mu
    sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    sigmas = _stretched(sigmas, config["shift_terminal"])
    kind = kind_of(config)
    if kind is not None:
        sigmas = spaced_sigmas(kind, n, float(sigmas[-1]), float(sigmas[0]))
    return np.append(sigmas, 0.0), sigmas * T


def edm_grid(config: Config, n: int) -> Grid:
    """The EDM schedulers: Karras or exponential levels between their own limits.

    One exponential step goes from sigma_max, where diffusers takes sigma_min for a state of noise sigma_max.
    """
    kind = check_choice("sigma_schedule", config["sigma_schedule"], ("karras", "exponential"))
    sigmas = spaced_sigmas(kind, n, config["sigma_min"], config["sigma_max"], config["rho"])
    last = 0.0 if config["final_sigmas_type"] == "zero" else float(sigmas[-1])
    return np.append(sigmas, last), sigmas


def ipndm_levels(n: int) -> tuple[Array, Array]:
    """(sigma, alpha) [n + 1] of IPNDM's own process: sigma = sin^2(pi s / 2) for s evenly from 1 to 0."""
    sigma = np.sin(np.linspace(1, 0, n + 1) * math.pi / 2) ** 2
    return sigma, np.sqrt(1 - sigma**2)
