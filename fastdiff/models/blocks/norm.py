"""How many groups a group norm has where only the channels say it."""

from __future__ import annotations

__all__ = ["edm_groups"]


def edm_groups(channels: int) -> int:
    """min(32, channels // 4), of Song et al. 2021 and Karras et al. 2022.

    Raises:
        ValueError: fewer than 4 channels, or the groups do not divide them.
    """
    groups = min(32, channels // 4)
    if groups < 1 or channels % groups:
        wanted = "at least 4, and a multiple of their min(32, channels // 4) groups"
        raise ValueError(f"channels of a group norm must be {wanted}, got {channels}")
    return groups
