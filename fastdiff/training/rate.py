"""Learning rates by iteration."""

from __future__ import annotations

import math
from typing import Any

from ..errors import check_choice

__all__ = ["SCHEDULES", "learning_rate"]

SCHEDULES = ("cosine", "constant")


def learning_rate(config: Any, iteration: int) -> float:
    """Learning rate of an iteration: linear warm-up times a cosine to 0, or times 1.

    Args:
        config: has `learning_rate` (the peak), `warmup` and `iterations`, and may have `schedule` (one of `SCHEDULES`;
            "cosine" where it lacks one).
        iteration: counted from 0.

    Returns:
        `learning_rate * min(1, (i + 1) / (warmup + 1))`, with "cosine" times `(1 + cos(pi i / iterations)) / 2`.

    Raises:
        ValueError: an unknown schedule.
    """
    schedule = check_choice("schedule", getattr(config, "schedule", "cosine"), SCHEDULES)
    warm = min(1.0, (iteration + 1) / (config.warmup + 1))
    shape = 0.5 * (1 + math.cos(math.pi * iteration / config.iterations)) if schedule == "cosine" else 1.0
    rate: float = config.learning_rate * warm * shape
    return rate
