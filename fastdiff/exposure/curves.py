"""Drift as pictures: the curves of the exposure-bias papers, sampling running from right to left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..plots import COLOURS, panels, png
from .drift import Drift

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]


def draw(drifts: Mapping[str, Drift], *, title: str = "") -> bytes:
    """Six panels against the step: |eps|, its ratio, the variance error, delta_t, the error of x_0, Shapiro-Wilk's W.

    The horizontal axis counts the steps that are left, as in the papers: N, the noisiest level, is at the right edge,
    sampling runs to the left, and 0 is the final state. Bars are two standard errors.

    Args:
        drifts: name -> drift, for instance of one sampler with and without epsilon scaling; "" for a single one. The
            noise levels along the upper edges are those of the one with the most steps.
        title: above the panels.

    Returns:
        A PNG file.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; the message says how to install it.
        ValueError: no drift is given.
    """
    if not drifts:
        raise ValueError("drifts must hold at least one drift, got none")
    figure, axes = panels(6, columns=3)
    norm, ratio, variance, delta, error, normal = axes
    for i, (name, drift) in enumerate(drifts.items()):
        colour = COLOURS[i % len(COLOURS)]
        single = len(drifts) == 1
        on_data: dict[str, Any] = {"color": COLOURS[1] if single else colour, "linestyle": "--", "marker": "o"}
        main: dict[str, Any] = {"color": colour, "marker": "^"}

        def label(text: str, name: str = name) -> str:
            return f"{name}, {text}" if name else text

        _line(norm, drift, "eps_norm_data", label("noised data, single step"), **on_data)
        _line(norm, drift, "eps_norm_sampling", label("sampling"), **main)
        if not np.allclose(drift.eps_norm_applied, drift.eps_norm_sampling, rtol=1e-3, equal_nan=True):
            _line(
                norm, drift, "eps_norm_applied", label("sampling, as applied"), color=colour, linestyle=":", marker="v"
            )
        _line(ratio, drift, "ratio", name, less=1.0, **main)
        _line(variance, drift, "variance_error_relative", name, **main)
        _line(delta, drift, "delta_marginal", label("marginal"), **main)
        _line(delta, drift, "delta", label("against its own datum (the paper's)"), **on_data)
        _line(error, drift, "x0_error", name, **main)
        _line(normal, drift, "shapiro_w", name, **main)
    _say(norm, "Norm of the predicted noise", r"$\|\epsilon_\theta\|_2$")
    _say(ratio, "Ratio of the norms, sampling to noised data", "ratio - 1", 0.0)
    ratio.set_yscale("symlog", linthresh=0.01)  # the last levels' ratios are far from 1, and the first ones' matter
    _say(
        variance,
        "Variance of the state against noised data",
        r"$(\mathrm{Var}\,\hat x-\mathrm{Var}\,x)\,/\,\mathrm{Var}\,x$",
        0.0,
    )
    _say(delta, r"Exposure bias $\delta_t$", r"$\delta_t$")
    delta.set_yscale("log")
    _say(error, "Single-step error of the prediction", r"RMS of $\hat x_0-x_0$")
    _say(normal, "Normality of the prediction error", "Shapiro-Wilk W")
    if all(np.isnan(drift.shapiro_w).all() for drift in drifts.values()):
        normal.text(0.5, 0.5, "not tested", transform=normal.transAxes, ha="center", color="0.5")
    longest = max(drifts.values(), key=lambda drift: drift.steps)
    for ax in axes:
        _sigmas(ax, longest)
        if len(ax.get_legend_handles_labels()[1]):
            ax.legend(fontsize=7, frameon=False)
    if title:
        figure.suptitle(title, fontsize=11)
    return png(figure)


def _line(ax: Axes, drift: Drift, column: str, label: str, less: float = 0.0, **style: Any) -> None:
    values, error = getattr(drift, column) - less, getattr(drift, f"{column}_se", None)
    known = ~np.isnan(values)
    bars = None if error is None else 2 * np.nan_to_num(error[known])
    # A leading underscore keeps a line out of the legend.
    ax.errorbar(
        drift.timestep[known], values[known], bars, label=label or "_", markersize=4, linewidth=1.4, capsize=2, **style
    )


def _say(ax: Axes, title: str, quantity: str, level: float | None = None) -> None:
    ax.set_title(title, fontsize=9)
    ax.set_ylabel(quantity, fontsize=9)
    ax.set_xlabel("steps left   (sampling runs from right to left)", fontsize=8)
    ax.tick_params(labelsize=8)
    if level is not None:
        ax.axhline(level, color="0.4", linewidth=0.8, zorder=0)


def _sigmas(ax: Axes, drift: Drift) -> None:
    """Steps as whole numbers, and the noise level of some of them along the upper edge."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlim(-0.4, drift.steps + 0.4)
    chosen = np.unique(np.linspace(0, drift.steps, min(drift.steps + 1, 6)).round().astype(int))
    top = ax.secondary_xaxis("top")
    top.set_xticks(drift.timestep[chosen], [f"{sigma:.2g}" for sigma in drift.sigma[chosen]], fontsize=6)
    top.tick_params(length=2, pad=1, colors="0.4")
    top.spines["top"].set_visible(False)
