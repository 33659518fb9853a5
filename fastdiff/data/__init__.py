"""Small real image sets that Python packages carry: nothing is downloaded."""

from __future__ import annotations

from .digits import DATASETS, Images, digits8, digits16, load

__all__ = ["DATASETS", "Images", "digits8", "digits16", "load"]
