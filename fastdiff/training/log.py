"""The loss log: a CSV file that survives a killed run without double or torn rows."""

from __future__ import annotations

import csv
from pathlib import Path

from ..files import atomic_path

__all__ = ["LossLog"]

_COLUMNS = ("iteration", "loss", "grad_norm", "learning_rate", "heldout_loss")


class LossLog:
    """Appends rows `iteration, loss, grad_norm, learning_rate, heldout_loss` (the last often empty).

    Args:
        path: the CSV file.
        keep: rows of an earlier run up to this iteration are kept; later or torn ones are dropped.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        self.path = path
        rows = [row for row in _read(path) if row[0].isdigit() and int(row[0]) <= keep] if keep else []
        with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([_COLUMNS, *rows])

    def add(self, iteration: int, loss: float, grad_norm: float, rate: float, heldout: float | None) -> None:
        """Appends one row."""
        last = "" if heldout is None else f"{heldout:.6g}"
        values = [f"{loss:.6g}", f"{grad_norm:.4g}", f"{rate:.4g}", last]
        with open(self.path, "a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow([iteration, *values])


def _read(path: Path) -> list[list[str]]:
    """The whole rows of an existing log."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [row for row in csv.reader(file) if len(row) == len(_COLUMNS)]
