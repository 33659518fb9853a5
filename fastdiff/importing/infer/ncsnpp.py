"""What the tensors of a score_sde network show of its configuration.

Its modules are one flat list; those without tensors (filters) leave a gap in the numbers. The list is read in the order
in which `NCSNpp` builds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .inferred import Inferred

__all__ = ["infer"]

PREFIX = "all_modules."
MOST = 10_000  # modules
ATTENTION = 16  # pixels: where every published network has attention first
PUBLISHED = "as in every published network"
ALWAYS = {"skip_rescale": True, "nonlinearity": "swish", "fir_kernel": [1, 3, 3, 1], "dropout": 0.1}

Module = Mapping[str, Sequence[int]]  # shapes, by the names inside


def infer(shapes: Mapping[str, Sequence[int]], given: Mapping[str, Any]) -> Inferred | None:
    """The configuration of an `NCSNpp`; None if the names are not of one.

    Args:
        shapes: of every tensor by name; given: arguments that are known.

    Raises:
        ValueError: the list of modules is not one that the network builds.
    """
    if given.get("architecture", "NCSNpp") != "NCSNpp":
        return None
    modules: dict[int, dict[str, Sequence[int]]] = {}
    for name, shape in shapes.items():
        place, _, inner = name.removeprefix(PREFIX).partition(".")
        if name.startswith(PREFIX) and place.isdecimal() and len(place) < 9:
            modules.setdefault(int(place), {})[inner] = shape
    if not modules:
        return None
    if max(modules) >= MOST:
        raise ValueError(f"the list of modules must have at most {MOST}, got one numbered {max(modules)}")
    walk = _Walk([modules.get(place, {}) for place in range(max(modules) + 1)])
    walk.whole()
    if len(shapes.get("sigmas", ())) == 1:
        walk.found["num_scales"], walk.why["num_scales"] = int(shapes["sigmas"][0]), "sigmas"
    return _settled(walk, given)


def _settled(walk: _Walk, given: Mapping[str, Any]) -> Inferred:
    """With what is given, and what no tensor shows."""
    found, attended = walk.found, walk.attended
    assumed: dict[str, tuple[Any, str]] = {name: (value, PUBLISHED) for name, value in ALWAYS.items()}
    fourier = found["embedding_type"] == "fourier"
    kind = "networks with Fourier features" if fourier else "networks told steps of a chain"
    for name, value in {"scale_by_sigma": fourier, "centered": not fourier}.items():
        assumed[name] = value, f"as in the published {kind}"
    assumed["sigma_min"], assumed["sigma_max"] = (0.01, "score_sde's default"), (50.0, "score_sde's default")
    if "resamp_with_conv" not in found:
        assumed["resamp_with_conv"] = True, "of no matter for blocks of type biggan"
    if "fir" not in found:
        pyramid = found["progressive"] != "residual" and {found["progressive_input"], found["progressive"]} != {"none"}
        assumed["fir"] = (
            pyramid,
            f"as in the published networks {'with' if pyramid else 'without'} a pyramid of filters",
        )
    if "progressive_combine" not in found:
        assumed["progressive_combine"] = "sum", "of no matter without input_skip"
    if any(attended):
        size = ATTENTION << attended.index(True)
        assumed["image_size"] = size, f"attention begins at {ATTENTION} pixels, {PUBLISHED}"
    settled = {name: value for name, (value, _) in assumed.items()} | found
    settled |= {name: value for name, value in given.items() if name != "architecture"}
    missing = [] if "image_size" in settled else ["image_size"]
    if not missing and isinstance(settled["image_size"], int):
        at = [settled["image_size"] >> level for level, attends in enumerate(attended) if attends]
        settled.setdefault("attn_resolutions", at)
    elif not any(attended):
        settled.setdefault("attn_resolutions", [])
    reasons = {name: why for name, (_, why) in assumed.items() if name not in found and name not in given}
    walk.why["attn_resolutions"] = "the levels with attention"
    return Inferred("NCSNpp", settled, walk.why, reasons, missing)


class _Walk:
    """Goes through the list of modules once.

    Attributes:
        found: arguments of the network; why: the tensor that shows each.
        attended: whether each level has attention.
    """

    def __init__(self, modules: list[Module]) -> None:
        self.modules, self.place = modules, 0
        self.kinds = [_kind(module) for module in modules]
        self.found: dict[str, Any] = {}
        self.why: dict[str, str] = {}
        self.attended: list[bool] = []

    def whole(self) -> None:
        fourier = self._kind() == "features"
        self._note("embedding_type", "fourier" if fourier else "positional")
        self.place += fourier
        conditional = self._kind() == "linear"
        self._note("conditional", conditional)
        self.place += 2 * conditional
        nf, channels = self._shape("weight", "conv")[:2]
        if nf < 1:
            raise ValueError(f"module {self.place} of the list must have channels, got none")
        self._note("nf", nf)
        self._note("num_channels", channels)
        self.place += 1
        self.biggan = any("Conv_2.weight" in module for module in self.modules)
        self._note("resblock_type", "biggan" if self.biggan else "ddpm")
        self._down(nf)
        self._up(channels)

    def _down(self, nf: int) -> None:
        """To the end of the middle blocks."""
        start, mults = self.place, []
        firsts = [place for place in range(start, len(self.kinds)) if self._resamples(place)]
        until = firsts[0] if firsts else len(self.kinds)
        blocks = sum(kind == "block" for kind in self.kinds[start:until])
        self.blocks = blocks if firsts else (blocks - 3) // 2
        if self.blocks < 1:
            raise ValueError("the list of modules has no residual blocks before the resolution changes")
        self._note("num_res_blocks", self.blocks)
        while True:
            for _ in range(self.blocks):
                width = self._shape("Conv_0.weight", "block")[0]
                self.place += 1
                attends = self._kind() == "attention"
                self.place += attends
            if width % nf:
                raise ValueError(f"the channels of every level must be a multiple of nf = {nf}, got {width}")
            mults.append(width // nf)
            self.attended.append(attends)
            if not self._resamples(self.place):
                break
            self._resampled()
        self.found["ch_mult"], self.why["ch_mult"] = mults, "the blocks of every level"
        self.found.setdefault("progressive_input", "none")
        self.why.setdefault("progressive_input", "the modules between the levels")
        for kind in ("block", "attention", "block"):
            self._expect(kind)
            self.place += 1

    def _resampled(self) -> None:
        """One change of the resolution on the way down, with the input's pyramid."""
        if not self.biggan:
            self._note("resamp_with_conv", self._kind() != "gap")
            self._fir(self._kind())
        self.place += 1
        if self._kind() in ("fir", "strided"):
            self._note("progressive_input", "residual")
            self._fir(self._kind())
            self.place += 1
        elif self._kind() == "gap" and self._kind(1) == "combine":
            self._note("progressive_input", "input_skip")
            self.place += 1
            channels = self._shape("Conv_0.weight", "combine")[0]
            self.place += 1
            joined = self._shape("Conv_0.weight", "block")[1] > channels
            self._note("progressive_combine", "cat" if joined else "sum")

    def _up(self, channels: int) -> None:
        """The lowest level of the way up, which shows the output's pyramid."""
        for _ in range(self.blocks + 1):
            self._expect("block")
            self.place += 1
        self.place += self._kind() == "attention"
        progressive = "none"
        if self._kind() == "norm" and self.place + 2 < len(self.kinds):
            self.place += 1
            progressive = "output_skip" if self._shape("weight", "conv")[0] == channels else "residual"
        self._note("progressive", progressive)

    def _fir(self, kind: str) -> None:
        if kind != "gap":
            self._note("fir", kind == "fir")

    def _resamples(self, place: int) -> bool:
        """Whether the module changes the resolution, of those that stand between levels."""
        kind = self.kinds[place] if place < len(self.kinds) else "end"
        if not self.biggan:
            return kind in ("gap", "fir", "strided")
        past = self.modules[place].get("Conv_2.weight", ()) if kind == "block" else ()
        return len(past) == 4 and past[0] == past[1]

    def _kind(self, ahead: int = 0) -> str:
        place = self.place + ahead
        return self.kinds[place] if place < len(self.kinds) else "end"

    def _expect(self, kind: str) -> None:
        if self._kind() != kind:
            raise ValueError(
                f"module {self.place} of the list must be of kind {kind!r}, as score_sde's networks have it there, got "
                f"{self._kind()!r}"
            )

    def _shape(self, name: str, kind: str) -> Sequence[int]:
        self._expect(kind)
        return self.modules[self.place][name]

    def _note(self, name: str, value: Any) -> None:
        self.found[name], self.why[name] = value, f"{PREFIX}{self.place}"


def _kind(module: Module) -> str:
    """What a module is, by its tensors; "gap" if it has none."""
    if not module:
        return "gap"
    first = len(module.get("Conv_0.weight", ()))
    if "Dense_0.weight" in module and first == 4:
        return "block"
    if "NIN_3.W" in module:
        return "attention"
    if "Conv2d_0.weight" in module:
        return "fir"
    if first == 4:
        return "combine" if module["Conv_0.weight"][-1] == 1 else "strided"
    if len(module.get("W", ())) == 1:
        return "features"
    return {1: "norm", 2: "linear", 4: "conv"}.get(len(module.get("weight", ())), "unknown")
