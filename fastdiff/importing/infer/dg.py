"""Discriminator guidance's configurations, read off the names and shapes of its state dicts.

Its encoders have the names of guided-diffusion's classifiers: only one with classes shows that it is not one of those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import adm
from .inferred import Inferred

__all__ = ["infer"]

Shapes = Mapping[str, Sequence[int]]
CLASSES = "label_emb.weight"
PARTS = ("extractor", "head")
HEAD_CHANNELS = 64
PUBLISHED = "as of the published discriminators"


def infer(shapes: Shapes, given: Mapping[str, Any]) -> Inferred | None:
    """The configuration of a `DGEncoderUNetModel`, or of a `DGDiscriminator`, whose names begin with its parts'.

    Args:
        shapes: of the tensors, by name.
        given: arguments that are known and stand over what is found; perhaps "architecture". Those of a discriminator's
            parts are mappings, "extractor" and "head".

    Returns:
        None if the names are not of these networks; or if they may be of guided-diffusion's, unless "architecture" is
        given.

    Raises:
        ValueError: a tensor that would show an argument is missing, or no configuration fits the others.
    """
    architecture = given.get("architecture")
    if architecture in (None, "DGDiscriminator") and all(f"{part}.{adm.STEM}" in shapes for part in PARTS):
        return _pair(shapes, given)
    if architecture == "DGEncoderUNetModel" or (
        architecture is None and CLASSES in shapes and not any(name.startswith("output_blocks.") for name in shapes)
    ):
        return _encoder(shapes, given)
    return None


def _encoder(shapes: Shapes, given: Mapping[str, Any]) -> Inferred | None:
    known = {name: value for name, value in given.items() if name not in ("architecture", "condition", "num_class")}
    assumed: dict[str, Any] = {"use_new_attention_order": False}  # guided-diffusion's create_classifier never sets it
    attended = [shape[0] // 3 for name, shape in shapes.items() if name.endswith(("qkv.weight", "qkv_proj.weight"))]
    if "num_heads" not in known and all(width % HEAD_CHANNELS == 0 for width in attended):
        assumed["num_head_channels"] = HEAD_CHANNELS
    assumed = {name: value for name, value in assumed.items() if name not in known}
    others = {name: shape for name, shape in shapes.items() if name != CLASSES}
    result = adm.infer(others, {**assumed, **known, "architecture": "EncoderUNetModel"})
    if result is None:
        return None
    result.architecture = "DGEncoderUNetModel"
    result.assumed |= dict.fromkeys(assumed, PUBLISHED)
    for name, value in (("condition", CLASSES in shapes), ("num_class", shapes.get(CLASSES, (None,))[0])):
        if name in given:
            result.config[name] = given[name]
        elif value is not None:
            result.config[name], result.found[name] = value, CLASSES if value else f"no {CLASSES}"
    return result


def _pair(shapes: Shapes, given: Mapping[str, Any]) -> Inferred | None:
    whole = Inferred("DGDiscriminator", {})
    for part in PARTS:
        own = {name[len(part) + 1 :]: shape for name, shape in shapes.items() if name.startswith(f"{part}.")}
        known = given.get(part) or {}
        if not isinstance(known, Mapping):
            raise ValueError(f"{part} must be a mapping of names to values, got {type(known).__name__}")
        found = _encoder(own, known)
        if found is None:
            return None
        whole.config[part] = found.config
        whole.found |= {f"{part}.{name}": f"{part}.{why}" for name, why in found.found.items()}
        whole.assumed |= {f"{part}.{name}": why for name, why in found.assumed.items()}
        whole.missing += [f"{part}.{name}" for name in found.missing]
    return whole
