"""The log of a training run: JSON lines that survive a killed run without double or torn rows, and TensorBoard."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import atomic_path

__all__ = ["Log", "read_log"]


class Log:
    """Appends rows to a JSON-lines file, one object with an `iteration` each; numbers also go to TensorBoard.

    A row is written by one system call, so that a killed run leaves at most its last row torn.

    Args:
        path: the file, by habit `log.jsonl`; its folder exists.
        keep: rows of an earlier run up to this iteration are kept, later or torn ones are dropped. 0: start anew.
        tensorboard: also write events to the folder `tensorboard` beside the file, if TensorBoard is installed.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: str | Path, keep: int = 0, tensorboard: bool = True) -> None:
        self.path = Path(path)
        rows = [row for row in read_log(self.path) if row["iteration"] <= keep] if keep and self.path.exists() else []
        with atomic_path(self.path) as temporary:
            temporary.write_bytes(b"".join(map(_line, rows)))
        self._events = _summary_writer(self.path.parent / "tensorboard", keep) if tensorboard else None

    def add(self, iteration: int, **fields: Any) -> None:
        """Appends one row.

        Args:
            iteration: iterations done so far.
            fields: JSON values by name. None is left out; a number that is not finite becomes null, as JSON has no
                name for it.
        """
        row = {"iteration": iteration, **{name: value for name, value in fields.items() if value is not None}}
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            line = _line(row)
            if os.write(file, line) != len(line):
                raise OSError(f"{self.path}: a row could only be written in part")
        finally:
            os.close(file)
        if self._events is not None:
            for name, value in row.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool) and name != "iteration":
                    self._events.add_scalar(name, value, iteration)
            self._events.flush()  # a killed run has lost nothing that is in the file

    def picture(self, iteration: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """A picture for TensorBoard, uint8 [H, W, 1 or 3]; nothing happens where it is not installed."""
        if self._events is not None:
            self._events.add_image(name, pixels, iteration, dataformats="HWC")

    def close(self) -> None:
        """Writes what TensorBoard still holds back."""
        if self._events is not None:
            self._events.close()


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The whole rows of a log; a torn last row, or a line that is no row, is left out.

    Raises:
        OSError: the file cannot be read.
    """
    lines = Path(path).read_bytes().split(b"\n")[:-1]  # what follows the last line's end is torn
    return [row for row in map(_row, lines) if row is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("iteration"), int) else None


def _line(row: dict[str, Any]) -> bytes:
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(plain, allow_nan=False).encode() + b"\n"


def _summary_writer(folder: Path, keep: int) -> Any:
    """TensorBoard's writer, or None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=keep + 1 if keep else 0)
