"""How training went: losses, C-index and the weights of the sources."""

import os
import pathlib

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from steph_jax.messages import join_names
from steph_jax.plots.style import (
    BLUE,
    CATEGORIES,
    FAINT,
    GRAY,
    INK,
    ORANGE,
    chance_line,
    label_lines,
    new_figure,
    number,
    require_columns,
    save,
    short_names,
    styled,
)

#: Columns of a training history: coefficients of the sources' own task vectors, and of the target's
#: through each source; weights w alone where a history lacks them.
_SOURCE, _TARGET, _WEIGHT = "source_", "target_", "weight_"
_COEFFICIENT = "source_coefficient"


def training_curves(
    history: pd.DataFrame, path: str | os.PathLike[str], title: str
) -> pathlib.Path:
    """Writes the picture of `training_curves_figure`; returns the path."""
    return save(training_curves_figure(history, title), path)


@styled
def training_curves_figure(history: pd.DataFrame, title: str) -> Figure:
    """Loss and C-index of training and test patients over the epochs.

    Args:
        history: columns epoch, train_loss (with regularizers), train_nll (without), train_c_index,
            and test_nll, test_c_index, NaN where an epoch was not evaluated, absent where none was.
            With a column `fold` each fold is a thin line, and the mean over folds a thick one.
        title: of the picture.

    Raises:
        ValueError: if a column is missing, or there is no epoch.
    """
    curves = ("train_loss", "train_nll", "train_c_index")
    require_columns(history, ("epoch", *curves), "training history")
    history = history.reindex(columns=[*history.columns.union(["test_nll", "test_c_index"])])
    figure = new_figure(title, 9.0, 3.6)
    loss, concordance = figure.subplots(1, 2)

    lines = [("train_nll", BLUE, "Training"), ("test_nll", ORANGE, "Test")]
    if not np.allclose(history["train_loss"], history["train_nll"], equal_nan=True):
        lines.append(("train_loss", FAINT, "Training with\nregularizers"))
    _curves(loss, history, lines)
    loss.set_ylabel("Loss (mean per patient)")

    chance_line(concordance)
    _curves(
        concordance,
        history,
        [("train_c_index", BLUE, "Training"), ("test_c_index", ORANGE, "Test")],
    )
    concordance.set_ylabel("C-index (0.5 = chance)")
    return figure


def _curves(axes: Axes, history: pd.DataFrame, lines: list[tuple[str, str, str]]) -> None:
    """Draws columns over epochs and names them at their ends, with the last value."""
    by_fold = list(history.groupby("fold")) if "fold" in history else []
    mean = history.groupby("epoch").mean(numeric_only=True)
    ends, texts, colors = [], [], []
    for column, color, name in lines:
        if len(by_fold) > 1:
            for _, fold in by_fold:
                evaluated = fold.dropna(subset=column)
                axes.plot(
                    evaluated["epoch"], evaluated[column], color=color, linewidth=0.8, alpha=0.35
                )
        values = mean[column].dropna().astype(float)
        if values.empty:
            continue
        marker = "o" if len(values) <= 12 else ""
        axes.plot(values.index, values, color=color, marker=marker, markersize=3.5)
        ends.append((float(values.index[-1]), float(values.iloc[-1])))
        texts.append(f"{name} {number(ends[-1][1])}")
        colors.append(color)
    _epoch_axis(axes, history["epoch"])
    axes.grid(axis="y")
    axes.set_ylim(axes.get_ylim())
    label_lines(axes, ends, texts, [GRAY if c == FAINT else c for c in colors], gap=0.09)


def _epoch_axis(axes: Axes, epochs: pd.Series) -> None:
    first, last = float(epochs.min()), float(epochs.max())
    margin = max(0.5, 0.02 * (last - first)) if first == last else 0.03 * (last - first)
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(
        MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10], min_n_ticks=1)
    )
    axes.set_xlabel("Epoch")


def source_weights(
    history: pd.DataFrame,
    merge_weights: pd.DataFrame,
    path: str | os.PathLike[str],
    title: str,
) -> pathlib.Path:
    """Writes the picture of `source_weights_figure`; returns the path."""
    return save(source_weights_figure(history, merge_weights, title), path)


@styled
def source_weights_figure(history: pd.DataFrame, merge_weights: pd.DataFrame, title: str) -> Figure:
    """Which sources a merged model uses: while it learns, and on the test patients.

    Left: the mean coefficient of each source's task vector over the epochs, w (1 - lambda) in STEPH
    (means over folds, if there are several), and dashed that of the target's own, the sum of
    w lambda. Middle: the coefficients of each test patient, filled where the source was selected
    for the patient, with the median and the middle half. Right: for what share of the patients a
    source's task vector has a coefficient other than 0 (left out where the method selects none).
    Sources stand in the order of their mean coefficient.

    Args:
        history: columns epoch and source_{source}, perhaps target_{source}; histories of older runs
            have weight_{source} alone, which is drawn in their place.
        merge_weights: columns patient_id, source, source_coefficient, and perhaps selected (0/1).
        title: of the picture.

    Raises:
        ValueError: if a column is missing, or the two tables name different sources.
    """
    require_columns(history, ("epoch",), "training history")
    require_columns(merge_weights, ("patient_id", "source", _COEFFICIENT), "merge weights")
    means = merge_weights.groupby("source")[_COEFFICIENT].mean().sort_values(ascending=False)
    sources = [str(source) for source in means.index]
    prefix = _SOURCE if any(c.startswith(_SOURCE) for c in history.columns) else _WEIGHT
    columns = [c.removeprefix(prefix) for c in history.columns if c.startswith(prefix)]
    if set(columns) != set(sources):
        raise ValueError(
            f"the training history has weights of {join_names(sorted(columns)) or 'no source'}, "
            f"the merge weights are of {join_names(sorted(sources))}; expected the same sources"
        )
    labels = short_names(sources)
    colors = {s: CATEGORIES[i] if i < len(CATEGORIES) else FAINT for i, s in enumerate(sources)}
    selects = "selected" in merge_weights

    width = 11.0 + 0.12 * max(0, max(map(len, labels.values())) - 10)
    figure = new_figure(title, width, max(3.2, 1.6 + 0.24 * len(sources)))
    panels = figure.subplots(1, 3 if selects else 2, width_ratios=[2.2, 2, 1] if selects else None)
    _coefficient_lines(panels[0], history, prefix, labels, colors, figure.get_figheight())
    _coefficient_points(panels[1], merge_weights, sources, colors)
    for axes in panels[1:]:
        axes.set_yticks(range(len(sources)), [labels[s] for s in sources])
        axes.set_ylim(len(sources) - 0.4, -0.6)
        axes.grid(axis="x")
    if selects:
        shares = (merge_weights[_COEFFICIENT] != 0).groupby(merge_weights["source"]).mean()
        panels[2].barh(
            range(len(sources)),
            [float(shares[s]) for s in sources],
            height=0.6,
            color=[colors[s] for s in sources],
        )
        panels[2].set_xlim(0, 1)
        panels[2].xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panels[2].set_xticks([0, 0.5, 1])
        panels[2].set_xlabel("Patients")
        panels[2].set_title("Coefficient ≠ 0 for")
        panels[2].tick_params(axis="y", left=False, labelleft=False)
    return figure


def _coefficient_lines(
    axes: Axes,
    history: pd.DataFrame,
    prefix: str,
    labels: dict[str, str],
    colors: dict[str, str],
    height: float,
) -> None:
    """Mean coefficients over the epochs, in a figure of `height` inches."""
    mean = history.groupby("epoch").mean(numeric_only=True)
    lines = {source: mean[prefix + source] for source in reversed(list(labels))}
    texts, styles = dict(labels), dict.fromkeys(labels, "-")
    target_columns = [column for column in mean.columns if column.startswith(_TARGET)]
    if prefix == _SOURCE and target_columns:
        lines[_TARGET] = mean[target_columns].sum(axis=1)
        texts[_TARGET], styles[_TARGET] = "own cancer", "--"
        colors = colors | {_TARGET: INK}
    ends, names = [], []
    for name, line in lines.items():
        values = line.dropna().astype(float)
        if values.empty:
            continue
        marker = "o" if len(values) <= 12 else ""
        axes.plot(
            values.index, values, styles[name], color=colors[name], marker=marker, markersize=3
        )
        ends.append((float(values.index[-1]), float(values.iloc[-1])))
        names.append(name)
    _epoch_axis(axes, history["epoch"])
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), axes.get_ylim()[1])
    axes.grid(axis="y")
    axes.set_ylabel("Mean coefficient" if prefix == _SOURCE else "Mean weight w")
    axes.set_title("Training patients, per epoch")
    text_colors = [GRAY if colors[s] == FAINT else colors[s] for s in names]
    gap = 0.155 / (height - 1.3)  # a line of text, as a share of the axes
    label_lines(axes, ends, [texts[s] for s in names], text_colors, gap)


def _coefficient_points(
    axes: Axes, merge_weights: pd.DataFrame, sources: list[str], colors: dict[str, str]
) -> None:
    """Coefficients of the test patients, one row per source."""
    rng = np.random.default_rng(0)
    for row, source in enumerate(sources):
        rows = merge_weights[merge_weights["source"] == source]
        coefficient = rows[_COEFFICIENT].to_numpy(float)
        filled = rows["selected"].to_numpy(bool) if "selected" in rows else np.ones(len(rows), bool)
        height = row + rng.uniform(-0.28, 0.28, len(rows))
        for member, face in ((~filled, "none"), (filled, colors[source])):
            axes.scatter(
                coefficient[member],
                height[member],
                s=9,
                facecolor=face,
                edgecolor=colors[source],
                linewidth=0.5,
                alpha=0.45 if len(rows) > 30 else 0.8,
            )
        low, median, high = np.quantile(coefficient, [0.25, 0.5, 0.75])
        axes.plot([low, high], [row, row], color=INK, linewidth=2.2, solid_capstyle="butt")
        axes.plot([median, median], [row - 0.3, row + 0.3], color=INK, linewidth=2.2)
    patients = merge_weights["patient_id"].nunique()
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    key = (
        "filled: selected; black: median, middle half"
        if "selected" in merge_weights
        else ("black: median, middle half")
    )
    axes.set_xlabel(f"Coefficient of the source\n({key})")
    axes.set_title("1 test patient" if patients == 1 else f"{patients} test patients")
