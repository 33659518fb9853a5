"""Pictures of results: figures that need no display and leave no global state, as PNG bytes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "new_figure", "panels", "png"]

COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#444444")
"""Okabe and Ito's, told apart by colour-blind readers too, in the order in which series are drawn."""


def new_figure(width: float = 6.4, height: float = 4.8) -> Figure:
    """An empty matplotlib figure for the Agg renderer; pyplot is not touched.

    Args:
        width, height: in inches.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; the message says how to install it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"plots need matplotlib: pip install 'fastdiff[plots]' ({error})", name=error.name
        ) from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panels(count: int, columns: int = 2, width: float = 5.2, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """A figure of `count` axes in rows of `columns`, with a light grid and without the upper and right edges.

    Args:
        count: number of axes, at least 1.
        columns: of one row.
        width, height: of one panel in inches.

    Returns:
        The figure and its axes, row by row.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = new_figure(columns * width, rows * height)
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    for ax in axes:
        ax.grid(color="0.85", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["right", "top"]].set_visible(False)
    return figure, axes


def png(figure: Figure, dpi: int = 130) -> bytes:
    """The figure as a PNG file; the same figure gives the same bytes.

    Args:
        dpi: pixels per inch.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
