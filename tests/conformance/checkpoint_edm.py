"""Replays EDM's preconditioned networks (checkpoints/SPEC.md): their files, D, F, c_noise and iDDPM's rounding."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff.importing.load import load

from .cases import Case
from .checkpoint_cases import Recording

ROLES = ("checkpoint", "state_dict")
CALL = {"x", "sigma", "class_labels", "augment_labels"}
RAW = {"network_float64": torch.float64, "network_float16": torch.float16}


def check(case: Case) -> None:
    """Every case, from every file that the fixture has: the pickle, which says all, and the bare state dict."""
    recording = Recording(case)
    files = [role for role in ROLES if role in recording.fixture["files"]]
    assert files, f"{case.id}: no file to load"
    for role in files:
        config = None if role == "checkpoint" else recording.path("kwargs")
        recording.compare(computed(recording, network(recording.path(role), config)))


@lru_cache(4)
def network(path: Path, config: Path | None) -> Any:
    """A fixture's network, in float32 whatever is stored."""
    return load(path, config=config)


def computed(recording: Recording, net: Any) -> dict[str, Tensor]:
    """What the recording's call returns."""
    inputs = recording.inputs
    unknown = set(inputs) - CALL - {"x_in", "c_noise"}
    assert not unknown, f"{recording.case.id}: no rule for the inputs {', '.join(sorted(unknown))}"
    attributes(recording, net)
    keywords = {"augment_labels": inputs["augment_labels"]} if "augment_labels" in inputs else {}
    labels = inputs.get("class_labels")
    if "x_in" in inputs:
        raw = copy.deepcopy(net.model).to(RAW[recording.name])
        return {"F": raw(inputs["x_in"], inputs["c_noise"], labels, **keywords)}
    if "x" not in inputs:
        sigma, rounded = inputs["sigma"], {"rounded": net.round_sigma(inputs["sigma"])}
        if "index" not in recording.outputs:  # of networks without a table
            return rounded
        return {**rounded, "index": net.round_sigma(sigma, return_index=True), "u": net.u}
    x, s = inputs["x"].float(), inputs["sigma"].float()
    c_noise = net.c_noise(s.reshape(-1))
    c_in = net.coefficients(s.reshape(-1, 1, 1, 1))[2]
    return {
        "D": net(inputs["x"], inputs["sigma"], labels, **keywords),
        "F": net.model(c_in * x, c_noise, labels if net.label_dim else None, **keywords),
        "c_noise": c_noise,
    }


def attributes(recording: Recording, net: Any) -> None:
    """The network is the recorded one in name and numbers; VP's smallest level is recorded with float32's rounding."""
    fixture = recording.fixture
    assert (type(net).__name__, type(net.model).__name__) == (fixture["class"], fixture["network_class"])
    assert sum(p.numel() for p in net.parameters()) == fixture["num_parameters"]
    for name, value in fixture["attributes"].items():
        wanted = float("inf") if value == "inf" else value
        if name not in ("training", "img_resolution", "img_channels"):
            got = getattr(net, name)
            assert abs(got - wanted) <= 0.03 * wanted if isinstance(wanted, float) and wanted < 1e9 else got == wanted
