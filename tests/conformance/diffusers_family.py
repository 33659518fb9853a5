"""Replays diffusers' schedulers (ddpm/SPEC.md, section 6, and edm/SPEC.md, section 11) through `sampler_options`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastdiff
from fastdiff.interop.diffusers import sampler_options
from fastdiff.interop.diffusers.grids import kind_of
from fastdiff.process import Level
from fastdiff.spacing import time_at_sigma
from fastdiff.training.perturb import noising_table, perturb

from ..tolerances import FLOAT32_STATE, OTHERS_FLOAT32_FACTOR
from .analytic import Denoiser, DiscreteModel, _vp_mixture, per_sample
from .cases import Case, compare, compare_results, error
from .replay import Run, in_order, of_step, run

SIGMA_SPACE = ("Euler", "EulerAncestral", "Heun", "LMS", "KDPM2", "KDPM2Ancestral", "DPMSolverSDE")
BETA_DEFAULTS = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}


class EDMNetwork:
    """The raw network F of EDM's preconditioning around a denoiser D(x; sigma); told ln(sigma) / 4 (`edm_F`).

    Args:
        sign: -1 for a scheduler with prediction_type="v_prediction", whose c_out is negative.
        imperfect: adds 0.05 sin(3 x) of the network's input to F.
    """

    def __init__(self, denoise: Callable[..., Tensor], sigma_data: float, sign: float = 1.0, imperfect: bool = False):
        self.denoise, self.sigma_data, self.sign, self.imperfect = denoise, sigma_data, sign, imperfect
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []  # x, sigma, D

    def __call__(self, y: Tensor, time: Tensor) -> Tensor:
        sigma = (4 * time).exp()
        s, sd = per_sample(sigma, y), self.sigma_data
        x = y.double() * (s**2 + sd**2).sqrt()
        clean = self.denoise(x, sigma)
        self.calls.append((x, sigma, clean))
        out = self.sign * (clean - sd**2 / (s**2 + sd**2) * x) * (s**2 + sd**2).sqrt() / (s * sd)
        return (out + 0.05 * (3 * y.double()).sin() if self.imperfect else out).to(y.dtype)


class AngleModel:
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2), output eps (`vp_angle`)."""

    def __init__(self, description: Mapping[str, Any]):
        if description["target"] != "eps":
            raise ValueError(f"no rule for the model target {description['target']!r}")
        self.mixture, self.imperfect = _vp_mixture(description["mixture"]), bool(description["imperfect"])

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (torch.pi / 2 * t.double()).cos(), (torch.pi / 2 * t.double()).sin()
        x0 = self.mixture.denoise(x, alpha, sigma)
        out = (x.double() - per_sample(alpha, x) * x0) / per_sample(sigma, x)
        return (out + 0.05 * (3 * x.double()).sin() if self.imperfect else out).to(x.dtype)


def model_of(description: Mapping[str, Any]) -> Callable[..., Tensor]:
    """The analytic network of a case."""
    kind = description["kind"]
    if kind == "edm_F":
        mixture = _vp_mixture(description["mixture"])
        sign = -1.0 if description.get("prediction_type") == "v_prediction" else 1.0
        ones = torch.ones_like
        return EDMNetwork(
            lambda x, sigma: mixture.denoise(x, ones(sigma), sigma),
            description["sigma_data"],
            sign,
            bool(description["imperfect"]),
        )
    return AngleModel(description) if kind == "vp_angle" else DiscreteModel(description)


def scheduler_of(case: Case) -> str:
    """The class of a case, "DDIMScheduler"."""
    name = str(case.entry["function"] if case.folder == "ddpm" else case.entry["source"]["function"])
    return name.split(":")[0].strip()


def short(scheduler: str) -> str:
    return scheduler.removesuffix("Scheduler").removesuffix("Discrete")


class Recorded:
    """A finished run by diffusers' names."""

    def __init__(self, done: Run, scheduler: str, options: dict[str, Any]):
        self.done, self.options, self.name = done, options, short(scheduler)
        self.levels = done.sampler.levels
        self.in_sigma_space = self.name in SIGMA_SPACE

    def scale(self, level: Level) -> float:
        """A scheduler's own state over fastdiff's, x / alpha in sigma space."""
        return 1 / level.alpha if self.in_sigma_space else 1.0

    def level_of(self, call: int) -> Level:
        """The level of a call of the model: one of the run's, or between two of them (KDPM2)."""
        time, process = float(self.done.calls.times[call][0]), self.options["process"]
        step = int(np.searchsorted(self.done.first_calls, call, side="right")) - 1
        if call == self.done.first_calls[step]:
            return self.levels[step]
        if time == self.levels[step + 1].time:
            return self.levels[step + 1]
        if isinstance(process, fastdiff.VP):
            return process.level(time)
        sigma = float(np.exp(np.interp(time, np.arange(process.T), np.log(process.table))))
        assert np.isclose(time_at_sigma(sigma, process.table), time)
        return process.level_at_sigma(sigma)

    def x_steps(self) -> Tensor:
        """The state after every call of step: at the end of a step of fastdiff, or the next input of the model."""
        calls, steps = self.done.calls, []
        ends = {first: n for n, first in enumerate(self.done.first_calls)} | {len(calls.inputs): self.levels.steps}
        for call in range(1, len(calls.inputs) + 1):
            if call in ends:
                steps.append(self.done.states[ends[call]] * self.scale(self.levels[ends[call]]))
            else:
                steps.append(calls.inputs[call] * self.scale(self.level_of(call)))
        return torch.stack(steps)

    def pred_x0(self) -> Tensor:
        """What every call predicted: the last of a step from the library, others (Heun, KDPM2) from its calls."""
        calls, predicted = self.done.calls, []
        last = {first - 1: n - 1 for n, first in enumerate(self.done.first_calls) if n}
        last[len(calls.inputs) - 1] = self.levels.steps - 1
        for call, (x, out) in enumerate(zip(calls.inputs, calls.outputs)):
            if call in last:
                predicted.append(self.done.denoised[last[call]])
                continue
            c = self.done.sampler.prediction.coefficients(self.level_of(call))
            x0 = c.c_skip * x + c.c_out * out
            predicted.append(x0 if self.done.sampler.clip is None else x0.clamp(*self.done.sampler.clip))
        return torch.stack(predicted)

    def sigmas(self) -> np.ndarray:
        """The scheduler's own array: levels of the stages of Heun and KDPM2 included."""
        sigmas = self.levels.sigmas
        if getattr(self.options["process"], "flow", False):
            return np.array([level.sigma for level in self.levels])
        config = self.options["process"].config
        if (
            config.get("interpolation_type") == "log_linear"
            and not kind_of(config)
            and len(sigmas) == 1 + self.options["steps"]
        ):
            unused = 0.0 if config["final_sigmas_type"] == "zero" else self.options["process"].table[0]
            sigmas = np.append(sigmas, unused)  # a level more than there are times
        if self.name in ("Heun", "DPMSolverSDE"):
            return np.concatenate([sigmas[:1], sigmas[1:-1].repeat(2), sigmas[-1:]])
        if self.name.startswith("KDPM2"):
            return np.concatenate([sigmas[:1], sigmas[1:].repeat(2), sigmas[-1:]])
        return sigmas

    def arrays(self) -> dict[str, Any]:
        """Everything that a case may record."""
        process, calls, first = self.options["process"], self.done.calls, self.levels[0]
        return {
            "x_steps": self.x_steps(),
            "timesteps": torch.stack(calls.times)[:, 0].double(),
            "init_noise_sigma": np.array(process.prior_std(first) * self.scale(first)),
            "model_x": torch.stack(calls.inputs),
            "model_t": torch.stack(calls.times),
            "model_out": torch.stack(calls.outputs),
            "pred_x0": self.pred_x0(),
            "sigmas": self.sigmas(),
            "alphas_cumprod": getattr(process, "alphas_cumprod", None),
        }


def options_of(case: Case, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `fastdiff.Sampler` for a case."""
    config, step = arguments["config"], arguments.get("step_kwargs") or {}
    steps = arguments["num_inference_steps"] if case.folder == "ddpm" else arguments["n"]
    return sampler_options(config, steps, scheduler_of(case), **step)


def replay(case: Case, route: str, dtype: torch.dtype = torch.float64) -> Recorded:
    """A run of the case, started where the scheduler started."""
    options = options_of(case, case.arguments(num_inference_steps=None, config=None, step_kwargs=None))
    data, scheduler = case.arrays, scheduler_of(case)
    first = options["process"].levels(options["steps"])[0]
    done = run(
        model_of(case.model),
        route,
        data["x_init"] * (first.alpha if short(scheduler) in SIGMA_SPACE else 1.0),
        noise=data.get("noise"),
        entry=in_order if "S_churn" in options or options["solver"] == "dpmpp_sde" else of_step,
        dtype=dtype,
        **options,
    )
    return Recorded(done, scheduler, options)


def replay_arrays(case: Case, route: str, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """The same, by diffusers' names."""
    return replay(case, route, dtype).arrays()


def replay_score_sde(case: Case, route: str, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """A run of ScoreSdeVeScheduler, which records the noisy and the noiseless end of every step, the last one too."""
    options = options_of(case, case.arguments(num_inference_steps=None, config=None, step_kwargs=None))
    data = case.arrays
    if case.model["kind"] != "ve_sigma" or case.model["target"] != "score":
        raise ValueError(f"no rule for the model {case.model!r}")
    mixture, imperfect = _vp_mixture(case.model["mixture"]), bool(case.model["imperfect"])

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        out = mixture.score(x, torch.ones_like(sigma), sigma)
        return (out + 0.05 * (3 * x).sin() / per_sample(sigma, x) if imperfect else out).to(x.dtype)

    def once(final_denoise: bool) -> Run:
        given = {"noise": data["noise"], "entry": in_order, "final_denoise": final_denoise, "dtype": dtype}
        return run(score, route, data["x_init"], **given, **options)

    done, denoised = once(False), once(True)
    levels, calls = done.sampler.levels, done.calls
    sde = options["process"].sde.with_chain(levels.steps)
    std = sde.discretize(torch.from_numpy(levels.times[:-1]))[1]
    drawn = torch.from_numpy(data["noise"]).unflatten(0, (levels.steps, -1))[
        :, -1
    ]  # the last of a step: the predictor's
    means = done.states[1:] - std.reshape(-1, 1, 1, 1, 1) * drawn
    return {
        "x_steps": done.states[1:],
        "x_mean_steps": torch.cat([means[:-1], denoised.final[None]]),
        "timesteps": levels.times[:-1],
        "sigmas": levels.sigmas[:-1],
        "discrete_sigmas": sde.discrete_sigmas,
        "init_noise_sigma": np.array(options["process"].prior_std(levels[0])),
        "model_x": torch.stack(calls.inputs),
        "model_t": torch.stack(calls.times),
        "model_out": torch.stack(calls.outputs),
    }


def check(case: Case, route: str) -> None:
    """ddpm/diffusers: a whole run in float64."""
    if case.model is None:
        check_noising(case)
        return
    got = (replay_score_sde if scheduler_of(case) == "ScoreSdeVeScheduler" else replay_arrays)(case, route)
    compare(case, got, case.tolerance, inputs=("x_init", "noise", "x_final_float32"), label=route)


def check_float32(case: Case, route: str) -> None:
    """A run with a float32 state ends no farther from the float64 one than twice diffusers' own float32 run."""
    exact, theirs = case.arrays["x_steps"][-1], case.arrays["x_final_float32"]
    again = replay_score_sde if scheduler_of(case) == "ScoreSdeVeScheduler" else replay_arrays
    final = {"final": again(case, route, torch.float32)["x_steps"][-1]}
    bound = max(FLOAT32_STATE, OTHERS_FLOAT32_FACTOR * error(case.folder, theirs, exact))
    compare_results(case, final, {"final": exact}, bound, label=f"float32, {route}")


def check_noising(case: Case) -> None:
    """add_noise and get_velocity."""
    if case.entry["function"] != "DDPMScheduler.add_noise / get_velocity":
        raise ValueError(f"no rule for the function {case.entry['function']!r}")
    config = case.arguments(**BETA_DEFAULTS, beta_schedule="linear")
    process = sampler_options(config, 1, "DDPMScheduler")["process"]
    abar = process.alphas_cumprod
    x0, noise, t = (torch.from_numpy(case.arrays[name]) for name in ("x0", "noise", "t"))
    table = noising_table(*(torch.from_numpy(np.sqrt(a)) for a in (abar, 1 - abar)), "v", dtype=torch.float64)
    noisy, velocity = perturb(x0, table, t, noise)
    got = {"noisy": noisy, "velocity": velocity, "alphas_cumprod": abar}
    compare(case, got, case.tolerance, inputs=("x0", "noise", "t"))


def check_edm(case: Case, route: str) -> None:
    """edm/diffusers: the EDM schedulers with a network whose preconditioned output is the denoiser's."""
    a = case.arguments(n=None, config=None)
    options, data = options_of(case, a), case.arrays
    config = options["process"].config
    sign = -1.0 if config["prediction_type"] == "v_prediction" else 1.0
    network = EDMNetwork(Denoiser.of(case), config["sigma_data"], sign)
    done = run(network, route, data["x_init"], noise=data.get("noise"), **options)
    x, sigma, clean = (torch.stack(values) for values in zip(*network.calls[: len(done.calls.inputs)]))
    got = {
        "states": done.states,
        "final": done.final,
        "sigmas": done.sampler.levels.sigmas,
        "call_x": x,
        "call_sigma": sigma[:, 0],
        "call_denoised": clean,
    }
    assert np.allclose(data["latents"] * data["sigmas"][0], data["x_init"], rtol=1e-6)
    compare(case, got, case.tolerance, inputs=("latents", "x_init", "noise"), label=route)
