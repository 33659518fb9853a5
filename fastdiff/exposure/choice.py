"""A chosen lambda with the measurements behind it, as a small JSON file that `Sampler` and `fastdiff sample` take."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic_path
from .report import report
from .resampling import mean_and_error
from .schedules import LinearScale

__all__ = ["Calibration", "Candidate", "Scale", "load_scale"]

Scale = float | LinearScale | tuple[float, ...]

_FORMAT = 1


@dataclass(frozen=True)
class Candidate:
    """The scores of one lambda, one entry per seed range.

    Attributes:
        epsilon_scale: a number, a `LinearScale`, or one number per step in sampling order.
        frechet: distances; inf where the samples were not finite.
        precision, recall: in [0, 1]; NaN where the samples were not finite.
    """

    epsilon_scale: Scale
    frechet: tuple[float, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the distance over the ranges."""
        return float(np.mean(self.frechet))

    @property
    def standard_error(self) -> float | None:
        """Of that mean, from the spread over the ranges; None for one range."""
        return mean_and_error(self.frechet)[1]


@dataclass(frozen=True)
class Calibration:
    """Which lambda was chosen for one configuration of a sampler, and on what grounds.

    Attributes:
        method: "search", "linear" or "norm".
        epsilon_scale: the choice; `Sampler(epsilon_scale=...)` takes it, this object, or the path of its file.
        table: every candidate that was scored, on the same seeds; lambda = 1 is among them.
        difference, difference_error: distance minus that of lambda = 1, paired, over seed ranges that took no part in
            the choice (each range is judged with the lambda that the others choose), and its standard error.
        distinguishable: the difference is below 0 by Student's t at 5 %; None if there was only one range.
        errors: bootstrap standard errors over the seed ranges, of "lambda" (search), or of the "mean" over the steps
            and of "k" (linear); empty at an `edge` and with one range.
        interval: 95 % bounds of the constant lambda; None for one range, at an `edge`, and with other methods.
        edge: the best candidate was the last of its grid, so that a better one may lie beyond.
        refused: the schedule of "norm" was worse than lambda = 1, which was chosen instead.
        configuration: what was calibrated, with which seeds.
    """

    method: str
    epsilon_scale: Scale
    table: tuple[Candidate, ...]
    difference: float
    difference_error: float | None = None
    distinguishable: bool | None = None
    errors: Mapping[str, float] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    edge: bool = False
    refused: bool = False
    configuration: Mapping[str, Any] = field(default_factory=dict)

    @property
    def chosen(self) -> Candidate:
        """The row of the table that was chosen."""
        return self.row(self.epsilon_scale)

    @property
    def baseline(self) -> Candidate:
        """The row of lambda = 1."""
        return self.row(1.0)

    def row(self, epsilon_scale: Scale) -> Candidate:
        """The row of one candidate.

        Raises:
            KeyError: it was not scored.
        """
        for candidate in self.table:
            if candidate.epsilon_scale == epsilon_scale:
                return candidate
        raise KeyError(f"{epsilon_scale!r} was not scored")

    def differences(self, configuration: Mapping[str, Any]) -> list[str]:
        """What of `configuration` (see `describe`) is not what was calibrated: one "name: was, is" each.

        A lambda helps the sampler it was measured on; for another solver or number of steps it can do great harm.
        """
        both = [name for name in self.configuration if name in configuration and name not in ("fastdiff", "torch")]
        other = [name for name in both if self.configuration[name] != configuration[name]]
        return [f"{name}: calibrated for {self.configuration[name]}, got {configuration[name]}" for name in other]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file; it appears whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        rows = [
            {
                "epsilon_scale": _pack(row.epsilon_scale), "mean": row.mean, "standard_error": row.standard_error,
                "frechet": row.frechet, "precision": row.precision, "recall": row.recall,
            }
            for row in self.table
        ]  # fmt: skip
        content = {
            "calibration": _FORMAT, "epsilon_scale": _pack(self.epsilon_scale), "method": self.method,
            "distinguishable": self.distinguishable, "difference": self.difference,
            "difference_error": self.difference_error, "errors": dict(self.errors), "interval": self.interval,
            "edge": self.edge, "refused": self.refused, "table": rows, "configuration": dict(self.configuration),
        }  # fmt: skip
        text = json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read a file that `save` wrote.

        Raises:
            ValueError: it is missing, damaged, or none of these files; the message names it.
        """
        content = _read(path)
        try:
            rows = tuple(
                Candidate(
                    _unpack(row["epsilon_scale"]),
                    tuple(math.inf if v is None else float(v) for v in row["frechet"]),
                    *(
                        tuple(math.nan if v is None else float(v) for v in row[name])
                        for name in ("precision", "recall")
                    ),
                )
                for row in content["table"]
            )
            interval, difference = content["interval"], content["difference"]
            return cls(
                content["method"],
                _unpack(content["epsilon_scale"]),
                rows,
                math.nan if difference is None else float(difference),
                content["difference_error"],
                content["distinguishable"],
                content["errors"],
                None if interval is None else (float(interval[0]), float(interval[1])),
                content["edge"],
                content["refused"],
                content["configuration"],
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"{os.fspath(path)}: a damaged calibration ({error!r})") from None

    def __str__(self) -> str:
        return report(self)


def load_scale(path: str | os.PathLike[str]) -> float | LinearScale | list[float]:
    """The lambda of a calibration's file: a number, a `LinearScale`, or one number per step in sampling order.

    Raises:
        ValueError: the file is missing, damaged, or none that `Calibration.save` wrote; the message names it.
    """
    content = _read(path)
    try:
        scale = _unpack(content["epsilon_scale"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)}: a damaged calibration ({error!r})") from None
    return list(scale) if isinstance(scale, tuple) else scale


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    name = os.fspath(path)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{name}: cannot be read as a calibration ({error.strerror or error})") from None
    except ValueError as error:
        raise ValueError(f"{name}: not a calibration ({error})") from None
    if not isinstance(content, dict) or content.get("calibration") != _FORMAT:
        raise ValueError(f"{name}: not a calibration (of format {_FORMAT}), which `fastdiff calibrate` writes")
    return content


def _pack(scale: Scale) -> Any:
    return {"k": scale.k, "b": scale.b} if isinstance(scale, LinearScale) else scale


def _unpack(stored: Any) -> Scale:
    if isinstance(stored, dict):
        return LinearScale(k=_number(stored["k"]), b=_number(stored["b"]))
    return tuple(map(_number, stored)) if isinstance(stored, list) else _number(stored)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def _finite(value: Any) -> Any:
    """The same with null for what is not finite, which JSON cannot say."""
    if isinstance(value, Mapping):
        return {str(name): _finite(v) for name, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
