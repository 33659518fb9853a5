"""Argument types that several commands share."""

from __future__ import annotations

import json
import re
from typing import Any

import click

__all__ = ["EPSILON_SCALE", "OPTION", "SEEDS", "STEPS", "flag", "parse_seeds"]

_MOST_SEEDS = 1_000_000


def parse_seeds(text: str) -> list[int]:
    """EDM's seed lists: `"0-63"`, `"5"`, `"1,5,7-9"`, kept in the order given.

    Raises:
        ValueError: anything else, a range that runs backwards, a seed of 2^63 or more, or over a million
            seeds.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part, re.ASCII)
        if not match:
            raise ValueError(f"expected numbers and ranges such as 0-63 or 1,5,7-9, got {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"the range {part.strip()} runs backwards")
        if last >= 2**63:
            raise ValueError(f"seeds must be below 2^63, got {last}")
        if len(seeds) + last - first >= _MOST_SEEDS:
            raise ValueError(f"at most {_MOST_SEEDS:,} seeds in one run, got more")
        seeds.extend(range(first, last + 1))
    return seeds


class _Seeds(click.ParamType):
    name = "seeds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        try:
            return parse_seeds(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Option(click.ParamType):
    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        name, equals, text = value.partition("=")
        if not name or not equals:
            self.fail(f"expected NAME=VALUE, such as eta=0.5, got {value!r}", param, ctx)
        try:
            return name, json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
        except json.JSONDecodeError:
            return name, text  # a word


class _EpsilonScale(click.ParamType):
    name = "number or file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return float(value)
        except ValueError:
            pass
        from ..exposure import Calibration

        try:
            return Calibration.load(value)
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            self.fail(f"{value}: neither a number nor a file of fastdiff calibrate ({reason})", param, ctx)


class _Steps(click.ParamType):
    name = "steps"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if not re.fullmatch(r"(ddim)?\d+|\d+(,\d+)+", str(value)):
            self.fail(f"expected a number, or a respacing such as 10,5,5 or ddim50, got {value!r}", param, ctx)
        return int(value) if str(value).isdecimal() else str(value)


SEEDS = _Seeds()
OPTION = _Option()
STEPS = _Steps()
EPSILON_SCALE = _EpsilonScale()


def flag(name: str, **options: Any) -> Any:
    """A click option in both spellings: `--S_churn`, as EDM writes it, and `--S-churn`."""
    parameter = name.replace("-", "_")
    spellings = dict.fromkeys((f"--{name.replace('_', '-')}", f"--{parameter}"))
    return click.option(*spellings, parameter, **options)
