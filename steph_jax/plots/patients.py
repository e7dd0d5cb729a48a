"""What predictions mean for patients: risk groups and survival curves."""

import os
import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from steph_jax.plots.style import (
    BLUE,
    FAINT,
    INK,
    ORANGE,
    label_lines,
    new_figure,
    number,
    p_value,
    require_columns,
    save,
    styled,
)
from steph_jax.survival import metrics
from steph_jax.survival.time_bins import DAYS_PER_YEAR


def risk_groups(
    predictions: pd.DataFrame, path: str | os.PathLike[str], title: str
) -> pathlib.Path:
    """Writes the picture of `risk_groups_figure`; returns the path."""
    return save(risk_groups_figure(predictions, title), path)


@styled
def risk_groups_figure(predictions: pd.DataFrame, title: str) -> Figure:
    """Kaplan-Meier curves of patients of high and of low risk, with 95 % bands.

    The C-index is the mean (and standard deviation) over folds where there are several, since risks
    of two models are not comparable. The log-rank p compares the two groups of one fold. Groups of
    several folds have none: each patient is grouped by a model that was trained on patients of the
    other folds, so the groups depend on each other's outcomes and the test would reject equal
    groups too often (Simon et al. 2011).

    Args:
        predictions: columns patient_id, t (days), e (0/1) and risk (higher = worse). With a column
            `fold` the patients of several folds are pooled, each group taken from each fold. A
            column `cut` gives the risk above which a patient of that fold counts as high (such as
            the median of the training patients); without it that is the median risk of the fold's
            patients here.
        title: of the picture.

    Raises:
        ValueError: if a column is missing, there is no patient, or times or risks are invalid.
    """
    require_columns(predictions, ("patient_id", "t", "e", "risk"), "predictions")
    predictions = predictions.reset_index(drop=True)
    parts = [part for _, part in predictions.groupby("fold")] if "fold" in predictions else []
    parts = parts or [predictions]
    c_index = [metrics.concordance_index(x["t"], x["e"], x["risk"]) for x in parts]
    high = pd.concat(
        [pd.Series(metrics.risk_groups(p["risk"], _cut(p)), index=p.index) for p in parts]
    )
    high = high.sort_index()
    time, event = predictions["t"].to_numpy(float), predictions["e"].to_numpy()

    figure = new_figure(title, 7.0, 4.9)
    curves, table = figure.subplots(2, 1, height_ratios=[1, 0.16], sharex=True)
    groups = []
    for name, color, member in (("Low risk", BLUE, ~high), ("High risk", ORANGE, high)):
        in_group = member.to_numpy(bool)
        if in_group.any():
            groups.append((name, color, time[in_group], event[in_group]))
    for _, color, t, e in groups:
        _kaplan_meier(curves, t, e, color)
    _survival_axis(curves, float(time.max()) / DAYS_PER_YEAR)
    label_lines(
        curves,
        [_last_point(t, e) for _, _, t, e in groups],
        [
            f"{name}\n{_count(len(t), 'patient')}\n{_count(e.sum(), 'event')}"
            for name, _, t, e in groups
        ],
        [color for _, color, _, _ in groups],
        gap=0.19,
    )
    curves.set_title("   ·   ".join([_concordance(c_index), *_test(time, event, high, len(parts))]))
    _at_risk(table, curves.get_xticks(), groups)
    return figure


def _test(time: np.ndarray, event: np.ndarray, high: pd.Series, num_folds: int) -> Sequence[str]:
    """The text on the difference between the groups."""
    if high.all() or not high.any():
        return ["all patients in one risk group"]
    if num_folds > 1:
        return []
    return [f"log-rank {p_value(metrics.logrank_p(time, event, high.to_numpy(bool)))}"]


def _cut(part: pd.DataFrame) -> float:
    """The risk above which a patient counts as high."""
    if "cut" not in part:
        return float(part["risk"].median())
    cuts = part["cut"].unique()
    if len(cuts) != 1:
        raise ValueError(
            f"predictions: expected one cut between the risk groups per fold, found {len(cuts)}"
        )
    return float(cuts[0])


def _concordance(values: Sequence[float]) -> str:
    mean, sd = metrics.mean_sd(values)
    if len(values) == 1:
        return f"C-index {number(mean)}"
    return f"C-index {number(mean)} ± {number(sd)} (mean ± sd of {len(values)} folds)"


def _count(n: int, noun: str) -> str:
    return f"{int(n)} {noun}{'' if n == 1 else 's'}"


def _kaplan_meier(axes: Axes, time: np.ndarray, event: np.ndarray, color: str) -> None:
    """A Kaplan-Meier curve with its band, and ticks where patients are censored."""
    curve = metrics.kaplan_meier(time, event)
    years = curve.times / DAYS_PER_YEAR
    axes.fill_between(
        years, curve.lower, curve.upper, step="post", color=color, alpha=0.15, linewidth=0
    )
    axes.step(years, curve.survival, where="post", color=color)
    censored = np.sort(time[event == 0])
    at = np.searchsorted(curve.times, censored, side="right") - 1
    axes.plot(
        censored / DAYS_PER_YEAR,
        curve.survival[at],
        linestyle="",
        marker="|",
        markersize=5,
        markeredgewidth=0.8,
        color=color,
    )


def _last_point(time: np.ndarray, event: np.ndarray) -> tuple[float, float]:
    curve = metrics.kaplan_meier(time, event)
    return float(curve.times[-1]) / DAYS_PER_YEAR, float(curve.survival[-1])


def _survival_axis(axes: Axes, years: float) -> None:
    """Survival from 0 to 100 % over years from 0 to a little beyond `years`."""
    axes.set_xlim(0, max(years, 1 / DAYS_PER_YEAR) * 1.02)
    axes.set_ylim(0, 1.03)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylabel("Survival probability")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    axes.set_xlabel("Time (years)")
    axes.tick_params(labelbottom=True)
    axes.grid(axis="y")


def _at_risk(
    axes: Axes,
    ticks: Sequence[float] | np.ndarray,
    groups: list[tuple[str, str, np.ndarray, np.ndarray]],
) -> None:
    """The numbers of patients under observation, below the ticks of the time axis."""
    end = axes.get_xlim()[1]
    at = np.asarray([tick for tick in ticks if 0 <= tick <= end])
    for row, (_, color, time, _) in enumerate(groups):
        counts = metrics.number_at_risk(time, at * DAYS_PER_YEAR)
        for tick, count in zip(at, counts, strict=True):
            axes.text(tick, row, str(count), ha="center", va="center", color=color, fontsize=8.5)
    axes.set_title("Number at risk", fontsize=8.5)
    axes.set_yticks(range(len(groups)), [name for name, _, _, _ in groups])
    for label, (_, color, _, _) in zip(axes.get_yticklabels(), groups, strict=True):
        label.set_color(color)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.tick_params(length=0, labelbottom=False, pad=16)
    axes.spines[:].set_visible(False)


def survival_curves(
    predictions: pd.DataFrame,
    path: str | os.PathLike[str],
    title: str,
    width_days: float | Sequence[float],
    num_patients: int = 7,
) -> pathlib.Path:
    """Writes the picture of `survival_curves_figure`; returns the path."""
    return save(survival_curves_figure(predictions, title, width_days, num_patients), path)


@styled
def survival_curves_figure(
    predictions: pd.DataFrame,
    title: str,
    width_days: float | Sequence[float],
    num_patients: int = 7,
) -> Figure:
    """Predicted survival of some patients from the lowest to the highest risk.

    The patients are those at evenly spaced ranks of risk. Beneath lies the Kaplan-Meier curve of
    all patients, where their follow-up is known; a mark on a patient's curve shows how it ended.

    Args:
        predictions: columns patient_id, risk, surv_1 .. surv_T (probability to live beyond the end
            of each time bin), and perhaps t (days) and e (0/1).
        title: of the picture.
        width_days: width of the time bins, one for all or one for each.
        num_patients: how many to draw, at least 2 where there are as many.

    Raises:
        ValueError: if a column is missing, or the widths do not fit the number of bins.
    """
    bins = [name for name in predictions.columns if name.startswith("surv_")]
    require_columns(predictions, ("patient_id", "risk", *(bins or ["surv_1"])), "predictions")
    widths = np.asarray(width_days, float)
    if widths.shape not in ((), (len(bins),)) or not ((widths > 0) & np.isfinite(widths)).all():
        raise ValueError(
            f"expected one positive, finite width for all {len(bins)} time bins or one for each, "
            f"found {width_days}"
        )
    ends = np.cumsum(np.broadcast_to(widths, len(bins))) / DAYS_PER_YEAR
    years = np.concatenate([[0.0], ends])
    has_times = {"t", "e"} <= set(predictions.columns)
    ordered = predictions.sort_values("risk", kind="stable").reset_index(drop=True)
    ranks = ordered["risk"].rank(pct=True)
    picks = np.unique(np.linspace(0, len(ordered) - 1, num_patients).round().astype(int))

    figure = new_figure(title, 7.0, 4.2)
    axes = figure.subplots()
    horizon = float(ends[-1])
    if has_times:
        time, event = ordered["t"].to_numpy(float), ordered["e"].to_numpy()
        horizon = min(horizon, float(time.max()) / DAYS_PER_YEAR)
        _kaplan_meier(axes, time, event, FAINT)
    colors = ListedColormap(matplotlib.colormaps["plasma"](np.linspace(0, 0.88, 256)))
    for pick in picks:
        color = colors(float(ranks[pick]))
        survival = np.concatenate([[1.0], ordered.loc[pick, bins].to_numpy(float)])
        axes.plot(years, survival, color=color, linewidth=1.8, zorder=3)
        if has_times:
            end = float(ordered.loc[pick, "t"]) / DAYS_PER_YEAR
            axes.plot(
                end,
                np.interp(end, years, survival),
                marker="X" if ordered.loc[pick, "e"] else "o",
                markersize=7,
                markeredgecolor="white",
                color=color,
                zorder=4,
            )
    _survival_axis(axes, horizon)
    axes.set_title(f"Predicted for {len(picks)} of {_count(len(ordered), 'patient')}", color=INK)
    if has_times:
        keys = [
            Line2D([], [], color=FAINT, label="all patients (Kaplan-Meier, 95 %)"),
            Line2D([], [], color=INK, linestyle="", marker="X", label="event"),
            Line2D([], [], color=INK, linestyle="", marker="o", label="censored"),
        ]
        figure.legend(handles=keys, loc="outside lower center", ncols=3, fontsize=8.5)
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), colors), ax=axes, shrink=0.85, aspect=28)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    bar.set_label("Patients with a lower or equal risk")
    bar.outline.set_visible(False)
    return figure
