"""Training: denoisers by any objective of `losses`, discriminators for guidance; resumable to the same bits."""

from __future__ import annotations

from . import losses
from .calibration import LevelReport, Report, assess
from .chain import Chain
from .discriminator import DiscriminatorTrainer, NothingLearntError
from .objectives import Objective, make_objective
from .perturb import input_perturbation, noising_table, perturb
from .trainer import Trainer

__all__ = [
    "Chain",
    "DiscriminatorTrainer",
    "LevelReport",
    "NothingLearntError",
    "Objective",
    "Report",
    "Trainer",
    "assess",
    "input_perturbation",
    "losses",
    "make_objective",
    "noising_table",
    "perturb",
]
