"""Gains of methods on simulated cancers, and their weights of related and unrelated sources."""

import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from steph_jax.plots.style import (
    CATEGORIES,
    INK,
    new_figure,
    number,
    require_columns,
    save,
    shortened,
    signed,
    styled,
)

#: One per color of a simulation.
_MARKERS = "osD^vP*"


def simulated_truth(
    gains: pd.DataFrame, weights: pd.DataFrame, path: str | os.PathLike[str], title: str
) -> pathlib.Path:
    """Writes the picture of `simulated_truth_figure`; returns the path."""
    return save(simulated_truth_figure(gains, weights, title), path)


@styled
def simulated_truth_figure(gains: pd.DataFrame, weights: pd.DataFrame, title: str) -> Figure:
    """Gain of every method in every simulation, a panel per scenario; and the use of sources.

    A simulation has one color and marker; a black bar, with its value at the right, is the mean
    over simulations.

    Args:
        gains: columns scenario, method, seed and gain, the difference in test C-index to the
            reference method; scenarios and methods are drawn in the order of the rows.
        weights: columns method, seed, kind ("related" or "unrelated" sources) and used, the
            mean coefficient over test patients and sources of the kind; without rows, that
            panel is left out.
        title: of the picture.

    Raises:
        ValueError: if a column is missing, or there is no gain.
    """
    require_columns(gains, ("scenario", "method", "seed", "gain"), "gains")
    scenarios = list(dict.fromkeys(gains["scenario"]))
    num_panels = len(scenarios) + (not weights.empty)
    num_rows = max(gains["method"].nunique(), 2 * weights["method"].nunique(), 3)
    figure = new_figure(title, 1.0 + 3.7 * num_panels, 1.9 + 0.34 * num_rows)
    panels = figure.subplots(1, num_panels, squeeze=False)[0]
    seeds = sorted(set(gains["seed"]))

    reach = 1.1 * max(0.01, float(gains["gain"].abs().max()))
    for scenario, axes in zip(scenarios, panels, strict=False):
        rows = gains[gains["scenario"] == scenario]
        axes.axvline(0, color=INK, linewidth=1, zorder=1)
        _rows(axes, rows.assign(row=rows["method"], value=rows["gain"]), seeds, signed)
        axes.set_xlim(-reach, reach)
        axes.set_title(scenario)
        axes.set_xlabel("Gain in test C-index\n← worse        better →")
    if not weights.empty:
        require_columns(weights, ("method", "seed", "kind", "used"), "weights")
        axes, row = panels[-1], weights["method"] + ", " + weights["kind"]
        _rows(axes, weights.assign(row=row, value=weights["used"]), seeds, number)
        axes.set_xlim(0, 1.1 * max(0.01, float(weights["used"].max())))
        axes.set_title("Use of the sources")
        axes.set_xlabel("Mean coefficient of a source\non the test patients")

    styles = zip(seeds, _looks(len(seeds)), strict=True)
    keys = [
        Line2D([], [], color=color, marker=marker, linestyle="", label=f"simulation {seed}")
        for seed, (color, marker) in styles
    ]
    keys.append(
        Line2D([], [], color=INK, marker="|", markeredgewidth=2.2, linestyle="", label="mean")
    )
    figure.legend(handles=keys, loc="outside lower center", ncols=6, fontsize=8.5)
    return figure


def _looks(count: int) -> list[tuple[str, str]]:
    """Color and marker of each simulation."""
    return [(CATEGORIES[i % len(CATEGORIES)], _MARKERS[i % len(_MARKERS)]) for i in range(count)]


def _rows(
    axes: Axes, table: pd.DataFrame, seeds: Sequence[int], format_value: Callable[[float], str]
) -> None:
    """A row of points for each value of the column `row`, by the columns seed and value."""
    names = list(dict.fromkeys(table["row"]))
    for height, name in enumerate(names):
        points = table[table["row"] == name]
        for seed, (color, marker) in zip(seeds, _looks(len(seeds)), strict=True):
            values = points.loc[points["seed"] == seed, "value"].to_numpy(float)
            axes.plot(
                values,
                np.full(len(values), height),
                linestyle="",
                marker=marker,
                markersize=5.5,
                color=color,
                alpha=0.9,
                zorder=3,
            )
        mean = float(points["value"].mean())
        axes.plot(mean, height, marker="|", markersize=15, markeredgewidth=2.2, color=INK, zorder=2)
        axes.text(
            1.02,
            height,
            format_value(mean),
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=8.5,
        )
    axes.set_yticks(range(len(names)), [shortened(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
