"""The plots of a sweep: distance and recall against lambda for each weight, and against weight for each step count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import warn
from ..plots import COLOURS, panels, png
from .report import Summary, best

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["against_lambda", "against_weight", "pictures"]


def pictures(summaries: Sequence[Summary]) -> dict[str, bytes]:
    """The PNG files that the grid gives material for, by name; none where matplotlib is not installed."""
    found: dict[str, bytes] = {}
    solvers = dict.fromkeys((s.setting.solver, s.setting.S_churn) for s in summaries)
    try:
        for solver, churn in solvers:
            mine = [s for s in summaries if (s.setting.solver, s.setting.S_churn) == (solver, churn)]
            name = f"{solver}_churn{churn:g}" if churn else solver
            if len({s.setting.epsilon_scale for s in mine}) > 1:
                found[f"lambda_{name}.png"] = against_lambda(mine)
            if len({s.setting.w_1st for s in mine}) > 1:
                found[f"weight_{name}.png"] = against_weight(mine)
    except ModuleNotFoundError as error:
        warn(f"plots were not drawn: {error}")
        return {}
    return found


def against_lambda(summaries: Sequence[Summary]) -> bytes:
    """One column for each number of steps; above the distance against lambda, below it recall; one line a weight."""
    columns = sorted({s.setting.steps for s in summaries})
    weights = sorted({(s.setting.w_1st, s.setting.w_2nd) for s in summaries})
    figure, axes = panels(2 * len(columns), len(columns), 3.6, 2.9)
    for i, steps in enumerate(columns):
        for j, weight in enumerate(weights):
            line = [s for s in summaries if s.setting.steps == steps and _weights(s) == weight]
            if not line:
                continue
            label = "no guidance" if weight == (0, 0) else _named(weight)
            for ax, pick in ((axes[i], _distance), (axes[i + len(columns)], _recall)):
                _line(ax, line, lambda s: s.setting.epsilon_scale, pick, COLOURS[j % len(COLOURS)], label)
        nfe = next(s.nfe for s in summaries if s.setting.steps == steps)
        axes[i].set_title(f"{summaries[0].setting.solver.capitalize()}, {steps} steps, {nfe} NFE", fontsize=10)
        axes[i + len(columns)].set_xlabel("lambda")
        for ax in (axes[i], axes[i + len(columns)]):
            ax.axvline(1.0, color="0.6", linewidth=0.8, linestyle=":")
    return _finish(figure, axes, len(columns))


def against_weight(summaries: Sequence[Summary]) -> bytes:
    """Distance and recall against w_1st, one line for each number of steps: at lambda = 1, dashed at the best."""
    figure, axes = panels(2, 2, 4.6, 3.4)
    for j, steps in enumerate(sorted({s.setting.steps for s in summaries})):
        mine = [s for s in summaries if s.setting.steps == steps and s.setting.w_2nd == 0]
        scaled = best(mine, "SEDM-G++", mine[0].setting.solver, steps, mine[0].setting.S_churn) if mine else None
        scales = [1.0] if scaled is None else [1.0, scaled.setting.epsilon_scale]
        for scale, style in zip(scales, ("-", "--")):
            line = [s for s in mine if s.setting.epsilon_scale == scale]
            label = f"{steps} steps" + ("" if scale == 1 else f", lambda {scale:.4g}")
            for ax, pick in ((axes[0], _distance), (axes[1], _recall)):
                _line(ax, line, lambda s: s.setting.w_1st, pick, COLOURS[j % len(COLOURS)], label, style)
    for ax in axes:
        ax.set_xlabel("w_1st")
    axes[0].set_title(summaries[0].setting.solver.capitalize(), fontsize=10)
    return _finish(figure, axes, 1)


def _finish(figure: Any, axes: Sequence[Axes], columns: int) -> bytes:
    """Names of the vertical axes, one legend, a logarithmic distance where it spans much."""
    axes[0].set_ylabel("Frechet distance")
    axes[columns].set_ylabel("recall")
    from matplotlib.ticker import LogLocator, NullFormatter

    for ax in axes[:columns]:
        low, high = ax.dataLim.intervaly
        if low > 0 and high > 4 * low:
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter(NullFormatter())
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, loc="outside right upper")  # beside the lines, not on them
    return png(figure)


def _line(
    ax: Axes,
    line: Sequence[Summary],
    where: Callable[[Summary], float],
    pick: Callable[[Summary], tuple[float | None, float | None]],
    colour: str,
    label: str,
    style: str = "-",
) -> None:
    points = sorted((where(s), *pick(s)) for s in line if pick(s)[0] is not None)
    if points:
        x, y, error = zip(*points)
        bars = None if None in error else error
        ax.errorbar(
            x, y, bars, color=colour, label=label, linestyle=style, marker="o", markersize=3, linewidth=1.2, capsize=2
        )


def _weights(summary: Summary) -> tuple[float, float]:
    return summary.setting.w_1st, summary.setting.w_2nd


def _named(weight: tuple[float, float]) -> str:
    return f"w_1st {weight[0]:g}" + (f", w_2nd {weight[1]:g}" if weight[1] else "")


def _distance(summary: Summary) -> tuple[float | None, float | None]:
    return summary.frechet, summary.frechet_error


def _recall(summary: Summary) -> tuple[float | None, float | None]:
    return summary.recall, None
