"""Karras et al. 2022: SongUNet and DhariwalUNet, alone or inside a preconditioner (names under "model.")."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .inferred import Inferred

__all__ = ["infer"]

_NETWORKS = ("SongUNet", "DhariwalUNet")
_PRECONDITIONERS = ("EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond")
_FIRST = re.compile(r"((?:model\.)?)enc\.([1-9]\d{0,5})x\2_conv\.weight")
_FILTERS = {2: [1, 1], 4: [1, 3, 3, 1]}  # in use, by their length


def infer(shapes: Mapping[str, Sequence[int]], given: Mapping[str, Any]) -> Inferred | None:
    """The network, None if the names are not of one of these.

    Raises:
        ValueError: the names are, but a tensor that settles an argument is missing or of an impossible shape.
    """
    first = next((match for name in shapes if (match := _FIRST.fullmatch(name))), None)
    known = _PRECONDITIONERS if first and first[1] else _NETWORKS
    if first is None or given.get("architecture", known[0]) not in known:
        return None
    tensors = _Tensors({name.removeprefix(first[1]): shape for name, shape in shapes.items()}, first[1])
    found = Inferred("SongUNet" if "out_conv.weight" not in tensors.shapes else "DhariwalUNet", {})
    _read(tensors, int(first[2]), found)
    if first[1]:
        _wrap(shapes, given, found)
    given = {name: value for name, value in given.items() if name != "architecture"}
    found.config.update(given)
    for name in given:
        found.found.pop(name, None)
        found.assumed.pop(name, None)
    found.missing = [name for name in found.missing if name not in given]
    return found


class _Tensors:
    """Shapes by name, where one that is asked for must be there."""

    def __init__(self, shapes: Mapping[str, Sequence[int]], prefix: str) -> None:
        self.shapes, self.prefix = shapes, prefix

    def size(self, name: str, axis: int, ndim: int) -> int:
        shape = self.shapes.get(name)
        if shape is None or len(shape) != ndim or min(shape) < 1:
            got = "none" if shape is None else f"shape {list(shape)}"
            raise ValueError(f"tensor {self.prefix + name!r} must have {ndim} axes of at least 1, got {got}")
        return int(shape[axis])

    def has(self, pattern: str) -> bool:
        return any(re.fullmatch(pattern, name) for name in self.shapes)


def _read(tensors: _Tensors, resolution: int, found: Inferred) -> None:
    """Every argument of the network."""

    def note(name: str, value: Any, why: str) -> None:
        found.config[name], found.found[name] = value, why

    def assume(name: str, value: Any, why: str) -> None:
        found.config[name], found.assumed[name] = value, why

    song = found.architecture == "SongUNet"
    stem, last = f"enc.{resolution}x{resolution}_conv.weight", f"dec.{resolution}x{resolution}_aux_conv.weight"
    last = last if song else "out_conv.weight"
    note("img_resolution", resolution, stem)
    note("in_channels", tensors.size(stem, 1, 4), stem)
    note("out_channels", tensors.size(last, 0, 4), last)
    for name, layer in (("label_dim", "map_label.weight"), ("augment_dim", "map_augment.weight")):
        there = layer in tensors.shapes
        note(name, tensors.size(layer, 1, 2) if there else 0, layer if there else f"no {layer}")

    told, width = "map_layer0.weight", tensors.size(stem, 0, 4) if song else tensors.size("map_layer0.weight", 1, 2)
    note("model_channels", width, stem if song else told)
    note("channel_mult_emb", _times(tensors.size(told, 0, 2), width, told), told)
    if song:
        note("channel_mult_noise", _times(tensors.size(told, 1, 2), width, told), told)
        fourier = "map_noise.freqs" in tensors.shapes
        note("embedding_type", "fourier" if fourier else "positional", f"{'' if fourier else 'no '}map_noise.freqs")

    levels = [resolution]
    while levels[-1] % 2 == 0 and tensors.has(rf"dec\.{levels[-1] // 2}x\d+_block0\..*"):
        levels.append(levels[-1] // 2)
    widths = [f"dec.{size}x{size}_block0.conv1.weight" for size in levels]  # there also where num_blocks is 0
    note(
        "channel_mult", [_times(tensors.size(name, 0, 4), width, name) for name in widths], "dec.*_block0.conv1.weight"
    )
    blocks = 0
    while f"enc.{resolution}x{resolution}_block{blocks}.conv0.weight" in tensors.shapes:
        blocks += 1
    note("num_blocks", blocks, f"enc.{resolution}x{resolution}_block*")
    attention = [size for size in levels if f"dec.{size}x{size}_block{blocks}.qkv.weight" in tensors.shapes]
    note("attn_resolutions", attention, f"dec.*_block{blocks}.qkv.weight")
    assume("dropout", 0.1, "of use in training only")
    if song:
        _read_ways(tensors, levels, note, assume, found)


def _read_ways(tensors: _Tensors, levels: list[int], note: Any, assume: Any, found: Inferred) -> None:
    """SongUNet's encoder, decoder and filter, which show where there is more than one level."""
    if len(levels) == 1:
        for name, value in (("encoder_type", "standard"), ("decoder_type", "standard"), ("resample_filter", [1, 1])):
            assume(name, value, "one level, where it has no effect")
        return
    residual, skip = tensors.has(r"enc\..*_aux_residual\.weight"), tensors.has(r"enc\..*_aux_skip\.weight")
    note("encoder_type", "residual" if residual else "skip" if skip else "standard", "enc.*_aux_*")
    pyramid = f"dec.{levels[-1]}x{levels[-1]}_aux_conv.weight"
    note("decoder_type", "skip" if pyramid in tensors.shapes else "standard", "dec.*_aux_*")
    buffer = f"enc.{levels[1]}x{levels[1]}_down.conv0.resample_filter"
    taps = tensors.size(buffer, 2, 4)
    if taps in _FILTERS:
        assume("resample_filter", _FILTERS[taps], f"the filter in use of {taps} taps; the tensors are compared with it")
    else:
        found.missing.append("resample_filter")


def _wrap(shapes: Mapping[str, Sequence[int]], given: Mapping[str, Any], found: Inferred) -> None:
    """The preconditioner around the network."""
    network, rounded = found.architecture, "u" in shapes
    found.architecture = str(given.get("architecture", "iDDPMPrecond" if rounded else "EDMPrecond"))
    if "architecture" not in given:
        (found.found if rounded else found.assumed)["architecture"] = (
            "u" if rounded else "the preconditioner of the paper"
        )
    del found.config["out_channels"], found.found["out_channels"]
    found.config["img_channels"] = found.config.pop("in_channels")
    found.found["img_channels"] = found.found.pop("in_channels")
    found.config["model_type"] = network
    found.found["model_type"] = "model.out_conv.weight" if network == "DhariwalUNet" else "no model.out_conv.weight"
    if found.architecture == "EDMPrecond":
        found.config["sigma_data"], found.assumed["sigma_data"] = 0.5, "that of the published networks"
    if found.architecture == "iDDPMPrecond" and rounded and len(shapes["u"]) == 1:
        found.config["M"], found.found["M"] = int(shapes["u"][0]) - 1, "u"


def _times(size: int, unit: int, name: str) -> int:
    if size % unit:
        raise ValueError(f"tensor {name!r}: {size} must be a multiple of model_channels = {unit}")
    return size // unit
