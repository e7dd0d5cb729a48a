"""Whether predicted probabilities are right: calibration at some times, and D-calibration."""

import math
import os
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from steph_jax.plots.style import BLUE, FAINT, INK, new_figure, number, save, signed, styled

_COLUMNS = 2


def calibration(
    horizons: Mapping[str, Mapping[str, Any]],
    shares: Sequence[float],
    path: str | os.PathLike[str],
    title: str,
) -> pathlib.Path:
    """Writes the picture of `calibration_figure`; returns the path."""
    return save(calibration_figure(horizons, shares, title), path)


@styled
def calibration_figure(
    horizons: Mapping[str, Mapping[str, Any]], shares: Sequence[float], title: str
) -> Figure:
    """Predicted against observed survival at some years, and D-calibration.

    A point is a fifth of the patients by predicted survival: its mean prediction, and the
    Kaplan-Meier estimate with its 95 % band. On the diagonal, predictions are right; below it they
    promise too much. The last panel has the share of the patients in each tenth of the predicted
    survival at their own time: 10 % each where predictions are right.

    Args:
        horizons: year -> "fifths" (list of predicted, observed, ci95), "slope", "in_the_large", or
            "missing" with the reason as a text, which is written in place of the points.
        shares: [10] of D-calibration.
        title: of the picture.
    """
    rows = math.ceil((len(horizons) + 1) / _COLUMNS)  # two beside each other, as a phone shows them
    figure = new_figure(title, 3.2 * _COLUMNS, 3.1 * rows + 0.3)
    panels = figure.subplots(rows, _COLUMNS).ravel()
    for unused in panels[len(horizons) + 1 :]:
        unused.set_axis_off()
    for axes, (year, horizon) in zip(panels, horizons.items(), strict=False):
        axes.set_title(f"{year} year{'' if year == '1' else 's'}")
        _diagonal(axes)
        if "fifths" not in horizon:
            axes.text(
                0.5, 0.5, textwrap.fill(horizon["missing"], 24), ha="center", va="center", color=INK
            )
            continue
        _fifths(axes, horizon["fifths"])
        axes.text(0.97, 0.04, _key(horizon), ha="right", va="bottom", fontsize=8, color=INK)
    _shares(panels[len(horizons)], shares)
    return figure


def _diagonal(axes: Axes) -> None:
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("Predicted survival")
    axes.set_ylabel("Observed survival")


def _fifths(axes: Axes, fifths: Sequence[Mapping[str, Any]]) -> None:
    x = np.array([fifth["predicted"] for fifth in fifths])
    y = np.array([fifth["observed"] for fifth in fifths])
    ends = np.array([fifth["ci95"] or [fifth["observed"]] * 2 for fifth in fifths])
    axes.vlines(x, ends[:, 0], ends[:, 1], color=BLUE, linewidth=1.2)
    axes.plot(x, y, color=BLUE, marker="o", markersize=4.5, linewidth=1)


def _key(horizon: Mapping[str, Any]) -> str:
    slope = horizon["slope"]
    lines = [f"slope {number(slope['value'], 2)}" if slope else "slope n/a"]
    return "\n".join([*lines, f"in the large {signed(horizon['in_the_large'], 2)}"])


def _shares(axes: Axes, shares: Sequence[float]) -> None:
    axes.bar(np.arange(len(shares)) + 0.5, shares, width=0.86, color=BLUE)
    axes.axhline(1 / len(shares), color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlim(0, len(shares))
    axes.set_xticks([0, len(shares) / 2, len(shares)], ["0 %", "50 %", "100 %"])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("Predicted survival at the own time")
    axes.set_ylabel("Patients")
    axes.set_title("D-calibration")
