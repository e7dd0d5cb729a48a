"""What methods gain on each of several cohorts, and over all of them."""

import os
import pathlib

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from steph_jax.plots.style import (
    BLUE,
    INK,
    ORANGE,
    new_figure,
    require_columns,
    save,
    shortened,
    signed,
    styled,
)

_COLUMNS = ("method", "against", "dataset", "difference", "low", "high", "weight")
_MEANS = ("method", "against", "mean", "low", "high")
_PANELS_A_ROW = 3
_GRAY = "#777777"


def forest(
    cohorts: pd.DataFrame, means: pd.DataFrame, path: str | os.PathLike[str], title: str
) -> pathlib.Path:
    """Writes the picture of `forest_figure`; returns the path."""
    return save(forest_figure(cohorts, means, title), path)


@styled
def forest_figure(cohorts: pd.DataFrame, means: pd.DataFrame, title: str) -> Figure:
    """Forest plot: a panel for each comparison, a row for each cohort, the mean below.

    Squares grow with the weight of a cohort in the mean, lines and the diamond are 95 % intervals.
    An interval of a mean that holds zero is gray.

    Args:
        cohorts: columns method, against, dataset, difference, low, high, and weight in [0, 1].
        means: columns method, against, mean, low, high, a row for each comparison in the order
            drawn.
        title: of the picture.

    Raises:
        ValueError: a column is missing, or there is no row.
    """
    require_columns(cohorts, _COLUMNS, "cohorts")
    require_columns(means, _MEANS, "means")
    if not len(means):
        raise ValueError("expected one comparison at least, found none")
    names = list(dict.fromkeys(cohorts["dataset"].astype(str)))
    columns = min(_PANELS_A_ROW, len(means))
    rows = -(-len(means) // columns)
    height = 1.4 + rows * (1.0 + 0.24 * (len(names) + 1))
    figure = new_figure(title, 1.6 + 3.1 * columns, height)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    bounds = np.concatenate([t[["low", "high"]].to_numpy(float).ravel() for t in (cohorts, means)])
    reach = 1.1 * max(0.01, float(np.nanmax(np.abs(bounds), initial=0.0)))
    panels[0, 0].set_xlim(-reach, reach)
    panels[0, 0].xaxis.set_major_locator(MaxNLocator(5, symmetric=True))
    panels[0, 0].set_ylim(len(names) + 0.6, -0.6)
    panels[0, 0].set_yticks(
        range(len(names) + 1), [*(shortened(name) for name in names), "all cohorts"]
    )
    flat = panels.ravel()
    pairs = zip(means["method"], means["against"], strict=True)
    ends = means[["mean", "low", "high"]].to_numpy(float)
    for axes, (method, against), mean in zip(flat, pairs, ends, strict=False):
        is_shown = (cohorts["method"] == method) & (cohorts["against"] == against)
        _panel(axes, cohorts[is_shown].set_index("dataset"), mean, names)
        axes.set_title(
            f"{shortened(str(method))} less {shortened(str(against))}\n"
            f"{signed(mean[0])} [{signed(mean[1])}, {signed(mean[2])}]",
            fontsize=8.5,
        )
    for axes in flat[len(means) :]:
        axes.set_visible(False)
    # The lowest panel of a column has the ticks, though a hidden one may lie below it.
    for axes in flat[max(0, len(means) - columns) : len(means)]:
        axes.tick_params(axis="x", labelbottom=True)
        axes.set_xlabel("Difference in C-index\n← worse        better →")
    return figure


def _panel(axes: Axes, cohorts: pd.DataFrame, mean: np.ndarray, names: list[str]) -> None:
    axes.axvline(0, color=INK, linewidth=1, zorder=1)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    most = max(float(cohorts["weight"].max()), 1e-9)
    columns = ["difference", "low", "high", "weight"]
    for dataset, values in zip(cohorts.index, cohorts[columns].to_numpy(float), strict=True):
        value, low, high, weight = values
        row = names.index(str(dataset))
        axes.plot([low, high], [row, row], color=INK, linewidth=1.1, zorder=2)
        size = 3 + 4 * np.sqrt(weight / most)
        axes.plot(value, row, marker="s", markersize=size, color=INK, zorder=3)
    middle, low, high = mean.tolist()
    color = ORANGE if high < 0 else BLUE if low > 0 else _GRAY
    row = len(names)
    axes.fill([low, middle, high, middle], [row, row - 0.28, row, row + 0.28], color=color)
    axes.axhline(row - 0.5, color=_GRAY, linewidth=0.6)
