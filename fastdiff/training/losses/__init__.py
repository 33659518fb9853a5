"""The training objectives of the literature, one function each; every one noises its batch through `perturb`."""

from __future__ import annotations

__all__: list[str] = []
