"""Networks and their files: `UNet`, `MLP`, `Classifier`, `Discriminator`, `save`, `load`."""

from __future__ import annotations

from .adm import DGDiscriminator, DGEncoderUNetModel, EncoderUNetModel, SuperResModel, UNetModel
from .classifier import Classifier
from .discriminator import Discriminator
from .edm import DhariwalUNet, EDMPrecond, SongUNet, VEPrecond, VPPrecond, iDDPMPrecond
from .hf import DiffusersNetwork
from .io import ModelFileError, load, read_metadata, save
from .mlp import MLP
from .ncsnpp import NCSNpp
from .unet import UNet

__all__ = [
    "MLP",
    "Classifier",
    "DGDiscriminator",
    "DGEncoderUNetModel",
    "DhariwalUNet",
    "DiffusersNetwork",
    "Discriminator",
    "EDMPrecond",
    "EncoderUNetModel",
    "ModelFileError",
    "NCSNpp",
    "SongUNet",
    "SuperResModel",
    "UNet",
    "UNetModel",
    "VEPrecond",
    "VPPrecond",
    "iDDPMPrecond",
    "load",
    "read_metadata",
    "save",
]
