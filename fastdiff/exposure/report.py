"""A calibration as a table to read: recall stands beside every distance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .resampling import mean_and_error
from .schedules import LinearScale

if TYPE_CHECKING:
    from .choice import Calibration, Candidate, Scale

__all__ = ["report", "short"]


def short(scale: Scale) -> str:
    """A lambda in a few characters."""
    if isinstance(scale, LinearScale):
        return f"{scale.b:.5g} {'-' if scale.k < 0 else '+'} {abs(scale.k):.4g} i"
    if isinstance(scale, tuple):
        return f"{min(scale):.4g} to {max(scale):.4g}"
    return f"{scale:.6g}"


def report(calibration: Calibration) -> str:
    """The table, the choice with its errors, and what is to be said against it."""
    baseline = calibration.baseline
    head = ("lambda", "distance", "against lambda = 1", "precision", "recall")
    lines = [head, *(_line(row, baseline, row is calibration.chosen) for row in calibration.table)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    about = calibration.configuration
    title = f"lambda by {calibration.method}"
    if about:
        title += f": {about.get('solver')}, {about.get('steps')} steps, seeds {' and '.join(about.get('seeds', ()))}"
    return "\n".join([title, *table, *_verdict(calibration)])


def _line(row: Candidate, baseline: Candidate, chosen: bool) -> tuple[str, ...]:
    if not math.isfinite(row.mean):
        return short(row.epsilon_scale), "not finite", "", "", ""
    difference, error = mean_and_error(np.subtract(row.frechet, baseline.frechet).tolist())
    against = "" if row is baseline else f"{100 * difference / baseline.mean:+.1f}"
    if against and error is not None:
        against += f" +- {100 * error / baseline.mean:.1f}"
    return (
        ("* " if chosen else "") + short(row.epsilon_scale),
        f"{row.mean:.4g}" + ("" if row.standard_error is None else f" +- {row.standard_error:.2g}"),
        f"{against} %" if against else "",
        f"{np.mean(row.precision):.3f}",
        f"{np.mean(row.recall):.3f}",
    )


def _verdict(calibration: Calibration) -> list[str]:
    chosen, baseline = calibration.chosen, calibration.baseline
    errors = ", ".join(f"{name} +- {error:.2g}" for name, error in calibration.errors.items())
    text = f"chosen: lambda = {short(calibration.epsilon_scale)}"
    if calibration.interval is not None:
        low, high = calibration.interval
        text += f" (95 %: {low:.4g} to {high:.4g})"
    elif errors:
        text += f" ({errors})"
    lines = [text]
    if calibration.refused:
        lines.append("the matched schedule was worse than lambda = 1 and was refused")
    elif chosen is baseline:
        lines.append("no candidate was better than lambda = 1")
    elif calibration.distinguishable is None:
        lines.append("whether it differs from lambda = 1 is not known: errors need two or more ranges of seeds")
    else:
        change = f"{calibration.difference:+.3g} +- {calibration.difference_error:.2g}"
        where = "" if calibration.method == "norm" else " on held-out ranges"
        verb = "differs" if calibration.distinguishable else "IS NOT DISTINGUISHABLE"
        lines.append(f"it {verb} from lambda = 1{where}: {change} in distance")
    if chosen is not baseline:
        gained = [np.mean(getattr(chosen, name)) - np.mean(getattr(baseline, name)) for name in ("precision", "recall")]
        lines.append(f"precision {gained[0]:+.3f}, recall {gained[1]:+.3f} against lambda = 1")
    constants = [row for row in calibration.table if isinstance(row.epsilon_scale, float)]
    best = min(constants, key=lambda row: row.mean)
    if isinstance(calibration.epsilon_scale, LinearScale):
        worse, error = mean_and_error(np.subtract(chosen.frechet, best.frechet).tolist())
        text = f"{worse:+.3g}" + ("" if error is None else f" +- {error:.2g}")
        lines.append(f"against the best constant, {short(best.epsilon_scale)}: {text} in distance")
    if calibration.edge:
        lines.append("it is the end of its grid: a better one may lie beyond")
    return lines
