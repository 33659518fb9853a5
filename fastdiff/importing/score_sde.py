"""score_sde's checkpoints (Song et al. 2021) and configurations.

A checkpoint is a dictionary of the optimizer's state, of the network ("model", names with DataParallel's prefix), and
of the average of its weights ("ema"), which is a list without names: of the parameters that are trained, in the order
of the network's modules, which is that of the state dict.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from torch import Tensor

__all__ = ["described", "is_score_sde", "shown", "unpacked"]

PREFIX = "module."
LEVELS = "sigmas"
FREQUENCIES = "all_modules.0.W"
SECTIONS = ("model", "data", "training")

_DATA = ("image_size", "num_channels", "centered")
_MODEL = (
    "nf", "ch_mult", "num_res_blocks", "attn_resolutions", "conditional", "embedding_type", "fir", "fir_kernel",
    "skip_rescale", "scale_by_sigma", "resblock_type", "progressive", "progressive_input", "progressive_combine",
    "resamp_with_conv", "nonlinearity", "sigma_min", "sigma_max", "num_scales",
)  # fmt: skip
_STARTS = ("dropout", "fourier_scale", "init_scale")  # no matter for what a trained network computes
_LOWERED = (
    "embedding_type",
    "resblock_type",
    "progressive",
    "progressive_input",
    "progressive_combine",
    "nonlinearity",
)
_SDES = {"vesde": "ve", "vpsde": "vp", "subvpsde": "subvp"}


class Shaped(Protocol):
    """A tensor, read or not."""

    @property
    def shape(self) -> Any: ...


T = TypeVar("T", bound=Shaped)


def is_score_sde(content: Mapping[Any, Any]) -> bool:
    """Whether a dictionary is a checkpoint of score_sde: a network and a list of averaged weights."""
    model, ema = content.get("model"), content.get("ema")
    return isinstance(model, Mapping) and isinstance(ema, Mapping) and isinstance(ema.get("shadow_params"), list)


def unpacked(content: Mapping[Any, Any], weights: str = "ema") -> tuple[dict[str, Any], list[str]]:
    """The tensors of one set of weights, and what was left behind.

    Args:
        content: the file's dictionary; tensors need not have been read, they are handed on as they are.
        weights: "ema": the averages, and from the network what has none (levels, Fourier frequencies); "model".

    Returns:
        (tensors by name, without DataParallel's prefix; notes for the user).

    Raises:
        ValueError: an entry is no tensor; names are in another order than modules are; the averages are not as many as
            the parameters, or one has another shape.
    """
    if weights not in ("ema", "model"):
        raise ValueError(f"weights must be 'ema' or 'model', got {weights!r}")
    tensors: dict[str, Any] = {}
    for name, tensor in content["model"].items():
        if not isinstance(name, str) or not hasattr(tensor, "shape"):
            raise ValueError(f"the entry {name!r} of its 'model' must be a tensor")
        short = name.removeprefix(PREFIX)
        if short in tensors:
            raise ValueError(f"its 'model' has {short!r} twice, with and without {PREFIX!r}")
        tensors[short] = tensor
    unused = [str(name) for name in content if name not in ("model", "ema")]
    notes = [f"not used: {', '.join(unused)}"] if unused else []
    if weights == "model":
        return tensors, [*notes, "weights: model; the file holds their average (ema) too"]
    return _laid_over(tensors, content["ema"]["shadow_params"]), [*notes, "weights: ema"]


def _laid_over(tensors: dict[str, T], averages: list[T]) -> dict[str, T]:
    """The averages in place of the parameters that are trained."""
    frozen = {LEVELS} | ({FREQUENCIES} if len(getattr(tensors.get(FREQUENCIES), "shape", ())) == 1 else set())
    trained = [name for name in tensors if name not in frozen]
    modules = [name.split(".")[1] if name.startswith("all_modules.") else "" for name in trained]
    if not all(map(str.isdecimal, modules)) or modules != sorted(modules, key=int):
        raise ValueError("the names of its 'model' are not in the order of the modules, which its 'ema' depends on")
    if len(averages) != len(trained):
        raise ValueError(f"its 'ema' must hold {len(trained)} tensors, one for each parameter, got {len(averages)}")
    for name, average in zip(trained, averages, strict=True):
        if not hasattr(average, "shape") or tuple(average.shape) != tuple(tensors[name].shape):
            got = list(average.shape) if hasattr(average, "shape") else type(average).__name__
            raise ValueError(f"the average of {name!r} must have shape {list(tensors[name].shape)}, got {got}")
    return {**tensors, **dict(zip(trained, averages, strict=True))}


def shown(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a checkpoint's tensors say beside their shapes: (arguments of `NCSNpp`, how its output is read).

    The reading is an assumption: with Fourier features that of the published VE networks, with VE's limits from the
    levels; otherwise that of the published VP networks. Both are empty where there are no levels.
    """
    levels = tensors.get(LEVELS)
    if levels is None or levels.ndim != 1 or len(levels) < 2:
        return {}, {}
    largest, smallest = (float(f"{float(levels[i]):.12g}") for i in (0, -1))
    arguments = {"sigma_min": smallest, "sigma_max": largest, "num_scales": len(levels)}
    fourier = FREQUENCIES in tensors and tensors[FREQUENCIES].ndim == 1
    limits = {"beta_min": 0.1, "beta_max": 20.0, **arguments}
    return arguments, _reading("ve" if fourier else "vp", limits, centered=not fourier, continuous=True)


def described(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A configuration of score_sde: (arguments of `NCSNpp`, how its output is read).

    Args:
        config: its sections "model", "data" and "training"; others are not looked at.

    Returns:
        The reading has "prediction" ("score" for VE, "eps" for VP and sub-VP), "process" (see `continuous.process_of`)
        and "range", the smallest and the largest value of the images that the network knows.

    Raises:
        ValueError: a section or an entry is missing, or the model or the SDE is not one that is known here.
    """
    sections: dict[str, Mapping[str, Any]] = {}
    for name in SECTIONS:
        if not isinstance(config.get(name), Mapping):
            raise ValueError(f"config: score_sde's section {name!r} must be a mapping, got {config.get(name)!r}")
        sections[name] = config[name]
    model, data, training = (sections[name] for name in SECTIONS)
    if str(model.get("name", "ncsnpp")).lower() != "ncsnpp":
        raise ValueError(f"config: of score_sde's models only 'ncsnpp' is known, got {model['name']!r}")
    needed = {"data": _DATA, "model": _MODEL, "training": ("sde", "continuous")}
    if lacking := [f"{s}.{name}" for s, names in needed.items() for name in names if name not in sections[s]]:
        raise ValueError(f"config: missing {', '.join(lacking)}")
    arguments = {name: data[name] for name in _DATA} | {name: model[name] for name in _MODEL}
    arguments |= {name: model[name] for name in _STARTS if name in model}
    arguments |= {name: str(model[name]).lower() for name in _LOWERED}
    sde, continuous = str(training["sde"]).lower(), bool(training["continuous"])
    if sde not in _SDES:
        raise ValueError(f"config: training.sde must be one of {', '.join(_SDES)}, got {training['sde']!r}")
    if arguments["embedding_type"] == "fourier" and not continuous:
        raise ValueError(
            "config: training.continuous must be true with Fourier features, which know no steps of a chain"
        )
    if _SDES[sde] != "ve" and (short := [f"model.{n}" for n in ("beta_min", "beta_max") if n not in model]):
        raise ValueError(f"config: missing {', '.join(short)}")
    return arguments, _reading(_SDES[sde], model, bool(data["centered"]), continuous or sde == "subvpsde")


def _reading(sde: str, model: Mapping[str, Any], centered: bool, continuous: bool) -> dict[str, Any]:
    limits = ("sigma_min", "sigma_max") if sde == "ve" else ("beta_min", "beta_max")
    process = {"name": "sde", "sde": sde, **{name: float(model[name]) for name in limits}, "N": model["num_scales"]}
    return {
        "prediction": "score" if sde == "ve" else "eps",
        "process": process | {"continuous": continuous},
        "range": [-1.0 if centered else 0.0, 1.0],
    }
