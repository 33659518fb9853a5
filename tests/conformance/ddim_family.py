"""Replays the DDIM repository's samplers and loss (ddpm/SPEC.md, section 4): ddim_repo."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import fastdiff
from fastdiff.schedules import ddim_subsequence
from fastdiff.training.chain import Chain
from fastdiff.training.losses import ddpm_loss

from .analytic import DiscreteModel
from .cases import Case, compare
from .ddpm_family import PREDICTIONS
from .replay import Calls, run

SOLVERS = {
    "functions.denoising.generalized_steps": lambda eta: {"solver": "ddim", "eta": eta},
    "functions.denoising.ddpm_steps": lambda eta: {
        "solver": "ddpm",
        "variance": "fixed_large",
        "clip_denoised": True,
    },
}


def process_of(betas: str) -> fastdiff.VP:
    """linear_1000 or cosine_1000: as the tables of the analytic models are called."""
    name, T = betas.rsplit("_", 1)
    makers = {"linear": fastdiff.VP.linear, "cosine": fastdiff.VP.cosine}
    if name not in makers:
        raise ValueError(f"no rule for the betas {betas!r}")
    return makers[name](int(T))


def replay(case: Case, route: str) -> dict[str, Any]:
    """Everything the reference records of a run.

    A quadratic subsequence of many steps holds times twice; a step between two equal levels changes nothing, so
    fastdiff does not take it, and what it records there is what it recorded before.
    """
    a = case.arguments(betas=None, timesteps=None, skip_type="uniform", eta=0.0)
    if case.entry["function"] not in SOLVERS:
        raise ValueError(f"no rule for the function {case.entry['function']!r}")
    process = process_of(a["betas"])
    seq = ddim_subsequence(process.T, a["timesteps"], a["skip_type"])
    visited = seq[::-1]
    first = [i for i, t in enumerate(visited) if i == 0 or t != visited[i - 1]]  # of equal times
    number = np.cumsum([i in first for i in range(len(visited))]) - 1
    before = np.array([i + 1 < len(visited) and visited[i + 1] == visited[i] for i in range(len(visited))])
    data = case.arrays
    done = run(
        DiscreteModel(case.model),
        route,
        data["x_init"],
        noise=None if "noise" not in data else data["noise"][[i for i, again in enumerate(before) if not again]],
        process=process,
        prediction=PREDICTIONS[case.model["target"]],
        timesteps=[visited[i] for i in first],
        **SOLVERS[case.entry["function"]](a["eta"]),
    )
    states = done.states.numpy()
    return {
        "seq": np.array(seq),
        "x_steps": np.stack([states[k if again else k + 1] for k, again in zip(number, before)]),
        "pred_xstart": done.denoised.numpy()[number],
        "model_x": torch.stack(done.calls.inputs).numpy()[number],
        "model_t": torch.stack(done.calls.times).numpy()[number],
        "model_out": torch.stack(done.calls.outputs).numpy()[number],
    }


def check_loss(case: Case) -> None:
    """noise_estimation_loss: squared errors summed over a sample's elements, their mean over the batch."""
    case.arguments()
    data = {name: torch.from_numpy(case.arrays[name]) for name in ("x0", "t", "noise")}
    calls = Calls(DiscreteModel(case.model))
    steps = Chain(process_of(case.model["abar_table"]), dtype=torch.float64)
    mse = ddpm_loss(calls, data["x0"], data["t"], data["noise"], steps).loss
    per_sample = mse * data["x0"][0].numel()
    recorded = {"model_x": calls.inputs, "model_t": calls.times, "model_out": calls.outputs}
    got = {"loss": per_sample.mean(), "loss_per_sample": per_sample}
    got |= {name: torch.stack(values) for name, values in recorded.items()}
    compare(case, got, case.tolerance, inputs=tuple(data))


def check(case: Case, route: str) -> None:
    """generalized_steps, ddpm_steps and the loss."""
    if case.entry["function"] == "functions.losses.noise_estimation_loss":
        check_loss(case)
    else:
        compare(case, replay(case, route), case.tolerance, inputs=("x_init", "noise"), label=route)
