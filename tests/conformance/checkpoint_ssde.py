"""Checkpoints of score_sde: each of their two sets of weights, and the score that the SDE makes of the output."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff import load
from fastdiff.continuous import SDEProcess
from fastdiff.reading import reading_of
from fastdiff.sde import score_fn

from .cases import Case
from .checkpoint_cases import Recording


def check(case: Case) -> None:
    recording = Recording(case)
    which = {f"{weights}_weights": weights for weights in ("model", "ema")}[recording.name]
    network = load(recording.path("checkpoint"), config=recording.path("config"), weights=which)
    process = reading_of(network).process
    assert isinstance(process, SDEProcess)
    told: list[Tensor] = []

    def told_of(x: Tensor, time: Tensor) -> Tensor:
        told.append(time)
        return network(x, time)

    x, t = recording.inputs["x"], recording.inputs["t"]
    with torch.no_grad():
        score = score_fn(told_of, process.sde, process.continuous)(x, t)
        output = network(x, told[0])
    std = process.sde.moments(t, process.continuous)[1].to(x.dtype)
    recording.compare({"score": score, "model_out": output, "time_cond": told[0], "std": std})
