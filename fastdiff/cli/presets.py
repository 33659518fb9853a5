"""`fastdiff presets`: published settings, their FID and where they were published."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from ..exposure import LinearScale
from ..presets import Preset, presets
from . import CliError


@click.command("presets")
@click.argument("words", nargs=-1, metavar="[WORD]...")
@click.option("--json", "as_json", is_flag=True, help="Everything, as a JSON list.")
def command(words: tuple[str, ...], as_json: bool) -> None:
    """List published settings: with WORDs, those whose name holds all of them (`fastdiff presets es cifar10`).

    In Python, fastdiff.presets.get(NAME).arguments are the arguments of fastdiff.Sampler.
    """
    chosen = [preset for preset in presets() if all(word in preset.name for word in words)]
    if not chosen:
        raise CliError(f"WORD: no preset's name holds {' and '.join(words)}")
    if as_json:
        click.echo(json.dumps([_described(preset) for preset in chosen], indent=1))
        return
    rows = [("name", "solver", "steps", "NFE", "lambda", "w_1st", "baseline", "FID", "source"), *map(_row, chosen)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    for preset in chosen:
        if preset.note and len(chosen) == 1:
            click.echo(f"note: {preset.note}")


def _row(preset: Preset) -> tuple[str, ...]:
    settings, guidance = preset.settings, preset.guidance
    scale = settings.get("epsilon_scale", 1.0)
    shown = f"{scale.b:g} + {scale.k:g} i" if isinstance(scale, LinearScale) else f"{scale:g}"
    weight = f"{guidance['w_1st']:g}" if "w_1st" in guidance else ""
    fids = ["" if fid is None else f"{fid:g}" for fid in (preset.baseline_fid, preset.fid)]
    steps = str(settings["steps"])
    return (preset.name, settings["solver"], steps, str(preset.nfe), shown, weight, *fids, preset.source)


def _described(preset: Preset) -> dict[str, Any]:
    """The preset as JSON; a linear lambda as its k and b."""
    description = asdict(preset)
    del description["guide"]
    return description
