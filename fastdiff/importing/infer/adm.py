"""guided-diffusion's configurations, read off the names and shapes of its state dicts.

Names do not tell the levels apart from the blocks of a level: every way to divide the blocks into levels is tried, and
the one is taken whose network has these tensors. No tensor shows the number of heads, the order of q, k and v (which
matters with several heads), nor the size of the images, unless a classifier's attention pooling has their positions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...models.network import build
from .inferred import Inferred

__all__ = ["infer"]

Shapes = Mapping[str, Sequence[int]]
CLASSES = ("UNetModel", "SuperResModel", "EncoderUNetModel")
STEM, EMBEDDING, POSITIONS = "input_blocks.0.0.weight", "time_embed.0.weight", "out.2.positional_embedding"
ANY_HEADS = {"num_head_channels": 32}  # divides every width; no shape depends on it


def infer(shapes: Shapes, given: Mapping[str, Any]) -> Inferred | None:
    """The configuration of a `UNetModel`, `SuperResModel` or `EncoderUNetModel`.

    Args:
        shapes: of the tensors, by name.
        given: arguments that are known and stand over what is found; perhaps "architecture".

    Returns:
        None if the names are not of these networks.

    Raises:
        ValueError: a tensor that would show an argument is missing, or no division into levels fits the others.
    """
    if STEM not in shapes or EMBEDDING not in shapes or given.get("architecture", CLASSES[0]) not in CLASSES:
        return None
    known = {name: value for name, value in given.items() if name != "architecture"}
    result = Inferred("", {})
    _single_tensors(shapes, result)
    result.architecture = given.get("architecture") or _architecture(known, result)
    if result.architecture == "SuperResModel":
        result.config["in_channels"] //= 2
    _levels(shapes, known, result)
    _unseen(shapes, known, result)
    for name in known:
        result.found.pop(name, None)
        result.assumed.pop(name, None)
    result.missing = [name for name in result.missing if name not in known]
    result.config.update(known)
    return result


def _single_tensors(shapes: Shapes, result: Inferred) -> None:
    """What one tensor each says."""

    def found(name: str, value: Any, tensor: str) -> None:
        result.config[name], result.found[name] = value, tensor

    found("model_channels", _shape(shapes, EMBEDDING, 2)[1], EMBEDDING)
    found("in_channels", _shape(shapes, STEM, 4)[1], STEM)
    scaled, width = "middle_block.0.emb_layers.1.weight", "middle_block.0.out_layers.0.weight"
    found("use_scale_shift_norm", _shape(shapes, scaled, 2)[0] == 2 * _shape(shapes, width, 1)[0], scaled)
    if _count(shapes, "output_blocks"):
        found("out_channels", _shape(shapes, "out.2.weight", 4)[0], "out.2.weight")
        if "label_emb.weight" in shapes:
            found("num_classes", _shape(shapes, "label_emb.weight", 2)[0], "label_emb.weight")
        return
    flat = len(shapes.get("out.3.weight", ())) == 2
    pools = {"out.2.c_proj.weight": "attention", "out.3.weight": "spatial_v2" if flat else "adaptive"}
    for tensor, pool in (pools | {"out.2.weight": "spatial"}).items():
        if tensor in shapes:
            found("pool", pool, tensor)
            found("out_channels", _shape(shapes, tensor)[0], tensor)
            return
    raise ValueError("the tensors show neither a way up (output_blocks) nor how the classifier pools (out)")


def _architecture(known: Mapping[str, Any], result: Inferred) -> str:
    """Which class; one whose first convolution sees two images is super-resolution's."""
    if "pool" in result.config:
        return "EncoderUNetModel"
    seen, made = result.config["in_channels"], result.config["out_channels"]
    if "in_channels" in known:
        return "SuperResModel" if seen == 2 * known["in_channels"] else "UNetModel"
    if seen == 2 * made:
        result.found["architecture"] = f"{STEM}: {seen} channels in, {made} out"
        return "SuperResModel"
    if seen == made == 6:
        result.assumed["architecture"] = "6 channels in and out: two images in, eps and its variance out"
        return "SuperResModel"
    return "UNetModel"


def _levels(shapes: Shapes, known: Mapping[str, Any], result: Inferred) -> None:
    """Adds what says the levels: of all divisions, that of the network whose tensors these are most nearly."""
    candidates = list(_divisions(shapes, result.config["model_channels"]))
    agreeing = [each for each in candidates if all(_same(known[name], each[name]) for name in each.keys() & known)]
    best: list[dict[str, Any]] = []
    most = -math.inf
    for candidate in agreeing or candidates:
        size = {"image_size": 2 ** (len(candidate["channel_mult"]) - 1)}
        try:
            tried = build(result.architecture, {**result.config, **size, **ANY_HEADS, **candidate}).state_dict()
        except ValueError:
            continue
        held = sum(tuple(shapes.get(name, ())) == tuple(tensor.shape) for name, tensor in tried.items())
        alike = 2 * held - len(tried)  # those it has, less those it lacks
        if alike >= most:
            best = [*best, candidate] if alike == most else [candidate]
            most = alike
    if not best:
        raise ValueError("no number of levels fits the blocks of these tensors; give the configuration")
    for name in dict.fromkeys(name for candidate in best for name in candidate):
        if all(name in other and other[name] == best[0][name] for other in best):
            result.config[name], result.found[name] = best[0][name], "the blocks that there are"
        else:
            result.missing.append(name)


def _divisions(shapes: Shapes, model_channels: int) -> Iterator[dict[str, Any]]:
    """For every number of levels: what the first block of each says."""
    up = _count(shapes, "output_blocks")
    count = up or _count(shapes, "input_blocks")
    for blocks in range(1, count + 1):
        if count % blocks:
            continue
        levels = range(count // blocks)
        if blocks > 1:
            firsts = [f"input_blocks.{level * blocks + 1}" for level in levels]
        elif up:
            firsts = [f"output_blocks.{levels[-1] - level}" for level in levels]
        else:
            firsts = []
        norms = [f"{first}.0.out_layers.0.weight" for first in firsts] or [STEM] * len(levels)
        if not all(name in shapes and len(shapes[name]) for name in norms):
            continue
        found: dict[str, Any] = {
            "num_res_blocks": blocks - 1,
            "channel_mult": [_multiplier(shapes[name][0], model_channels) for name in norms],
            "attention_resolutions": [2**i for i, first in enumerate(firsts) if f"{first}.1.qkv.weight" in shapes],
        }
        if len(levels) > 1:
            found["resblock_updown"] = f"input_blocks.{blocks}.0.in_layers.0.weight" in shapes
            if not found["resblock_updown"]:
                found["conv_resample"] = f"input_blocks.{blocks}.0.op.weight" in shapes
        if POSITIONS in shapes:
            side = math.isqrt(max(shapes[POSITIONS][-1] - 1, 0))
            found["image_size"] = side * 2 ** levels[-1]
        yield found


def _unseen(shapes: Shapes, known: Mapping[str, Any], result: Inferred) -> None:
    """What no tensor shows: assumed where it does not matter, otherwise missing."""

    def assume(name: str, value: Any, why: str) -> None:
        result.config[name], result.assumed[name] = value, why

    assume("dropout", 0.0, "it has no effect on samples")
    if "image_size" not in result.config:
        result.missing.append("image_size")
    count, width = known.get("num_heads"), known.get("num_head_channels", -1)
    pooled = result.config.get("pool") == "attention"
    if width == -1 and (count is None or pooled):
        result.missing.append("num_head_channels" if pooled else "num_head_channels or num_heads")
    above = known.get("num_heads_upsample", -1)
    if width == -1 and above == -1 and "pool" not in result.config:
        assume("num_heads_upsample", -1, "as many on the way up as on the way down")
    attended = [shape[0] // 3 for name, shape in shapes.items() if name.endswith(".qkv.weight") and len(shape)]
    if all(channels == width for channels in attended) or (width == -1 and count == 1 and above in (-1, 1)):
        assume("use_new_attention_order", False, "with one head both orders are the same")
    else:
        result.missing.append("use_new_attention_order")


def _count(shapes: Shapes, part: str) -> int:
    """Number of entries of "input_blocks" or "output_blocks".

    Raises:
        ValueError: more than there can be.
    """
    pattern = re.compile(rf"{part}\.(\d{{1,9}})\.")
    last = max((int(found[1]) for name in shapes if (found := pattern.match(name))), default=-1)
    least = 8 if part == "output_blocks" else 2  # tensors of an entry: a residual block's, a convolution's
    if least * last > len(shapes):
        raise ValueError(f"{part}.{last}: there are only {len(shapes)} tensors")
    return last + 1


def _multiplier(width: int, model_channels: int) -> float:
    """The number whose product with `model_channels` has this whole part."""
    if model_channels < 1 or width % model_channels == 0:
        return width // max(model_channels, 1)
    quotient = width / model_channels
    return quotient if int(quotient * model_channels) == width else math.nextafter(quotient, math.inf)


def _same(given: Any, found: Any) -> bool:
    if isinstance(found, list):
        return isinstance(given, (list, tuple)) and list(given) == found
    return bool(given == found)


def _shape(shapes: Shapes, name: str, axes: int | None = None) -> Sequence[int]:
    shape = shapes.get(name)
    if shape is None or not shape or axes not in (None, len(shape)):
        got = "is missing" if shape is None else f"has shape {list(shape)}"
        raise ValueError(f"tensor {name!r}, which shows the configuration, {got}")
    return shape
