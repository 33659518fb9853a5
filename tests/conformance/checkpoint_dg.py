"""Replays discriminator guidance's networks (checkpoints/SPEC.md): features, logits, and the guidance they give."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.guidance import Boosting, DiscriminatorGuidance, Position, vp
from fastdiff.guidance.discriminator import LOG_RATIO, OUTSIDE
from fastdiff.importing.load import load
from fastdiff.models import DGDiscriminator
from fastdiff.process import Level
from fastdiff.symbols import Buffer, Chosen

from .cases import Case
from .checkpoint_cases import Recording

SCALARS = {"img_resolution", "time_min", "time_max"}


def check(case: Case) -> None:
    recording = Recording(case)
    files = [recording.path(role) for role in ("adm_classifier", "discriminator", "kwargs")]
    judge = discriminator(*files)
    unknown = set(recording.scalars) - SCALARS
    assert not unknown, f"{case.id}: no rule for {', '.join(sorted(unknown))}"
    recording.compare(guidance(recording, judge) if recording.scalars else networks(recording, judge))


@lru_cache(2)
def discriminator(extractor: Path, head: Path, config: Path) -> DGDiscriminator:
    judge = load(extractor, config=config, head=head)
    assert isinstance(judge, DGDiscriminator)
    return judge


def networks(recording: Recording, judge: DGDiscriminator) -> dict[str, Tensor]:
    """Both networks by themselves, and as one."""
    inputs = recording.inputs
    time, labels = inputs["t"], inputs.get("condition")
    if "feature" in inputs:
        return {"disc_logit": judge.head(inputs["feature"], time, labels)}
    feature = judge.extractor(inputs["x"], time, feature=True)
    logit = judge.head(feature, time, labels)
    assert torch.equal(judge(inputs["x"], time, labels), logit[:, 0])
    return {
        "feature": feature,
        "logits": judge.extractor(inputs["x"], time),
        "disc_logit": logit,
        "prob": judge.head(feature, time, labels, sigmoid=True),
    }


def guidance(recording: Recording, judge: DGDiscriminator) -> dict[str, Any]:
    """What the guidance term adds to the denoised images, with its sign turned: each sample has a level of its own."""
    inputs, scalars = recording.inputs, recording.scalars
    x, sigma = inputs["x"], inputs["sigma"].double().numpy()
    cosine = scalars["img_resolution"] == 64
    term = DiscriminatorGuidance(
        judge,
        1.0,
        time="cosine" if cosine else "vp",
        time_min=scalars["time_min"],
        time_max=scalars["time_max"],
        batch_window=True,
        boosting=Boosting(),  # for its memory of the log ratios; in odd steps the gradient is as it is
        dtype=torch.float32,
    )
    level = Level(1.0, Chosen(sigma, Buffer("rows")), Chosen(sigma, Buffer("rows")))  # type: ignore[arg-type]
    call = term.call(Position(1, 2, 0, level))
    got: dict[str, Any] = {"guidance": torch.zeros_like(x), "log_ratio": torch.full((len(x),), OUTSIDE)}
    if call is not None:
        memory = term.start(len(x), x.device, torch.float32)
        told = [numbers(value, len(x)) for value in call.told]
        m = numbers(call.c_in, len(x))
        y = (m.reshape(-1, 1, 1, 1) * x).to(torch.float32)
        gradient = term.gradient(y, told, call.how, memory, {"labels": inputs.get("class_labels")})
        moved = (torch.from_numpy(sigma).square() * m * numbers(call.weight, len(x))).reshape(-1, 1, 1, 1) * gradient
        got = {"guidance": -moved, "log_ratio": memory[LOG_RATIO]}
    scale = vp.vp_scale(sigma)
    times = {"tau": vp.tau_of_sigma(sigma), "mean_vp_tau": scale, "std_vp_tau": sigma * scale}
    times |= {"tau_cos": vp.cosine_time(sigma)} if cosine else {}
    return {**got, **{name: torch.from_numpy(np.asarray(value)) for name, value in times.items()}}


def numbers(value: Any, count: int) -> Tensor:
    """A number of each sample: float64 [B]."""
    values = value.values if isinstance(value, Chosen) else np.full(count, float(value))
    return torch.from_numpy(values)
