"""Training: the EDM loss and a resumable trainer."""

from __future__ import annotations

from .loss import draw_sigma, edm_loss
from .trainer import Trainer

__all__ = ["Trainer", "draw_sigma", "edm_loss"]
