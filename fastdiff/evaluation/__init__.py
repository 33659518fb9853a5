"""Scores of samples against real ones: feature spaces, Frechet distance, precision and recall, samples by seed.

`Evaluator(images)` and `sliced_wasserstein` (points) need `pip install 'fastdiff[eval]'` (torchmetrics, prdc, POT).
"""

from __future__ import annotations

from .features import FeatureError, extract, features_digest, get_features
from .generate import generate
from .scores import Evaluator, Scores, frechet_distance, precision_recall
from .wasserstein import sliced_wasserstein

__all__ = [
    "Evaluator",
    "FeatureError",
    "Scores",
    "extract",
    "features_digest",
    "frechet_distance",
    "generate",
    "get_features",
    "precision_recall",
    "sliced_wasserstein",
]
