"""What methods gain over the number of training patients."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from steph_jax.plots.style import (
    CATEGORIES,
    INK,
    label_lines,
    new_figure,
    require_columns,
    save,
    shortened,
    styled,
)

_COLUMNS = ("train_patients", "patients", "method", "against", "difference", "low", "high")
#: Shift of two lines' bars against each other, as a factor of the number of patients.
_SHIFT = 1.025
#: Room beside the smallest and the largest number, as a factor.
_MARGIN = 1.2


def learning_curve(gains: pd.DataFrame, path: str | os.PathLike[str], title: str) -> pathlib.Path:
    """Writes the picture of `learning_curve_figure`; returns the path."""
    return save(learning_curve_figure(gains, title), path)


@styled
def learning_curve_figure(gains: pd.DataFrame, title: str) -> Figure:
    """Differences in C-index over the number of training patients, with 95 % intervals.

    A panel for the differences to the reference, and one for those of methods to their controls.

    Args:
        gains: columns train_patients (0 = all), patients, method, against, difference, low and
            high; a control is an `against` of the form "method+control".
        title: of the picture.

    Raises:
        ValueError: a column is missing, or there is no row.
    """
    require_columns(gains, _COLUMNS, "gains")
    is_control = gains["against"].str.contains("+", regex=False)
    parts = [
        (text, rows)
        for text, rows in (("reference", gains[~is_control]), ("control", gains[is_control]))
        if len(rows)
    ]
    figure = new_figure(title, 1.0 + 5.2 * len(parts), 3.9)
    panels = figure.subplots(1, len(parts), squeeze=False, sharey=True)[0]
    bounds = gains[["low", "high"]].to_numpy(float)
    reach = 1.1 * max(0.01, float(np.nanmax(np.abs(bounds), initial=0.0)))
    for axes, (kind, rows) in zip(panels, parts, strict=True):
        axes.set_ylim(-reach, reach)
        _panel(axes, rows, kind)
    panels[0].set_ylabel("Gain in test C-index\n← worse        better →")
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, kind: str) -> None:
    axes.axhline(0, color=INK, linewidth=1, zorder=1)
    axes.set_xscale("log")
    # Set, and not a margin: with one number of patients there is no range to take a share of.
    axes.set_xlim(rows["patients"].min() / _MARGIN, rows["patients"].max() * _MARGIN)
    pairs = list(rows.groupby(["method", "against"], sort=False))
    ends, texts, colors = [], [], []
    for place, ((method, against), line) in enumerate(pairs):
        color = CATEGORIES[place % len(CATEGORIES)]
        x = line["patients"].to_numpy(float) * _SHIFT ** (place - (len(pairs) - 1) / 2)
        y = line["difference"].to_numpy(float)
        axes.plot(x, y, color=color, marker="o", markersize=4.5, zorder=3)
        axes.vlines(x, line["low"], line["high"], color=color, linewidth=1.1, alpha=0.7, zorder=2)
        last = np.flatnonzero(np.isfinite(y))
        if len(last):
            ends.append((float(x[last[-1]]), float(y[last[-1]])))
            texts.append(shortened(str(method if kind == "reference" else against)))
            colors.append(color)
    _ticks(axes, rows)
    if kind == "reference":
        axes.set_title(f"Gain over {shortened(str(rows['against'].iloc[0]))}")
    else:
        axes.set_title("Gain over the method's own control")
    axes.set_xlabel("Training patients of a fold")
    label_lines(axes, ends, texts, colors, gap=0.07)


def _ticks(axes: Axes, rows: pd.DataFrame) -> None:
    """A tick at each number of patients."""
    numbers = rows[["train_patients", "patients"]].drop_duplicates()
    texts: Sequence[str] = [
        f"{row.patients:.0f}" + ("" if row.train_patients else "\n(all)")
        for row in numbers.itertuples()
    ]
    axes.set_xticks(numbers["patients"].to_numpy(float), texts)
    axes.xaxis.set_minor_locator(NullLocator())
