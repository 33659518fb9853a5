"""Replays score_sde's predictor-corrector sampler and NCSN's annealed Langevin dynamics: ddpm/sde_pc, ncsnv1_ald and
ncsnv2_ald (SPEC.md, sections 4 and 5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastdiff
from fastdiff.continuous import SDEProcess
from fastdiff.ncsn import NCSN
from fastdiff.sde import get_sde
from fastdiff.solvers.predictor_corrector import NORMS, Tabled, predictor_steps

from .cases import Case, compare
from .replay import ROUTES, Calls, check_float32_state
from .score_family import LIMITS, LabelledScore
from .sde_model import SdeModel

PC_DEFAULTS = {
    "sde": None,
    "N": 1000,
    "beta_min": 0.1,
    "beta_max": 20,
    "sigma_min": 0.01,
    "sigma_max": 50,
    "predictor": None,
    "corrector": None,
    "snr": 0.16,
    "n_steps_each": 1,
    "probability_flow": False,
    "continuous": False,
    "denoise": True,
    "eps": 1e-3,
    "inverse_scaler": "identity",
}
SCALERS = {"identity": lambda x: x, "(x+1)/2": lambda x: (x + 1) / 2}


def sampler(model: Any, route: str, dtype: torch.dtype, **options: Any) -> Any:
    """The route's sampler."""
    return fastdiff.Sampler(model, dtype=dtype, **{"prediction": "score", **ROUTES[route], **options})


def pc_options(case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """The reference's arguments, and the arguments of `fastdiff.Sampler` that mean the same."""
    a = case.arguments(**PC_DEFAULTS)
    if a["inverse_scaler"] not in SCALERS:
        raise ValueError(f"{case.id}: no rule for the inverse scaler {a['inverse_scaler']!r}")
    sde = get_sde(a["sde"], N=a["N"], **{name: a[name] for name in LIMITS[a["sde"]]})
    return a, {
        "process": SDEProcess(sde, a["continuous"]),
        "prediction": "score" if a["sde"] == "ve" else "eps",
        "solver": "predictor_corrector",
        "timesteps": torch.linspace(1, a["eps"], a["N"], dtype=torch.float64).numpy(),
        "predictor": a["predictor"],
        "corrector": a["corrector"],
        "snr": a["snr"],
        "corrector_steps": a["n_steps_each"],
        "probability_flow": a["probability_flow"],
        "final_denoise": a["denoise"],
        "norm": "batch",
        "discretization": "score_sde",
    }


def draws(a: Mapping[str, Any]) -> Iterator[tuple[int, bool]]:
    """(step, whether ours draws it too) of every draw that the reference makes, in its order, the prior's apart.

    It draws for a predictor whose noise it then multiplies by 0 (probability flow) or leaves out (the last).
    """
    for step in range(a["N"]):
        if a["corrector"] != "none":
            yield from [(step, True)] * a["n_steps_each"]
        if a["predictor"] != "none":
            last = a["denoise"] and step == a["N"] - 1
            yield step, not a["probability_flow"] and not last


class Halves:
    """The states of a run between its half steps, put together from what the network was called on and answered."""

    def __init__(self, a: Mapping[str, Any], run: Any, calls: Calls, noise: Tensor, states: Tensor):
        self.a, self.sampler, self.states = a, run, states
        self.corrections = 0 if a["corrector"] == "none" else a["n_steps_each"]
        self.predicts = a["predictor"] != "none"
        per_step = self.corrections + self.predicts
        shape = (a["N"], per_step, *states.shape[1:])
        self.inputs, self.noise = torch.stack(calls.inputs).reshape(shape), noise[1:].reshape(shape)
        self.outputs = torch.stack(calls.outputs).reshape(shape)
        self.transitions = Tabled(run.levels)

    def score(self, step: int, call: int) -> Tensor:
        """Of an answer of the network."""
        level = self.sampler.levels[step]
        return self.outputs[step, call] / (1 if self.a["sde"] == "ve" else -level.sigma)

    def corrected(self, step: int) -> tuple[Tensor, Tensor]:
        """(x, x_mean) after the corrector."""
        x = self.inputs[step, self.corrections] if self.predicts else self.states[step + 1]
        return x, self.inputs[step, self.corrections - 1] + self._drift(step) if self.corrections else x

    def _drift(self, step: int) -> Tensor:
        s, z = self.score(step, self.corrections - 1), self.noise[step, self.corrections - 1]
        scale = self.transitions.chain()[step].a ** 2
        if self.a["corrector"] == "ald":
            return 2 * scale * (self.a["snr"] * self.transitions.stds[step]) ** 2 * s
        squares = torch.stack([value.flatten(1).double().square().sum(1) for value in (s, z)])
        e = NORMS["batch"](squares, torch.tensor([self.a["snr"], scale], dtype=torch.float64))[0]
        return (e.reshape(-1, *(1,) * (s.ndim - 1)) * s).to(s.dtype)

    def predicted(self, step: int) -> tuple[Tensor, Tensor]:
        """(x, x_mean) after the predictor; of the last step the run keeps only one of the two."""
        kept = self.states[step + 1]
        if not self.predicts:
            return kept, kept
        std = predictor_steps(self.transitions, self.a["predictor"], self.a["probability_flow"])[step].std
        noise = std * self.noise[step, -1]
        denoised = self.a["denoise"] and step == self.a["N"] - 1
        return (kept + noise, kept) if denoised else (kept, kept - noise)


def replay_pc(case: Case, route: str, dtype: torch.dtype | None = None, rounded: bool = False) -> dict[str, Any]:
    """All states and means between the half steps, the calls of the network, the times and the result."""
    a, options = pc_options(case)
    dtype = dtype or (torch.float32 if case.float32 else torch.float64)
    given = torch.as_tensor(case.arrays["noise"], dtype=torch.float32 if rounded else dtype)
    noise = given.to(dtype)
    used = [(step, noise[k + 1]) for k, (step, drawn) in enumerate(draws(a)) if drawn]
    calls = Calls(SdeModel(case.model), rounded)
    run = sampler(calls, route, dtype, **options)

    def replayed(draw: int, step: int) -> Tensor:
        if draw == 0:
            return noise[0]
        at, z = used[draw - 1]
        assert at == step, f"draw {draw} of step {step} is the reference's of step {at}"
        return z

    final, states = run(noise[0].shape, noise=replayed, return_trajectory=True)
    halves = Halves(a, run, calls, noise, states)
    names = {"corrector": halves.corrected, "predictor": halves.predicted}
    pairs = {name: [half(step) for step in range(a["N"])] for name, half in names.items()}
    got = {
        "x_init": states[0],
        "timesteps": run.levels.times[:-1],
        "samples": SCALERS[a["inverse_scaler"]](final),
        "nfe": np.array(a["N"] * (a["n_steps_each"] + 1)),  # as score_sde counts, whatever its corrector
        "model_x": torch.stack(calls.inputs),
        "model_label": torch.stack(calls.times),
        "model_out": torch.stack(calls.outputs),
    }
    for name, pair in pairs.items():
        got |= {f"{name}_x": torch.stack([x for x, _ in pair]), f"{name}_x_mean": torch.stack([x for _, x in pair])}
    return got


def check_pc(case: Case, route: str) -> None:
    """sde_pc."""
    label = f"{route}, reference in float32" if case.float32 else route
    compare(case, replay_pc(case, route), case.tolerance, inputs=("noise",), label=label)


def check_pc_float32(case: Case, route: str) -> None:
    """The same cases with a float32 state."""
    check_float32_state(case, route, replay_pc, "predictor_x")


def check_ald(case: Case, route: str) -> None:
    """ncsnv1_ald and ncsnv2_ald: the images that they keep, and the calls of the network.

    The first version keeps states of before an update, clamped; the second those of after it.
    """
    second = case.family == "ncsnv2_ald"
    a = case.arguments(
        n_steps_each=5 if second else 100,
        step_lr=6.2e-6 if second else 2e-5,
        **({"denoise": True, "final_only": False} if second else {}),
    )
    given = {name: torch.as_tensor(array, dtype=torch.float64) for name, array in case.arrays.items()}
    calls = Calls(LabelledScore(case.model, given["sigmas"]))
    run = sampler(
        calls,
        route,
        torch.float32 if case.float32 else torch.float64,
        process=NCSN(case.arrays["sigmas"]),
        solver="ald",
        step_size=a["step_lr"],
        steps_each=a["n_steps_each"],
        final_denoise=a.get("denoise", False),
    )

    def replayed(draw: int, step: int) -> Tensor:
        assert step == (draw - 1) // a["n_steps_each"]
        return given["noise"][draw - 1].to(run.dtype)

    final = run(given["x_init"].shape, x_init=given["x_init"], noise=replayed)
    inputs = torch.stack(calls.inputs)
    images = torch.cat([inputs[1:], final[None]])
    if not second:
        images = inputs.clamp(0, 1)
    elif a["final_only"]:
        images = final[None]
    got = {
        "images": images,
        "model_x": inputs,
        "model_label": torch.stack(calls.times),
        "model_out": torch.stack(calls.outputs),
    }
    assert len(inputs) == len(given["noise"]) + a.get("denoise", False)
    compare(case, got, case.tolerance, inputs=("noise", "x_init", "sigmas"), label=route)
