"""What a sweep found: a tidy CSV, means with paired errors, the best of every method, plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..exposure.resampling import mean_and_error
from ..files import atomic_path
from .cells import Cell
from .runner import Result

__all__ = ["METHODS", "Summary", "best", "best_table", "csv_text", "row", "summarise", "write_report"]

_COLUMNS = (
    "solver", "steps", "nfe", "S_churn", "w_1st", "w_2nd", "epsilon_scale", "range", "first_seed", "samples",
    "frechet", "precision", "recall", "key",
)  # fmt: skip
_HEAD = ("", "NFE", "lambda", "w_1st", "w_2nd", "distance", "precision", "recall", "ratio to EDM", "errors below 1")

METHODS: dict[str, Callable[[Cell], bool]] = {
    "EDM": lambda cell: cell == cell.baseline,
    "EDM-ES": lambda cell: cell.epsilon_scale != 1 and not cell.guided,
    "EDM-G++": lambda cell: cell.epsilon_scale == 1 and cell.guided,
    "SEDM-G++": lambda cell: cell.epsilon_scale != 1 and cell.guided,
}


@dataclass(frozen=True)
class Summary:
    """One setting over all its ranges; errors are standard errors of means, None for a single range.

    Attributes:
        setting: its cell of range 0.
        frechet, frechet_error: the distance's mean; None where a range was not finite.
        ratio, ratio_error: of the distance to the baseline's on the same seeds, range by range; None without one.
    """

    setting: Cell
    nfe: int
    ranges: int
    frechet: float | None
    frechet_error: float | None
    precision: float | None
    recall: float | None
    ratio: float | None
    ratio_error: float | None

    @property
    def errors_below_one(self) -> float | None:
        """How many standard errors the ratio lies below 1; negative: above."""
        if self.ratio is None or not self.ratio_error:
            return None
        return (1 - self.ratio) / self.ratio_error


def summarise(results: Sequence[Result]) -> list[Summary]:
    """One summary of every setting, in the order in which they come."""
    by_cell = {result.cell: result for result in results}
    groups: dict[Cell, list[Result]] = {}
    for result in results:
        groups.setdefault(result.cell.setting, []).append(result)
    return [_summary(setting, group, by_cell) for setting, group in groups.items()]


def best(summaries: Sequence[Summary], method: str, solver: str, steps: int, S_churn: float = 0.0) -> Summary | None:
    """The lowest mean distance of one method of `METHODS` with one sampler; None if there is none."""
    found = [
        summary
        for summary in summaries
        if (s := summary.setting).solver == solver and s.steps == steps and s.S_churn == S_churn
        if METHODS[method](s) and summary.frechet is not None
    ]
    return min(found, key=lambda summary: summary.frechet or 0.0, default=None)


def best_table(summaries: Sequence[Summary]) -> str:
    """Markdown: for every sampler EDM and the best EDM-ES, EDM-G++ and SEDM-G++ of the grid, recall beside distance."""
    lines = []
    samplers = dict.fromkeys((s.setting.solver, s.setting.steps, s.setting.S_churn) for s in summaries)
    for solver, steps, churn in samplers:
        rows = [(name, found) for name in METHODS if (found := best(summaries, name, solver, steps, churn))]
        title = f"{solver.capitalize()}, {steps} steps" + (f", S_churn {churn:g}" if churn else "")
        lines += [f"### {title}", "", *_header(), *(row(name, found) for name, found in rows), ""]
    return "\n".join(lines)


def row(name: str, summary: Summary) -> str:
    """A line of a Markdown table, for the columns of `best_table`."""
    cell = summary.setting
    weights = (f"{cell.w_1st:g}", f"{cell.w_2nd:g}") if cell.guided else ("", "")
    below = summary.errors_below_one
    cells = [name, str(summary.nfe), f"{cell.epsilon_scale:.6g}", *weights]
    cells.append(_with_error(summary.frechet, summary.frechet_error))
    cells += ["" if value is None else f"{value:.3f}" for value in (summary.precision, summary.recall)]
    cells.append("" if cell == cell.baseline else _with_error(summary.ratio, summary.ratio_error))
    cells.append("" if below is None or cell == cell.baseline else f"{below:.1f}")
    return f"| {' | '.join(cells)} |"


def csv_text(results: Sequence[Result]) -> str:
    """A tidy CSV: one line for every cell, nothing that differs from run to run."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for result in results:
        cell = result.cell
        scores = ["" if v is None else repr(v) for v in (result.frechet, result.precision, result.recall)]
        axes = (
            cell.solver,
            cell.steps,
            result.nfe,
            cell.S_churn,
            cell.w_1st,
            cell.w_2nd,
            cell.epsilon_scale,
            cell.range,
        )
        writer.writerow([*axes, *result.seeds, *scores, result.key])
    return buffer.getvalue()


def write_report(results: Sequence[Result], folder: str | Path) -> list[Path]:
    """Write sweep.csv, best.md and, where matplotlib is installed, the plots.

    Returns:
        The files written.

    Raises:
        OSError: a file cannot be written.
    """
    from .plots import pictures

    summaries = summarise(results)
    contents: dict[str, bytes] = {
        "sweep.csv": csv_text(results).encode(),
        "best.md": f"{best_table(summaries)}\n{CAPTION}".encode(),
        **pictures(summaries),
    }
    written = []
    for name, content in contents.items():
        path = Path(folder) / name
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
        written.append(path)
    return written


CAPTION = """\
Means over the seed ranges with their standard errors. The ratio is the mean over the ranges of the distance divided
by EDM's on the same seeds; the last column is how many of its standard errors it lies below 1. The best of a grid is
chosen on the seeds it is shown on, so it is somewhat too good. A lower distance may be precision bought with recall.
"""


def _header() -> list[str]:
    return [f"| {' | '.join(_HEAD)} |", f"|{'---|' * len(_HEAD)}"]


def _summary(setting: Cell, group: Sequence[Result], by_cell: dict[Cell, Result]) -> Summary:
    numbers: dict[str, tuple[float | None, float | None]] = {}
    for name in ("frechet", "precision", "recall"):
        values = [getattr(result, name) for result in group]
        numbers[name] = (None, None) if None in values else mean_and_error(values)
    ratios = []
    for result in group:
        base = by_cell.get(result.cell.baseline)
        if base is not None and base.frechet and result.frechet is not None:
            ratios.append(result.frechet / base.frechet)
    ratio = mean_and_error(ratios) if len(ratios) == len(group) else (None, None)
    precision, recall = numbers["precision"][0], numbers["recall"][0]
    return Summary(setting, group[0].nfe, len(group), *numbers["frechet"], precision, recall, *ratio)


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return "not finite"
    return f"{value:.3f}" + ("" if error is None else f" ± {error:.3f}")
