"""Replays the cases of k-diffusion's samplers (edm/SPEC.md, section 10): one rule for each of its functions.

A solver's module adds its function to `RULES`: the reference's arguments with their defaults, the options of
`fastdiff.Sampler` that mean the same, and how the recorded noise is handed to fastdiff's draws. Everything else
(grid, start, callbacks, calls, intervals of the noise) is common. `s_noise` is `S_noise` here, as in EDM.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

import fastdiff
from fastdiff.adaptive import Trial
from fastdiff.trace import Recorder

from .analytic import Denoiser
from .cases import Case, compare, compare_results
from .replay import Run, check_float32_state, in_order, of_step, run, same_for_all
from .tables import GRIDS

INPUTS = ("latents", "x_init", "labels", "noise", "noise_sigmas")


@dataclass(frozen=True)
class Rule:
    """What one function of k-diffusion is in fastdiff.

    Attributes:
        options: the reference's arguments, complete -> options of `Sampler`: solver and its own; "sigmas" only where
            the function makes its levels itself.
        defaults: the reference's arguments.
        entry: which entry of `noise` the draw of a step reads: `in_order` (the k-th draw is entry k - 1, what ancestral
            and SDE samplers ask for one after the other) or `of_step` (churn: one entry per step, used or not).
    """

    options: Callable[[dict[str, Any]], dict[str, Any]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    entry: Callable[[int, int], int] = in_order

    def sampler_options(self, case: Case) -> dict[str, Any]:
        """The arguments of `fastdiff.Sampler` that mean what the case's arguments mean."""
        own = self.options(case.arguments(**self.defaults))
        return {"process": "edm", "prediction": "x0", "sigmas": own.get("sigmas", given_grid(case)), **own}

    def replay(
        self, case: Case, route: str, dtype: torch.dtype = torch.float64, rounded: bool = False
    ) -> dict[str, Any]:
        """Everything the reference records of a run."""
        data = case.arrays
        done = run(
            Denoiser.of(case),
            route,
            data["x_init"],
            noise=data.get("noise"),
            entry=self.entry,
            labels=data.get("labels"),
            dtype=dtype,
            rounded=rounded,
            **self.sampler_options(case),
        )
        return self.recorded(done)

    def recorded(self, done: Run) -> dict[str, Any]:
        """A run by the reference's names; `cb_*` are at the first evaluation of a step."""
        calls, sigmas = done.calls, done.sampler.levels.sigmas
        return {
            "states": done.states,
            "final": done.final,
            "sigmas": sigmas,
            "call_x": torch.stack(calls.inputs),
            "call_sigma": same_for_all(calls.times),
            "call_denoised": torch.stack(calls.outputs),
            "cb_x": torch.stack([calls.inputs[i] for i in done.first_calls]),
            "cb_sigma": sigmas[:-1],
            "cb_sigma_hat": done.sigma_hat,
        }

    def intervals(self, case: Case) -> np.ndarray:
        """[n, 2] the noise levels (from, to) of each draw."""
        return noise_intervals(self.sampler_options(case))

    def check_float32(self, case: Case, route: str) -> None:
        """A float32 state."""
        check_float32_state(case, route, self.replay, "states")

    def check(self, case: Case, route: str) -> None:
        """The run, and the interval that each of its draws is said to drive."""
        data = case.arrays
        assert np.allclose(data["latents"] * start_sigma(case), data["x_init"], rtol=1e-12, atol=1e-12)
        compare(case, self.replay(case, route), case.tolerance, inputs=INPUTS, label=route)
        if "noise_sigmas" in data:
            told = self.intervals(case)
            assert len(told) <= len(data["noise_sigmas"]), f"{case.id}: {len(told)} draws, the reference made fewer"
            wanted = {"noise_sigmas": data["noise_sigmas"][: len(told)]}
            compare_results(case, {"noise_sigmas": told}, wanted, case.tolerance, label=route)


class OwnSteps(Rule):
    """A function that makes its levels itself, between a first and a last one."""

    def recorded(self, done: Run) -> dict[str, Any]:
        """The levels of its callbacks are where its steps begin."""
        return {**super().recorded(done), "cb_sigma": done.sigma_hat}


class Adaptive(Rule):
    """DPM-Solver with adaptive steps: callbacks come after every trial step, draws with those that are taken."""

    def check_float32(self, case: Case, route: str) -> None:
        """The samples within the tolerance of a step: where errors are small float32 chooses other steps."""
        exact, single = (self.replay(case, route, dtype)["final"] for dtype in (torch.float64, torch.float32))
        rtol = case.arguments(**self.defaults)["rtol"]
        compare_results(case, {"final": single}, {"final": exact}, rtol, label=f"float32 samples, {route}")

    def intervals(self, case: Case) -> np.ndarray:
        ends = np.array([start_sigma(case), *dict.fromkeys(self.replay(case, "readable")["cb_sigma"].tolist())])
        return np.stack([ends[:-1], ends[1:]], axis=1)

    def replay(
        self, case: Case, route: str, dtype: torch.dtype = torch.float64, rounded: bool = False
    ) -> dict[str, Any]:
        trials: list[Trial] = []
        watched = replace(self, options=lambda a: {**self.options(a), "watch": trials.append})
        recorded = super(Adaptive, watched).replay(case, route, dtype, rounded)
        trials = trials[: len(trials) // 2]  # `run` makes the run twice
        accepted = sum(bool(trial.accepted) for trial in trials)
        sigmas = np.array([trial.sigma[0] for trial in trials])
        return recorded | {
            "info": np.array([len(trials), trials[-1].evaluations, accepted, len(trials) - accepted]),
            "cb_x": torch.stack([trial.x for trial in trials]),
            "cb_sigma": sigmas,
            "cb_sigma_hat": sigmas,
            "cb_error": np.array([trial.error[0] for trial in trials]),
            "cb_h": np.array([trial.h[0] for trial in trials]),
        }


def given_grid(case: Case) -> list[float] | None:
    """The grid that the case's `sigmas_from` describes, else its `sigmas`; None where there is neither."""
    described = case.entry.get("sigmas_from")
    if described is None:
        return case.arrays["sigmas"].tolist() if "sigmas" in case.arrays else None
    unknown = sorted(set(described) - {"function", "n", "kwargs"})
    if unknown or described["function"] not in GRIDS:
        raise ValueError(f"{case.id}: no rule for the grid {described}")
    return GRIDS[described["function"]](described["n"], **described["kwargs"]).tolist()


def start_sigma(case: Case) -> float:
    """What the unit latents are multiplied by."""
    return case.arrays["sigmas"][0] if "sigmas" in case.arrays else float(case.entry["args"]["sigma_max"])


def noise_intervals(options: dict[str, Any]) -> np.ndarray:
    """[n, 2] the noise levels (from, to) that the solver names to each of its draws, in VE terms."""
    sampler = fastdiff.Sampler(lambda x, t: x, dtype=torch.float64, **options)
    engine, told = Recorder(), []
    denoise = sampler.denoiser(engine, sampler.levels)

    def noise(start: Any = None, end: Any = None, eta: float = 1.0) -> Any:
        told.append([math.nan if level is None else level.sigma_ve for level in (start, end)])
        return engine.noise()

    for state in sampler.solver(denoise, engine.start(1.0, True), sampler.levels, noise, **sampler.options):
        engine.finish_step(state, denoise.last_x0, denoise.first_level, False)
        denoise.finish_step()
    return np.array(told).reshape(-1, 2)


def churned(solver: str) -> Rule:
    """EDM's churn in front of every step."""
    names = {"s_churn": "S_churn", "s_tmin": "S_min", "s_tmax": "S_max", "s_noise": "S_noise"}
    return Rule(
        lambda a: {"solver": solver, **{name: a[theirs] for theirs, name in names.items()}},
        {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": math.inf, "s_noise": 1.0},
        of_step,
    )


def with_eta(solver: str, **defaults: Any) -> Rule:
    """A step of an SDE: `eta` and `s_noise`, and options of the same name."""
    return Rule(
        lambda a: {"solver": solver, "S_noise": a.pop("s_noise"), **a}, {"eta": 1.0, "s_noise": 1.0, **defaults}
    )


def fast(a: dict[str, Any]) -> dict[str, Any]:
    """DPM-Solver-fast: `n` evaluations from sigma_max to sigma_min."""
    ends = {"sigmas": [a["sigma_max"], a["sigma_min"]], "evaluations": a["n"]}
    return {"solver": "dpm_fast", "eta": a["eta"], "S_noise": a["s_noise"], **ends}


ADAPTIVE_DEFAULTS: dict[str, Any] = {
    "sigma_min": None,
    "sigma_max": None,
    "order": 3,
    "rtol": 0.05,
    "atol": 0.0078,
    "h_init": 0.05,
    "pcoeff": 0.0,
    "icoeff": 1.0,
    "dcoeff": 0.0,
    "accept_safety": 0.81,
    "eta": 0.0,
    "s_noise": 1.0,
    "return_info": False,
}


def adaptive(a: dict[str, Any]) -> dict[str, Any]:
    """DPM-Solver-12 or -23 from sigma_max to sigma_min, with one error for the batch."""
    ends = {"sigmas": [a.pop("sigma_max"), a.pop("sigma_min")], "S_noise": a.pop("s_noise"), "norm": "batch"}
    a.pop("return_info")
    return {"solver": "dpm_adaptive", **ends, **a}


RULES: dict[str, Rule] = {
    "sample_euler": churned("euler"),
    "sample_heun": churned("heun"),
    "sample_dpm_2": churned("dpm_2"),
    "sample_euler_ancestral": with_eta("euler_ancestral"),
    "sample_dpm_2_ancestral": with_eta("dpm_2_ancestral"),
    "sample_lms": Rule(lambda a: {"solver": "lms", **a}, {"order": 4}),
    "sample_dpmpp_2m": Rule(lambda a: {"solver": "dpmpp_2m"}),
    "sample_dpmpp_2m_sde": with_eta("dpmpp_2m_sde", solver_type="midpoint"),
    "sample_dpmpp_3m_sde": with_eta("dpmpp_3m_sde"),
    "sample_dpmpp_2s_ancestral": with_eta("dpmpp_2s_ancestral"),
    "sample_dpmpp_sde": with_eta("dpmpp_sde", r=0.5),
    "sample_dpm_adaptive": Adaptive(adaptive, ADAPTIVE_DEFAULTS),
    "sample_dpm_fast": OwnSteps(fast, {"sigma_min": None, "sigma_max": None, "n": None, "eta": 0.0, "s_noise": 1.0}),
}


def rule_of(case: Case) -> Rule:
    """The rule of the case's function."""
    function = case.entry["source"]["function"]
    if function not in RULES:
        raise ValueError(f"{case.id}: no rule for the reference function {function!r}")
    return RULES[function]


def check(case: Case, route: str) -> None:
    """edm/kdiff."""
    rule_of(case).check(case, route)


def check_float32(case: Case, route: str) -> None:
    """The same cases with a float32 state."""
    rule_of(case).check_float32(case, route)
