"""Networks and their files: `UNet`, `save`, `load`."""

from __future__ import annotations

from .io import ModelFileError, load, read_metadata, save
from .unet import UNet

__all__ = ["ModelFileError", "UNet", "load", "read_metadata", "save"]
