"""guided-diffusion's networks (Dhariwal & Nichol 2021), compatible with its checkpoints by name and value."""

from __future__ import annotations

from .dg import DGDiscriminator, DGEncoderUNetModel
from .encoder import EncoderUNetModel
from .unet import SuperResModel, UNetModel

__all__ = ["DGDiscriminator", "DGEncoderUNetModel", "EncoderUNetModel", "SuperResModel", "UNetModel"]
