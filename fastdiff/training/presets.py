"""Published training runs as data: the changes to `TrainConfig`, the FID that was published, and where.

    fastdiff train --preset adm-ip-cifar10 data=cifar10.npz

A preset is the published recipe as far as `TrainConfig` can say it. The network is this package's own U-Net, in the
published width, depth and attention; `note` says in what it differs, so the published FID is a goal and no promise.
FIDs and gammas are those of `fastdiff.presets`, which also say how the samples were drawn.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from .. import presets as samplers
from ..presets import Preset

__all__ = ["TrainPreset", "expected_fid", "get", "preset", "table", "train_presets"]


@dataclass(frozen=True)
class TrainPreset:
    """One published run.

    Attributes:
        name: for `fastdiff train --preset`.
        config: changes to `TrainConfig`, nested plain values.
        sample_shape: (C, H, W) of the data it is for.
        sampling: how the published samples were drawn, and their FID, as a preset of `fastdiff.presets`.
        source: paper or repository of the recipe.
        note: what the published run had that this one has not, and what the source leaves open.
    """

    name: str
    config: dict[str, Any]
    sample_shape: tuple[int, int, int]
    sampling: Preset
    source: str
    note: str

    @property
    def fid(self) -> float | None:
        """Published, or None where the source gives none."""
        return self.sampling.fid


_FILES = {  # where `data=` is not given: these names in the working folder
    "cifar10": "cifar10-32x32.zip",
    "imagenet32": "imagenet-32x32.zip",
    "lsun-tower64": "lsun-tower-64x64.zip",
    "celeba64": "celeba-64x64.zip",
    "ffhq128": "ffhq-128x128.zip",
    "imagenet64": "imagenet-64x64.zip",
    "ffhq64": "ffhq-64x64.zip",
    "afhqv2-64": "afhqv2-64x64.zip",
}
_RARELY = {"log_every": 100, "evaluate_every": 10_000, "checkpoint_every": 10_000, "sample_every": 10_000}
_OPEN = "the number of iterations is not in the source: at a constant rate it only says when to stop"


def _network(width: int, mults: list[int], blocks: int, attention: list[int], heads: int, dropout: float) -> Any:
    """As published networks have it: no pixel-unshuffle, an embedding of four times the width."""
    return {
        "width": width, "mults": mults, "blocks": blocks, "attention": attention, "heads": heads,
        "embedding": 4 * width, "dropout": dropout, "patch": 1,
    }  # fmt: skip


# --- ADM and ADM-IP --------------------------------------------------------------------------------------------------

_ADM_NETWORKS = {  # data: network, global batch, iterations (None: the source does not say), learning rate
    "cifar10": (_network(128, [1, 2, 2, 2], 3, [1, 2], 8, 0.3), 128, 460_000, 1e-4),
    "imagenet32": (_network(128, [1, 2, 2, 2], 3, [1, 2], 8, 0.3), 512, None, 1e-4),
    "lsun-tower64": (_network(192, [1, 2, 3, 4], 3, [1, 2, 3], 6, 0.1), 256, None, 1e-4),
    "celeba64": (_network(192, [1, 2, 3, 4], 3, [1, 2, 3], 6, 0.1), 256, None, 1e-4),
    "ffhq128": (_network(256, [1, 1, 2, 3, 4], 3, [2, 3, 4], 8, 0.1), 128, None, 1e-4),
    "imagenet64": (_network(192, [1, 2, 3, 4], 3, [1, 2, 3], 6, 0.1), 2048, 540_000, 3e-4),
}
_ADM_NOTE = (
    "the network is not guided-diffusion's: groups of 8 in place of 32 norm groups, one number of heads at every level "
    "in place of a head width, pooling in place of residual blocks between the levels, one block a level fewer on the "
    "way up, no attention in the middle"
)


def _adm_config(data: str) -> dict[str, Any]:
    network, batch, iterations, rate = _ADM_NETWORKS[data]
    return {
        "data": _FILES[data],
        "conditional": data == "imagenet64",
        "label_dropout": 0.0,
        "flip": True,
        "model": network,
        "objective": {
            "name": "ddpm", "prediction": "eps", "variance": "learned_range", "loss": "rescaled_mse",
            "betas": "cosine", "T": 1000, "levels": "loss_second_moment",
        },
        "iterations": iterations or 500_000,
        "batch": batch,
        "optimizer": "adamw",
        "learning_rate": rate,
        "betas": [0.9, 0.999],
        "schedule": "constant",
        "warmup": 0,
        "grad_clip": 0.0,
        "ema": [0.9999],
        "ema_warmup": False,
        "amp": "float16",
        **_RARELY,
    }  # fmt: skip


def _adm(data: str, perturbed: bool) -> TrainPreset:
    config, iterations = _adm_config(data), _ADM_NETWORKS[data][2]
    notes = [_ADM_NOTE]
    if data == "imagenet64":
        sampling = samplers.adm(data)
        source = "Dhariwal & Nichol 2021 (ADM)"
    else:
        sampling = samplers.adm_ip(data)
        if not perturbed:
            sampling = replace(sampling, name=f"adm-{data}", fid=sampling.baseline_fid, baseline_fid=None, training={})
        source = "Ning et al. 2023 (DDPM-IP), repository"
        notes.append("the repository has read images with and without mirroring")
        if sampling.note:
            notes.append(sampling.note)
    if perturbed:
        config["objective"]["gamma"] = [sampling.training["input_perturbation"]]
    if iterations is None:
        notes.append(_OPEN)
    size = int(config["data"].removesuffix(".zip").rpartition("x")[2])
    name = f"adm{'-ip' if perturbed else ''}-{data}"
    return TrainPreset(name, config, (3, size, size), sampling, source, "; ".join(notes))


# --- DDIM and DDIM-IP ------------------------------------------------------------------------------------------------


def _ddim(perturbed: bool) -> TrainPreset:
    sampling = samplers.ddim_ip() if perturbed else samplers.ddim()
    config: dict[str, Any] = {
        "data": _FILES["cifar10"],
        "conditional": False,
        "flip": True,
        "model": _network(128, [1, 2, 2, 2], 2, [1], 1, 0.1),
        "objective": {"name": "ddpm", "prediction": "eps", "betas": "linear", "T": 1000, "levels": "antithetic"},
        "iterations": 800_000,
        "batch": 128,
        "optimizer": "adam",
        "learning_rate": 2e-4,
        "betas": [0.9, 0.999],
        "schedule": "constant",
        "warmup": 5000,
        "grad_clip": 1.0,
        "ema": [0.9999],
        "ema_warmup": False,
        "amp": "none",
        **_RARELY,
    }
    if perturbed:
        config["objective"]["gamma"] = [sampling.training["input_perturbation"]]
    note = (
        "the network is not DDPM's: the time modulates the normalisation, pooling in place of strided convolutions, "
        "one block a level fewer on the way up; the published loss is the sum over elements, so that its gradient is "
        "always clipped; warm-up and iterations are those of Ho et al. 2020; FIDs of other steps: fastdiff.presets"
    )
    name = f"ddim{'-ip' if perturbed else ''}-cifar10"
    source = "Ho et al. 2020 (DDPM), Song et al. 2021 (DDIM)" + (", Ning et al. 2023 (DDPM-IP)" if perturbed else "")
    return TrainPreset(name, config, (3, 32, 32), sampling, source, note)


# --- EDM -------------------------------------------------------------------------------------------------------------

_EDM_RUNS = {  # data: network, batch, millions of images, learning rate, half-life of the average and augmentation
    "cifar10": (_network(128, [2, 2, 2], 4, [1], 1, 0.13), 512, 200, 1e-3, 0.5, 0.12),
    "ffhq64": (_network(128, [1, 2, 2, 2], 4, [2], 1, 0.05), 256, 200, 2e-4, 0.5, 0.15),
    "afhqv2-64": (_network(128, [1, 2, 2, 2], 4, [2], 1, 0.25), 256, 200, 2e-4, 0.5, 0.15),
    "imagenet64": (_network(192, [1, 2, 3, 4], 3, [1, 2, 3], 6, 0.1), 4096, 2500, 1e-4, 50.0, 0.0),
}
_EDM_WARMUP = 10  # millions of images
_DDPMPP_NOTE = (
    "the network is not DDPM++: the noise level modulates the normalisation, pooling in place of residual blocks "
    "between the levels, one block a level fewer on the way up, skips that are not scaled"
)
_AVERAGE_NOTE = (
    "the published average has a half-life of at most 5 % of the images so far, here the decay is at most (1 + i) / "
    "(10 + i)"
)


def _edm(data: str, conditional: bool = False) -> TrainPreset:
    network, batch, images, rate, half_life, augment = _EDM_RUNS[data]
    sampling = samplers.edm(f"{data}-cond" if conditional and data == "cifar10" else data)
    config = {
        "data": _FILES[data],
        "conditional": conditional,
        "label_dropout": 0.0,
        "flip": False,
        "augment": augment,
        "model": network,
        "objective": {"name": "edm", "P_mean": -1.2, "P_std": 1.2, "sigma_data": 0.5},
        "iterations": images * 10**6 // batch,
        "batch": batch,
        "optimizer": "adam",
        "learning_rate": rate,
        "betas": [0.9, 0.999],
        "schedule": "constant",
        "warmup": _EDM_WARMUP * 10**6 // batch,
        "grad_clip": 0.0,
        "ema": [0.5 ** (batch / (half_life * 1e6))],
        "ema_warmup": True,
        "amp": "float16" if data == "imagenet64" else "none",
        **_RARELY,
    }
    notes = [_ADM_NOTE if data == "imagenet64" else _DDPMPP_NOTE, _AVERAGE_NOTE]
    if sampling.note:
        notes.append(f"FID: {sampling.note}")
    size = 32 if data == "cifar10" else 64
    source = "Karras et al. 2022 (EDM), table 7"
    return TrainPreset(f"edm-{sampling.data}", config, (3, size, size), sampling, source, "; ".join(notes))


# --- all of them -----------------------------------------------------------------------------------------------------


def _all() -> Iterator[TrainPreset]:
    for data in _ADM_NETWORKS:
        yield _adm(data, perturbed=False)
        if data != "imagenet64":
            yield _adm(data, perturbed=True)
    for perturbed in (False, True):
        yield _ddim(perturbed)
    yield _edm("cifar10")
    yield _edm("cifar10", conditional=True)
    for data in ("ffhq64", "afhqv2-64"):
        yield _edm(data)
    yield _edm("imagenet64", conditional=True)


def train_presets() -> list[TrainPreset]:
    """Every published run, those with input perturbation beside their baselines."""
    return [deepcopy(run) for run in _all()]


def get(name: str) -> TrainPreset:
    """The published run of that name.

    Raises:
        ValueError: there is none; the message names some like it.
    """
    known = {run.name: run for run in train_presets()}
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, cutoff=0.0))
        raise ValueError(f"preset must be a published run, such as {near}, got {name!r}")
    return known[name]


def preset(name: str) -> dict[str, Any]:
    """Changes to `TrainConfig` of the published run of that name, for `load_train_config(preset=...)`.

    Raises:
        ValueError: there is none.
    """
    return get(name).config


def expected_fid(name: str) -> float | None:
    """The published FID of the run of that name, or None where the source gives none.

    Raises:
        ValueError: there is no such run.
    """
    return get(name).fid


def table() -> str:
    """All of them as text, one a line: what `fastdiff train --list-presets` prints."""
    rows = [("name", "data", "gamma", "batch", "iterations", "FID", "sampled by", "source")]
    for run in train_presets():
        config, sampling = run.config, run.sampling
        gamma = config["objective"].get("gamma")
        rows.append((
            run.name, config["data"], f"{gamma[0]:g}" if gamma else "", str(config["batch"]),
            str(config["iterations"]), "" if run.fid is None else f"{run.fid:g}",
            f"{sampling.settings['solver']}, {sampling.nfe} NFE", run.source,
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
