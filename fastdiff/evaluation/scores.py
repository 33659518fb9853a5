"""Frechet distance, precision and recall of samples against real images, by torchmetrics and prdc."""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import check_count
from .features import check_finite_images, eight_bit, extract, get_features

__all__ = ["Evaluator", "Scores", "frechet_distance", "precision_recall"]

Array = NDArray[np.float64]
_BLOCK = 1000  # real points whose distances are held at once


@dataclass(frozen=True)
class Scores:
    """What an `Evaluator` found.

    Attributes:
        frechet: squared Frechet distance between Gaussians fitted to the features; 0 is best.
        precision: fraction of the samples within the real features' manifold.
        recall: fraction of the real features within the samples' manifold.
        samples: how many were scored.
    """

    frechet: float
    precision: float
    recall: float
    samples: int

    def as_dict(self) -> dict[str, float]:
        """The scores by name."""
        return asdict(self)

    def __str__(self) -> str:
        return f"Frechet {self.frechet:.4g}, precision {self.precision:.3f}, recall {self.recall:.3f}"


class Evaluator:
    """Scores of samples against one set of real images, whose features are computed once.

    Args:
        reference: real images, floating point [M, C, H, W] in [-1, 1] (any [M, ...] for a module that takes it).
        features: what `get_features` takes.
        neighbours: k of precision and recall.
        levels: clamp images to [-1, 1] and round them to 256 levels, as an image file holds them. False for data that
            are not images.
        batch: images per call of the feature network.
        device: where the feature network is moved to; None leaves it (on the CPU, unless it is a module of your own).

    Attributes:
        module: the feature network.
        reference: features of the real images, float64 [M, d].

    Raises:
        FeatureError, ValueError, ModuleNotFoundError: an argument that cannot be used, or a library that is missing.
    """

    def __init__(
        self,
        reference: Tensor,
        features: str | os.PathLike[str] | nn.Module = "digits",
        *,
        neighbours: int = 3,
        levels: bool = True,
        batch: int = 500,
        device: torch.device | str | None = None,
    ) -> None:
        self.neighbours = check_count("neighbours", neighbours)
        self.levels, self.batch = levels, batch
        self.module = get_features(features)
        if device is not None:
            self.module.to(device)
        self.reference = self.features(reference)
        _check_pair("reference", self.reference, "reference", self.reference, self.least)
        self._radii = _radii(_array(self.reference), neighbours)
        frechet_distance(self.reference[:2], self.reference[:2])  # a missing library shows before samples are drawn

    @property
    def least(self) -> int:
        """The smallest number of images that can be scored."""
        return self.neighbours + 2

    def features(self, images: Tensor) -> Tensor:
        """Features of images, float64 [N, d]: for `score`, for instance of many subsets of one set."""
        check_finite_images("pixels", images)  # rounding would hide infinities
        return extract(eight_bit(images) if self.levels else images, self.module, self.batch)

    def score(self, features: Tensor) -> Scores:
        """Scores of features [N, d] that `features` returned."""
        _check_pair("reference", self.reference, "samples", features, self.least)
        frechet = frechet_distance(self.reference, features)
        real, fake = _array(self.reference), _array(features)
        return Scores(frechet, *_overlap(real, self._radii, fake, self.neighbours), len(features))

    def __call__(self, images: Tensor) -> Scores:
        """Scores of images [N, C, H, W] in [-1, 1].

        Raises:
            ValueError: fewer images than `neighbours + 2`, or of a shape that the feature network does not take.
            FloatingPointError: features that are not finite.
        """
        return self.score(self.features(images))


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Squared Frechet distance between the Gaussians fitted to two sets (Heusel et al. 2017; torchmetrics, float64).

    Args:
        real: [N, d], N at least 2.
        fake: [M, d], M at least 2. The order of the two does not matter.

    Returns:
        |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) with the unbiased covariances; 0 up to rounding for equal sets.

    Raises:
        ValueError: other shapes, or fewer than 2 rows.
        ModuleNotFoundError: torchmetrics is not installed.
    """
    _check_pair("real", real, "fake", fake, 2)
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ModuleNotFoundError as error:
        raise _missing("the Frechet distance needs torchmetrics", error) from None
    metric = FrechetInceptionDistance(feature=_Identity(real.shape[1]))
    metric.update(real.detach().to("cpu", torch.float64), real=True)
    metric.update(fake.detach().to("cpu", torch.float64), real=False)
    return float(metric.compute())


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019; distances and neighbours by prdc).

    Args:
        real: [N, d], N at least k + 2.
        fake: [M, d], M at least k + 2.
        k: the manifold of a set is the union of balls around its points, up to their k-th nearest neighbours.

    Returns:
        (fraction of fake points in the manifold of the real ones, fraction of real points in that of the fake ones).

    Raises:
        ValueError: other shapes, or too few rows.
        ModuleNotFoundError: prdc is not installed.
    """
    _check_pair("real", real, "fake", fake, check_count("k", k) + 2)
    return _overlap(_array(real), _radii(_array(real), k), _array(fake), k)


def _overlap(real: Array, real_radii: Array, fake: Array, k: int) -> tuple[float, float]:
    """Precision and recall, a block of real points at a time: memory grows with the number of points, not its square.

    prdc's own `compute_prdc` keeps whole tables of distances and measures the real points anew for every set.
    """
    fake_radii = _radii(fake, k)
    precise, recalled = np.zeros(len(fake), bool), 0
    for start in range(0, len(real), _BLOCK):
        some = slice(start, start + _BLOCK)
        block = _distances(real[some], fake)
        precise |= (block < real_radii[some, None]).any(0)
        recalled += int((block < fake_radii).any(1).sum())
    return float(precise.mean()), recalled / len(real)


def _radii(points: Array, k: int) -> Array:
    """Distance of every point to its k-th nearest neighbour, [N]; the point itself is the nearest, at distance 0."""
    blocks = (points[start : start + _BLOCK] for start in range(0, len(points), _BLOCK))
    return np.concatenate([_prdc().get_kth_value(_distances(some, points), k + 1) for some in blocks])


def _distances(a: Array, b: Array) -> Array:
    """[N, M], by prdc, without scikit-learn's warning that prdc calls it by way of joblib."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`sklearn.utils.parallel.delayed`", UserWarning)
        return _prdc().compute_pairwise_distance(a, b)


def _prdc() -> Any:
    try:
        return import_module("prdc.prdc")
    except ModuleNotFoundError as error:
        raise _missing("precision and recall need prdc", error) from None


def _array(features: Tensor) -> Array:
    array: Array = features.detach().to("cpu", torch.float64).numpy()
    return array


class _Identity(nn.Module):
    """Features are what comes in."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _check_pair(first: str, a: Tensor, second: str, b: Tensor, least: int) -> None:
    for name, features in ((first, a), (second, b)):
        if features.dim() != 2 or len(features) < least:
            raise ValueError(f"{name} must be features [N, d] with N at least {least}, got {list(features.shape)}")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{first} and {second} must have equally many features, got {a.shape[1]} and {b.shape[1]}")


def _missing(what: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"{what}: pip install 'fastdiff[eval]' ({error})", name=error.name)
