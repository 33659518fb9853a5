"""The networks of score_sde: NCSN++ and DDPM++."""

from __future__ import annotations

from .network import NCSNpp

__all__ = ["NCSNpp"]
