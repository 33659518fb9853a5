"""Networks of diffusers' folders, and steps of the scheduler beside them (checkpoints/SPEC.md, family "diffusers")."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastdiff
from fastdiff.importing.load import load
from fastdiff.interop.diffusers import sampler_options

from .cases import Case
from .checkpoint_cases import Recording

ROUTES: list[dict[str, Any]] = [{"compiled": False}, {"backend": "reference"}]
KNOWN = {"x", "timestep", "class_labels"}


def check(case: Case) -> None:
    """A case of the family: a call of the network, or steps of the scheduler."""
    pytest.importorskip("diffusers")
    recording = Recording(case)
    network = load(recording.path("model_index").parent)
    if recording.name == "scheduler":
        check_scheduler(recording, network.metadata["scheduler"])
        return
    inputs = recording.inputs
    if unknown := sorted((set(inputs) | set(recording.scalars)) - KNOWN):
        raise TypeError(f"{case.id}: no rule for the input(s) {', '.join(unknown)}")
    time = inputs["timestep"] if "timestep" in inputs else torch.tensor(recording.scalars["timestep"])
    recording.compare({"sample": network(inputs["x"], time, inputs.get("class_labels"))})
    floating = network(inputs["x"], time.float(), inputs.get("class_labels"))  # as a sampler tells it
    recording.compare({"sample": floating})


def check_scheduler(recording: Recording, config: dict[str, Any]) -> None:
    """Single steps of a run, from the recorded state with the recorded output of the network and noise."""
    inputs, outputs = recording.inputs, recording.outputs
    steps = len(outputs["timesteps"])
    times = sorted(int(name.removeprefix("eps_t")) for name in inputs if name.startswith("eps_t"))
    assert set(inputs) == {"x"} | {f"{what}_t{t}" for what in ("eps", "noise") for t in times}
    for route in ROUTES:
        got: dict[str, Tensor] = {}
        for t in times:
            done, denoised = one_step(config, steps, inputs["x"], t, inputs[f"eps_t{t}"], inputs[f"noise_t{t}"], route)
            got |= {f"prev_sample_t{t}": done, f"pred_x0_t{t}": denoised}
        process = sampler_options(config, steps)["process"]
        levels = process.levels(steps)
        got["timesteps"] = torch.tensor([int(level.time) for level in levels[:-1]])
        got["alphas_cumprod"] = torch.from_numpy(process.alphas_cumprod)
        got["betas"] = torch.from_numpy(process.betas)
        recording.compare(got)


def one_step(
    config: dict[str, Any], steps: int, x: Tensor, time: int, output: Tensor, noise: Tensor, route: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """(the state after the step at `time`, the predicted x_0) of a network that answers `output`."""
    seen: list[Tensor] = []

    def answer(y: Tensor, t: Tensor) -> Tensor:
        return output.to(y.dtype)

    sampler = fastdiff.Sampler(answer, dtype=torch.float64, **route, **sampler_options(config, steps))
    start = [level.time for level in sampler.levels].index(time)
    _, states = sampler(
        x.shape,
        x_init=x.double(),
        start=start,
        noise=lambda draw, step: noise.double(),
        callback=lambda info: seen.append(info.denoised.clone()),
        return_trajectory=True,
    )
    return states[1], seen[0]
