"""Cascades: a sampler of small images, then samplers that make larger ones of them, conditioned on the smaller.

Ho et al. 2022, "Cascaded Diffusion Models for High Fidelity Image Generation", with non-truncated conditioning
augmentation: a stage sees the smaller image noised to a level s of its own process, z_s = alpha x + sigma eps, and may
be told s, as in its training. The noise hides what the stage before got wrong, at the price of detail.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from . import ops
from .arguments import clip_range, conditioning, label_tensor, resolve_shape
from .errors import check_choice, check_count, check_finite
from .process import CLEAN, Level
from .random import seed_tensor
from .sampler import Sampler

__all__ = ["RESIZES", "Cascade", "Stage", "stage_seeds"]

RESIZES = ("bilinear", "bicubic", "area", "nearest")
DRAW = (1 << 30) - 1
"""Of the noise contract: the noise on the smaller image, with the stage's seeds; no sampler draws as often."""


@dataclass(frozen=True, eq=False)
class Stage:
    """One step up of a cascade.

    Args:
        sampler: of a network that takes the smaller image as a keyword argument, say guided-diffusion's SuperResModel.
        size: height and width of what it samples; default: those of the sampler's shape.
        noise: level of the noise on the smaller image, sigma / alpha, at least 0; rounded to a level that the sampler's
            process has (`level`).
        resize: how the smaller image is brought to `size`, once a run: "bilinear" as guided-diffusion does, "bicubic",
            "area" or "nearest", by `torch.nn.functional.interpolate` without anti-aliasing; None: the network does it.
        condition: the keyword that the network takes the smaller image by, [B, C, size, size].
        told: the keyword that it takes the level of the noise by, [B], in the terms in which it is told the time; None
            for networks that are not told.
        clip: the range that the smaller image is clipped to before it is noised: True is [-1, 1], or (lo, hi).
        batch: samples in one run at most; None: all.

    Raises:
        TypeError, ValueError: a bad argument, which the message names.
    """

    sampler: Sampler
    _: KW_ONLY
    size: int | None = None
    noise: float = 0.0
    resize: str | None = "bilinear"
    condition: str = "low_res"
    told: str | None = None
    clip: bool | Sequence[float] = False
    batch: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, Sampler):
            raise TypeError(f"sampler must be a fastdiff.Sampler, got {type(self.sampler).__name__}")
        shape = self.sampler.shape
        if self.size is None and shape is None:
            raise ValueError("size must be given where the sampler does not know the shape of a sample, got None")
        if self.size is not None and check_count("size", self.size) and shape is not None:
            if list(shape[1:]) != [self.size] * 2:
                raise ValueError(f"size must be left out or that of the sampler's shape {list(shape)}, got {self.size}")
        if shape is not None and len(shape) != 3:
            raise ValueError(f"sampler must draw images [C, H, W], got one of samples {list(shape)}")
        if self.resize is not None:
            check_choice("resize", self.resize, RESIZES)
        for name, keyword in (("condition", self.condition), ("told", self.told)):
            if not (isinstance(keyword, str) and keyword.isidentifier()) and (name, keyword) != ("told", None):
                raise ValueError(f"{name} must be the name of a keyword argument, got {keyword!r}")
        if self.told == self.condition:
            raise ValueError(f"told must be another keyword than condition={self.condition!r}, got {self.told!r}")
        for given in (self.condition, self.told):
            if given is not None and not _takes(self.sampler.model, given):
                raise ValueError(f"sampler must be of a network that takes {given}=, and its network does not")
        try:
            clip_range(self.clip)
        except ValueError as error:
            raise ValueError(str(error).replace("clip_denoised", "clip")) from None
        if self.batch is not None:
            check_count("batch", self.batch)
        if check_finite("noise", self.noise) < 0:
            raise ValueError(f"noise must be at least 0, got {self.noise!r}")
        if self.told is not None and not np.isfinite(self._time):
            raise ValueError(
                f"noise must be positive for a network that is told of it (told={self.told!r}) by prediction "
                f"{self.sampler.prediction.name!r}, got {self.noise!r}"
            )

    @property
    def level(self) -> Level:
        """The level of the noise on the smaller image, in the sampler's process."""
        return self.sampler.process.level_at_sigma(float(self.noise)) if self.noise > 0 else CLEAN

    @property
    def _time(self) -> float:
        with np.errstate(divide="ignore"):
            return float(self.sampler.prediction.time(self.level))

    def conditioning(self, images: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        """What the network is conditioned on: the images, clipped, noised and resized, and the level of the noise.

        Args:
            images: [B, C, h, w] of the stage before, on the sampler's device.
            seeds: int64 [B] of this stage (`stage_seeds`).

        Returns:
            By keyword.
        """
        sampler, level = self.sampler, self.level
        x = images.to(sampler.dtype).contiguous()
        if (bounds := clip_range(self.clip)) is not None:
            x = x.clamp(*bounds)
        if level.sigma > 0:
            table = torch.tensor([[level.alpha, level.sigma]], dtype=sampler.dtype, device=x.device)
            (x,) = ops.combine([x], table, seeds=seeds, draws=[DRAW], backend=sampler.backend)
        size = self._shape(images)[1:]
        if self.resize is not None and x.shape[2:] != torch.Size(size):
            x = F.interpolate(x, size, mode=self.resize)
        given = {self.condition: x.to(sampler.model_dtype)}
        if self.told is not None:
            given[self.told] = torch.full((len(x),), self._time, dtype=sampler.time_dtype, device=x.device)
        return given

    def run(
        self, images: Tensor, seeds: Tensor, labels: Tensor | None, cond: Mapping[str, Any], progress: bool = False
    ) -> Tensor:
        """The larger images, at most `batch` in one run.

        Args:
            images: [B, C, h, w]; seeds: int64 [B] of this stage; labels, cond: as in a call of the sampler.
        """
        if taken := {self.condition, self.told} & cond.keys():
            raise ValueError(
                f"cond must not have what the cascade gives the network itself, got {', '.join(map(str, taken))}"
            )
        device, count = self.sampler.device, len(images)
        images, seeds = images.to(device), seeds.to(device)
        done = []
        for start in range(0, count, self.batch or max(count, 1)) if count else [0]:
            some = slice(start, start + (self.batch or count))

            def only(value: Any, some: slice = some) -> Any:
                return value[some] if isinstance(value, Tensor) and value.ndim and len(value) == count else value

            given = {**pytree.tree_map(only, dict(cond)), **self.conditioning(images[some], seeds[some])}
            shape = (len(images[some]), *self._shape(images))
            known = None if labels is None else labels[some]
            done.append(self.sampler(shape, seeds=seeds[some], labels=known, cond=given, progress=progress))
        return done[0] if len(done) == 1 else torch.cat(done)

    def _shape(self, images: Tensor) -> tuple[int, ...]:
        """(C, H, W) of one sample."""
        if self.sampler.shape is not None:
            return tuple(self.sampler.shape)
        assert self.size is not None
        return images.shape[1], self.size, self.size


class Cascade:
    """Samplers one after the other, each conditioned on the images of the one before.

    A sample depends on its seed alone, not on the batch: the base takes the seeds themselves, so that it draws what it
    draws by itself, and stage k = 1, 2, ... those of `stage_seeds`, so that no two stages share noise.

    Args:
        base: of the smallest images; stages: from small to large.

    Raises:
        TypeError, ValueError: something else, or no stage.
    """

    def __init__(self, base: Sampler, *stages: Stage):
        if not isinstance(base, Sampler):
            raise TypeError(f"base must be a fastdiff.Sampler, got {type(base).__name__}")
        for stage in stages:
            if not isinstance(stage, Stage):
                raise TypeError(f"stages must be fastdiff.cascade.Stage, got {type(stage).__name__}")
        if not stages:
            raise ValueError("stages must hold at least one Stage, got none")
        self.base, self.stages = base, stages

    def __call__(
        self,
        shape: int | Sequence[int],
        *,
        seeds: int | Sequence[int] | Tensor | None = None,
        labels: Any = None,
        cond: Mapping[str, Any] | None = None,
        return_stages: bool = False,
        progress: bool = False,
    ) -> Any:
        """Draw one batch.

        Args:
            shape: of the base's samples, [B, C, h, w], or B where the base knows the shape of one.
            seeds, labels: as in `Sampler.__call__`; labels go to the samplers whose networks have classes.
            cond: further keyword arguments of all networks.
            return_stages: also return what the samplers before the last one drew.
            progress: show a bar a sampler.

        Returns:
            [B, C, H, W] of the last stage; with `return_stages` a list, the base's images first.

        Raises:
            ValueError, TypeError: a bad argument.
            FloatingPointError: a result is not finite; names the stage.
        """
        size = resolve_shape(shape, self.base.shape)
        seed, given = seed_tensor(seeds, size[0], "cpu"), self._cond(cond)
        classes = self._labels(labels, size[0], [self.base, *(stage.sampler for stage in self.stages)])
        known = classes if _takes_labels(self.base) else None
        images = self.base(size, seeds=seed.to(self.base.device), labels=known, cond=given, progress=progress)
        made = [images, *self._up(images, seed, classes, given, progress)]
        return made if return_stages else made[-1]

    @torch.no_grad()
    def upsample(
        self,
        images: Tensor,
        *,
        seeds: int | Sequence[int] | Tensor | None = None,
        labels: Any = None,
        cond: Mapping[str, Any] | None = None,
        return_stages: bool = False,
        progress: bool = False,
    ) -> Any:
        """The stages alone, on images at hand.

        Args:
            images: [B, C, h, w] in place of what the base draws.
            seeds, labels, cond, return_stages, progress: as in a call; the list then begins with the first stage's.

        Returns, Raises:
            As a call.
        """
        if not isinstance(images, Tensor) or not images.is_floating_point():
            raise TypeError(f"images must be a floating tensor, got {getattr(images, 'dtype', type(images).__name__)}")
        seed = seed_tensor(seeds, len(images) if images.ndim else 0, "cpu")
        classes = self._labels(labels, len(seed), [stage.sampler for stage in self.stages])
        made = self._up(images, seed, classes, self._cond(cond), progress)
        return made if return_stages else made[-1]

    def _up(
        self, images: Tensor, seeds: Tensor, labels: Tensor | None, cond: dict[str, Any], progress: bool
    ) -> list[Tensor]:
        if images.ndim != 4:
            raise ValueError(f"images must be [B, C, H, W] for the stages of a cascade, got {list(images.shape)}")
        made = []
        for number, stage in enumerate(self.stages, 1):
            known = labels if _takes_labels(stage.sampler) else None
            try:
                images = stage.run(images, stage_seeds(seeds, number), known, cond, progress)
            except FloatingPointError as error:
                raise FloatingPointError(
                    f"stage {number} (whose seeds are stage_seeds(seeds, {number})): {error}"
                ) from None
            made.append(images)
        return made

    def _cond(self, cond: Mapping[str, Any] | None) -> dict[str, Any]:
        """The keywords for all networks, none of them one that a stage gives."""
        given = conditioning(cond, None, 0, None, self.base.device)
        own = {name for stage in self.stages for name in (stage.condition, stage.told)}
        if taken := own & given.keys():
            raise ValueError(
                f"cond must not have what the cascade itself gives a network, got {sorted(map(str, taken))}"
            )
        return given

    @staticmethod
    def _labels(labels: Any, batch: int, samplers: Sequence[Sampler]) -> Tensor | None:
        if labels is None:
            return None
        if not any(map(_takes_labels, samplers)):
            raise ValueError(f"labels must be left out: no network of the cascade has classes, got {labels!r}")
        return label_tensor(labels, batch, None, torch.device("cpu"))


def stage_seeds(seeds: Tensor, stage: int) -> Tensor:
    """The seeds of a stage: the stage-th output of SplitMix64 started at each seed (Steele et al. 2014, Figure 14).

    Args:
        seeds: int64 [B] of the samples; stage: from 1 on.

    Returns:
        int64 [B] on the CPU; different where the seeds are.
    """
    z = seeds.cpu().numpy().view(np.uint64) + np.uint64(check_count("stage", stage) * 0x9E3779B97F4A7C15 % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy((z ^ (z >> np.uint64(31))).view(np.int64))


def _takes(model: Any, keyword: str) -> bool:
    """Whether a network can be called with a keyword argument, as far as its signature says."""
    try:
        parameters = inspect.signature(model.forward if isinstance(model, nn.Module) else model).parameters
    except (TypeError, ValueError):
        return True
    return keyword in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _takes_labels(sampler: Sampler) -> bool:
    """Whether labels mean something to a sampler's network or its guidance."""
    kept = "labels" in [term.keeps for term in sampler.guidance]
    return kept or getattr(sampler.model, "label_dim", None) != 0
