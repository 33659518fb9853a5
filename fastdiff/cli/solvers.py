"""`fastdiff solvers`: every solver with its order, its evaluations per step, whether it draws, and where it is from."""

from __future__ import annotations

import inspect
import json
from typing import Any

import click

from . import CliError


@click.command("solvers")
@click.argument("words", nargs=-1, metavar="[WORD]...")
@click.option("--json", "as_json", is_flag=True, help="Everything, options with their defaults too, as a JSON list.")
def command(words: tuple[str, ...], as_json: bool) -> None:
    """List the solvers: with WORDs, those whose name or source holds all of them (`fastdiff solvers sde k-diffusion`).

    The order is that of convergence in the step size, of the moments for solvers that draw; "-" where there is none.
    A solver's own NAME shows it alone, with its options; they are given as those of `fastdiff.Sampler(solver=NAME)`.
    """
    from ..solvers import FACTS

    wanted = [word.lower() for word in words]
    chosen = [name for name in sorted(FACTS) if all(word in f"{name} {FACTS[name].source}".lower() for word in wanted)]
    if len(wanted) == 1 and wanted[0] in FACTS:
        chosen = wanted
    if not chosen:
        raise CliError(f"WORD: no solver's name or source holds {' and '.join(words)}")
    if as_json:
        click.echo(json.dumps([described(name) for name in chosen], indent=1))
        return
    rows = [("name", "order", "evaluations per step", "draws", "source"), *map(_row, chosen)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    if len(chosen) == 1:
        about = described(chosen[0])
        click.echo("options: " + (", ".join(f"{k}={v!r}" for k, v in about["options"].items()) or "none"))
        click.echo(f"\n{about['documentation']}")


def described(name: str) -> dict[str, Any]:
    """A solver's facts, its options with their defaults (None: has to be given) and its documentation, for JSON."""
    from ..solvers import FACTS, SOLVERS

    parameters = inspect.signature(SOLVERS[name]).parameters.values()
    options = {p.name: _plain(p.default) for p in parameters if p.kind is p.KEYWORD_ONLY}
    return {"name": name, **FACTS[name]._asdict(), "options": options, "documentation": inspect.getdoc(SOLVERS[name])}


def _plain(default: Any) -> Any:
    """A default as JSON can say it: inf as text, nothing as None."""
    if default is inspect.Parameter.empty:
        return None
    return str(default) if default in (float("inf"), float("-inf")) else default


def _row(name: str) -> tuple[str, ...]:
    from ..solvers import FACTS

    facts = FACTS[name]
    order = "-" if facts.order is None else str(facts.order)
    return name, order, facts.evaluations, "yes" if facts.stochastic else "no", facts.source
