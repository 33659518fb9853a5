"""`fastdiff models`: the architectures that there are, and published checkpoints of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from . import CliError


@click.command("models")
@click.argument("words", nargs=-1, metavar="[WORD]...")
@click.option("--json", "as_json", is_flag=True, help="Everything, configurations too, as one JSON object.")
def command(words: tuple[str, ...], as_json: bool) -> None:
    """List architectures and published checkpoints: with WORDs, those that hold all of them (`fastdiff models adm
    imagenet64`); of a single one, everything that is known.

    `fastdiff convert FILE OUT --like NAME` reads a checkpoint as the published one of that name. FIDs are their
    sources', measured on 50,000 images; the preset has the settings (`fastdiff presets PRESET`).
    """
    from ..models.network import FACTS
    from ..models.published import published

    rows = [row for row in published() if _holds(words, row.name, row.architecture, row.project, row.file)]
    found = {name: facts for name, facts in sorted(FACTS.items()) if _holds(words, name, facts.kind, facts.source)}
    if not rows and not found:
        raise CliError(f"WORD: no architecture and no published checkpoint holds {' and '.join(words)}")
    if as_json:
        described = [{**asdict(row), **_fid(row)} for row in rows]
        architectures = {name: asdict(facts) for name, facts in found.items()}
        click.echo(json.dumps({"architectures": architectures, "published": described}, indent=1))
        return
    if found:
        _table([("architecture", "kind", "source"), *((n, f.kind, f.source) for n, f in found.items())])
    if found and rows:
        click.echo()
    if len(rows) == 1:
        _one(rows[0])
    elif rows:
        head = ("published", "architecture", "parameters", "FID", "preset", "licence", "project", "file")
        _table([head, *map(_row, rows)])


def _holds(words: tuple[str, ...], *texts: str) -> bool:
    text = " ".join(texts).lower()
    return all(word.lower() in text for word in words)


def _fid(row: Any) -> dict[str, Any]:
    fid, source = row.expected_fid()
    return {"fid": fid, "fid_source": source}


def _millions(parameters: int | None) -> str:
    return "" if parameters is None else f"{parameters / 1e6:.1f} M"


def _row(row: Any) -> tuple[str, ...]:
    fid = row.expected_fid()[0]
    told = (_millions(row.parameters), "" if fid is None else f"{fid:g}", row.preset or "")
    return (row.name, row.architecture, *told, row.licence, row.project, row.file)


def _one(row: Any) -> None:
    """Everything of one row, a line for each."""
    fid, source = row.expected_fid()
    lines = {
        "published": row.name,
        "project": row.project,
        "file": row.file,
        "licence": row.licence,
        "architecture": row.architecture,
        "config": json.dumps(row.config) if row.config else "in the file",
        "parameters": "" if row.parameters is None else str(row.parameters),
        "reading": json.dumps(row.reading) if row.reading else "",
        "preset": row.preset or "",
        "FID": "" if fid is None else f"{fid:g} ({source})",
        "note": row.note,
    }
    _table([(name, value) for name, value in lines.items() if value])


def _table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
