"""Single layers of the EDM networks, with recorded parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fastdiff.models.edm import layers

from .cases import Case
from .checkpoint_cases import Recording

CLASSES: dict[str, Callable[..., nn.Module]] = {
    "Conv2d": layers.Conv2d,
    "FourierEmbedding": layers.FourierEmbedding,
    "GroupNorm": layers.GroupNorm,
    "Linear": nn.Linear,
    "PositionalEmbedding": layers.PositionalEmbedding,
    "UNetBlock": layers.UNetBlock,
}


def check(case: Case) -> None:
    """The layer of the recorded arguments takes exactly the recorded tensors, and computes what was recorded."""
    recording = Recording(case)
    unit = recording.fixture["units"][recording.name]
    layer = CLASSES[unit["class"]](**unit["kwargs"])
    layer.load_state_dict(recording.arrays(f"{recording.name}/param/"))
    first, *others = recording.inputs.values()
    layer.eval().to(first.dtype if first.is_floating_point() else torch.float32)  # recorded layers follow their input
    with torch.inference_mode():
        recording.compare({"y": layer(first, *others)})
