"""The recorded checkpoints: their files, what is known of them, and a call of any network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from fastdiff.models.network import FACTS
from tests.conformance.cases import ROOT

__all__ = ["Fixture", "fixtures", "probe"]

FOLDER = ROOT / "checkpoints"


class Fixture(NamedTuple):
    """A file that must load.

    Attributes:
        path: the file, or a folder.
        known: the JSON file that says what the file does not; None if there is none.
        whole: whether the file says all by itself.
        entry: of the index.
    """

    path: Path
    known: Path | None
    whole: bool
    entry: dict[str, Any]


def fixtures(which: Callable[[Fixture], Any] = lambda fixture: True) -> list[Any]:
    """One pytest parameter for each file of the recordings that must load, of those of which a function is true."""
    index = FOLDER / "index.json"
    if not index.is_file():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"no {index}"))]
    found = []
    for entry in json.loads(index.read_text())["fixtures"]:
        files = {role: FOLDER / file["path"] for role, file in entry["files"].items()}
        known = files.get("kwargs") or files.get("config")
        if "model_index" in files:
            found.append(Fixture(files["model_index"].parent, None, True, entry))
            continue
        verdicts = {role: variant["verdict"] for role, variant in entry.get("variants", {}).items()}
        for role, path in files.items():
            if role == "expected" or path.suffix == ".json" or verdicts.get(role, "accept") != "accept":
                continue
            found.append(Fixture(path, known, entry["files"][role]["format"] == "edm-pickle", entry))
    return [pytest.param(each, id=f"{each.path.parent.name}/{each.path.name}") for each in found if which(each)]


def probe(network: Any) -> torch.Tensor:
    """The outputs of a network for two fixed inputs."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, *network.sample_shape), generator=generator)
    time = torch.tensor([0.4, 0.9])
    told = network.label_dim and FACTS[type(network).__name__].kind != "classifier"
    labels = [torch.arange(2) % network.label_dim] if told else []
    options = {"low_res": x[:, :, ::2, ::2]} if type(network).__name__ == "SuperResModel" else {}
    with torch.no_grad():
        return network(x, time, *labels, **options)
