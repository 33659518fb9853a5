"""Replays guided-diffusion's networks (checkpoints/SPEC.md): outputs, gradients, and the chain's p(x_(t-1) | x_t)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.importing.load import load
from fastdiff.models.adm import EncoderUNetModel
from fastdiff.schedules import space_timesteps

from .cases import Case
from .checkpoint_cases import Recording
from .ddpm_family import PosteriorRows
from .tables import chain

DIFFUSION = {
    "steps": 1000,
    "learn_sigma": False,
    "sigma_small": False,
    "noise_schedule": "linear",
    "predict_xstart": False,
    "rescale_timesteps": False,
    "timestep_respacing": "",
}
"""Arguments of guided-diffusion's create_gaussian_diffusion, without those of losses, and its defaults."""


def check(case: Case) -> None:
    """The family guided-diffusion."""
    recording = Recording(case)
    network: Any = load(recording.path("checkpoint"), config=str(recording.path("kwargs")))
    if recording.name.startswith("p_mean_variance"):
        for backend in (None, "reference"):
            recording.compare(mean_variance(network, recording, backend))
        return
    given = dict(recording.inputs)
    x, time, y = given.pop("x"), given.pop("timesteps"), given.pop("y", None)
    if isinstance(network, EncoderUNetModel):
        assert not given, f"{case.id}: no rule for the input(s) {', '.join(given)}"
        recording.compare(classified(network, x, time, y))
    else:
        recording.compare({"out": network(x, time, y, **given)})


def classified(network: EncoderUNetModel, x: Tensor, time: Tensor, y: Any) -> dict[str, Tensor]:
    """Logits, and the gradient that guidance needs."""
    x = x.clone().requires_grad_()
    logits = network(x, time)
    log_probs = logits.log_softmax(dim=1)
    selected = log_probs.gather(1, y[:, None])[:, 0]
    (gradient,) = torch.autograd.grad(selected.sum(), x)
    return {"logits": logits, "log_probs": log_probs, "selected": selected, "grad": gradient}


def mean_variance(network: Any, recording: Recording, backend: str | None) -> dict[str, Tensor]:
    """SpacedDiffusion.p_mean_variance, clipped and not: on tensors (None), or by the kernel of a backend."""
    scalars = dict(recording.scalars)
    options, recorded_map = scalars.pop("create_gaussian_diffusion"), scalars.pop("timestep_map")
    unknown = [*scalars, *(options.keys() - DIFFUSION.keys())]
    assert not unknown, f"{recording.case.id}: no rule for {', '.join(unknown)}"
    o = DIFFUSION | options
    fixed = "fixed_small" if o["sigma_small"] else "fixed_large"
    a = {
        "beta_schedule": o["noise_schedule"],
        "T": o["steps"],
        "respacing": o["timestep_respacing"],
        "mean_type": "x0" if o["predict_xstart"] else "eps",
        "var_type": "learned_range" if o["learn_sigma"] else fixed,
    }
    process, steps = chain(a["beta_schedule"], a["T"], a["respacing"], o["rescale_timesteps"])
    kept = [int(step) for step in space_timesteps(process.T, "" if steps is None else steps)]
    assert kept == (list(range(process.T)) if recorded_map == "identity" else recorded_map)

    x, t = recording.inputs["x"], recording.inputs["t"]
    levels = process.levels(steps)
    told = torch.tensor([levels[levels.steps - 1 - i].time for i in t.tolist()], dtype=torch.float32)
    output, *head = network(x, told, recording.inputs.get("y")).split(x.shape[1], dim=1)
    got: dict[str, Tensor] = {}
    for suffix, clip in (("", False), ("_clipped", True)):
        rows = PosteriorRows(a | {"clip_denoised": clip}, x.dtype)
        arguments = (x, output.contiguous(), head[0].contiguous() if head else None, t)
        results = rows.readable(*arguments) if backend is None else rows.compiled(*arguments, backend)
        got |= {name + suffix: value for name, value in results.items()}
    return got
