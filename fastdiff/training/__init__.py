"""Training: denoisers with the EDM loss, discriminators for guidance; resumable to the same bits."""

from __future__ import annotations

from .calibration import LevelReport, Report, assess
from .discriminator import DiscriminatorTrainer, NothingLearntError
from .losses import edm_loss
from .trainer import Trainer

__all__ = [
    "DiscriminatorTrainer",
    "LevelReport",
    "NothingLearntError",
    "Report",
    "Trainer",
    "assess",
    "edm_loss",
]
