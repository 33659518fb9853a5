"""Networks and their files: `UNet`, `Classifier`, `Discriminator`, `save`, `load`."""

from __future__ import annotations

from .classifier import Classifier
from .discriminator import Discriminator
from .io import ModelFileError, load, read_metadata, save
from .unet import UNet

__all__ = ["Classifier", "Discriminator", "ModelFileError", "UNet", "load", "read_metadata", "save"]
