"""Methods side by side: C-index per fold, and differences to a reference."""

import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from steph_jax.plots.style import (
    BLUE,
    CATEGORIES,
    FAINT,
    INK,
    ORANGE,
    chance_line,
    new_figure,
    number,
    require_columns,
    save,
    shortened,
    signed,
    styled,
)
from steph_jax.survival import metrics

#: One per color of a fold.
_MARKERS = "osD^vP*"


def folds(
    c_index: Mapping[str, Sequence[float]],
    path: str | os.PathLike[str],
    title: str,
    fold_numbers: Sequence[int] | None = None,
    mean_intervals: Mapping[str, tuple[float, float]] | None = None,
    patients: str = "test patients",
) -> pathlib.Path:
    """Writes the picture of `folds_figure`; returns the path."""
    return save(folds_figure(c_index, title, fold_numbers, mean_intervals, patients), path)


@styled
def folds_figure(
    c_index: Mapping[str, Sequence[float]],
    title: str,
    fold_numbers: Sequence[int] | None = None,
    mean_intervals: Mapping[str, tuple[float, float]] | None = None,
    patients: str = "test patients",
) -> Figure:
    """C-index per fold of one or several methods, with the mean and how far to trust it.

    That is the standard deviation (n - 1) over folds, or a 95 % interval where there is one.

    A fold has one color and marker; a line joins its points from method to method.

    Args:
        c_index: per method, in the order drawn, the C-index of each fold; NaN where a fold has
            none (mean and sd are then undefined too).
        title: of the picture.
        fold_numbers: what the folds are called; 0, 1, 2 and so on if left out.
        mean_intervals: 95 % interval (low, high) of the mean of every method.
        patients: whose C-index it is.

    Raises:
        ValueError: without a method or a fold, or if there is not one number per fold.
    """
    methods = list(c_index)
    num_folds = max((len(values) for values in c_index.values()), default=0)
    if not num_folds:
        raise ValueError("expected the C-index of at least one method and fold, found none")
    numbers = list(range(num_folds) if fold_numbers is None else fold_numbers)
    if len(numbers) != num_folds:
        raise ValueError(f"expected the numbers of {num_folds} folds, found {numbers}")
    table = np.full((len(methods), num_folds), np.nan)
    for row, method in enumerate(methods):
        table[row, : len(c_index[method])] = c_index[method]

    figure, axes = _rows(title, methods, extra=0.35)
    chance_line(axes, vertical=True)
    height = np.arange(len(methods))
    for fold in range(num_folds):
        color = CATEGORIES[fold] if num_folds <= len(CATEGORIES) else FAINT
        marker = _MARKERS[fold] if num_folds <= len(CATEGORIES) else "o"
        axes.plot(table[:, fold], height, color=color, linewidth=0.8, alpha=0.45, zorder=2)
        axes.plot(
            table[:, fold],
            height,
            linestyle="",
            marker=marker,
            markersize=5.5,
            color=color,
            alpha=0.9,
            label=f"fold {numbers[fold]}",
            zorder=3,
        )
    summary = "mean ± sd" if mean_intervals is None else "mean [95 % interval]"
    for row, method in enumerate(methods):
        mean, sd = metrics.mean_sd(c_index[method])
        if mean_intervals is None:
            low, high = mean - sd, mean + sd
            _row_text(
                axes, row, f"{number(mean)} ± {number(sd)}" if np.isfinite(sd) else number(mean)
            )
        else:
            low, high = mean_intervals[method]
            _row_text(axes, row, f"{number(mean)} [{number(low)}, {number(high)}]")
        if num_folds > 1 or mean_intervals is not None:
            below = row + 0.28
            axes.plot([low, high], [below, below], color=INK, linewidth=1.4, zorder=4)
            axes.plot(mean, below, marker="|", markersize=9, markeredgewidth=2.2, color=INK)
    _heading(axes, summary if num_folds > 1 or mean_intervals is not None else "C-index")
    axes.set_xlabel(f"C-index on the {patients} (0.5 = chance)")
    handles, labels = axes.get_legend_handles_labels()
    if num_folds > len(CATEGORIES):
        handles, labels = [Line2D([], [], color=FAINT, marker="o")], ["one fold"]
    if num_folds > 1 or mean_intervals is not None:
        handles.append(Line2D([], [], color=INK, marker="|", markersize=8, markeredgewidth=2))
        labels.append(summary)
    columns = 4 if len(labels) > 6 else 6
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8.5)
    return figure


def intervals(
    table: pd.DataFrame,
    path: str | os.PathLike[str],
    title: str,
    reference: str,
    per_fold: pd.DataFrame | None = None,
) -> pathlib.Path:
    """Writes the picture of `intervals_figure`; returns the path."""
    return save(intervals_figure(table, title, reference, per_fold), path)


@styled
def intervals_figure(
    table: pd.DataFrame, title: str, reference: str, per_fold: pd.DataFrame | None = None
) -> Figure:
    """Paired differences in C-index to a reference method, with their 95 % intervals.

    Intervals that hold zero are gray: such a difference is within the noise of patients.

    Args:
        table: columns method, difference, low, high; NaN where undefined.
        title: of the picture.
        reference: name of the method that the others are compared with.
        per_fold: columns method and difference, one row per fold: the small circles.

    Raises:
        ValueError: if a column is missing, or there is no method.
    """
    require_columns(table, ("method", "difference", "low", "high"), "differences")
    if per_fold is not None:
        require_columns(per_fold, ("method", "difference"), "differences per fold")
    methods = [str(name) for name in table["method"]]
    figure, axes = _rows(title, methods, extra=0.35)
    axes.axvline(0, color=INK, linewidth=1, zorder=1)
    rows = table[["difference", "low", "high"]].to_numpy(float)
    for row, (method, (mean, low, high)) in enumerate(zip(methods, rows, strict=True)):
        color = ORANGE if high < 0 else BLUE if low > 0 else "#777777"
        axes.plot([low, high], [row, row], color=color, linewidth=2.2, zorder=2)
        axes.plot(mean, row, marker="s", markersize=6.5, color=color, zorder=4)
        if per_fold is not None:
            points = per_fold.loc[per_fold["method"] == method, "difference"].to_numpy(float)
            axes.scatter(
                points,
                np.full(len(points), row + 0.27),
                s=16,
                facecolor="none",
                edgecolor=color,
                linewidth=0.9,
                zorder=3,
            )
        interval = f"[{signed(low)}, {signed(high)}]"
        _row_text(axes, row, f"{signed(mean)}  {interval}")
    _heading(axes, "difference  [95 % interval]")
    reach = max(0.01, *np.abs(np.nan_to_num(axes.get_xlim())).tolist())
    axes.set_xlim(-reach, reach)
    axes.set_xlabel(f"Difference in C-index to {reference}\n← worse        better →")
    keys = [
        Line2D([], [], color=INK, marker="s", markersize=6, label="all patients, 95 % interval")
    ]
    if per_fold is not None:
        keys.append(
            Line2D([], [], color=INK, marker="o", linestyle="", fillstyle="none", label="one fold")
        )
    keys.append(
        Line2D([], [], color="#777777", linewidth=2.2, label="within the noise of patients")
    )
    figure.legend(handles=keys, loc="outside lower center", ncols=3, fontsize=8.5)
    return figure


def _rows(title: str, methods: Sequence[str], extra: float) -> tuple[Figure, Axes]:
    """A figure with one row per method, from top to bottom."""
    figure = new_figure(title, 7.5, 1.6 + extra + 0.42 * max(2, len(methods)))
    axes = figure.subplots()
    axes.set_yticks(range(len(methods)), [shortened(name) for name in methods])
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    return figure, axes


def _row_text(axes: Axes, row: int, text: str) -> None:
    """A text right of a row."""
    axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8.5)


def _heading(axes: Axes, text: str) -> None:
    """The heading over the texts right of the rows."""
    axes.annotate(
        text, xy=(1.02, 1.01), xycoords="axes fraction", va="bottom", fontsize=8.5, color="#555555"
    )
