"""The networks of Karras et al. 2022, with the names, arguments and state dicts of the published checkpoints."""

from __future__ import annotations

from .dhariwal import DhariwalUNet
from .precond import EDMPrecond, VEPrecond, VPPrecond, iDDPMPrecond
from .song import SongUNet

__all__ = ["DhariwalUNet", "EDMPrecond", "SongUNet", "VEPrecond", "VPPrecond", "iDDPMPrecond"]
