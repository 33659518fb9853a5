"""Networks and their files: `UNet`, `Classifier`, `save`, `load`."""

from __future__ import annotations

from .classifier import Classifier
from .io import ModelFileError, load, read_metadata, save
from .unet import UNet

__all__ = ["Classifier", "ModelFileError", "UNet", "load", "read_metadata", "save"]
