"""Matrices of numbers as annotated heatmaps."""

import dataclasses
import os
import pathlib

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from steph_jax.plots.style import INK, new_figure, save, short_names, styled

_CELL, _LETTER = 0.48, 0.075  # inches


@dataclasses.dataclass(frozen=True, eq=False)
class Heatmap:
    """A matrix to draw.

    Attributes:
        values: [R, C]; the names of its index and columns name the axes. NaN stays blank.
        label: what a number is, for the color bar.
        diverging_center: the value of no effect, drawn white between blue (below) and red (above);
            None for values that only go up.
        title: above the matrix.
    """

    values: pd.DataFrame
    label: str
    diverging_center: float | None = None
    title: str = ""


def matrix(
    values: pd.DataFrame,
    path: str | os.PathLike[str],
    title: str,
    label: str,
    diverging_center: float | None = None,
) -> pathlib.Path:
    """Writes the picture of `matrix_figure`; returns the path."""
    return save(matrix_figure(Heatmap(values, label, diverging_center), title), path)


@styled
def matrix_figure(heatmap: Heatmap, title: str) -> Figure:
    """One heatmap, each number written into its cell.

    Where rows and columns have the same names, the colors span the numbers off the diagonal, so
    that a diagonal of ones (gray) does not make all else look alike.

    Raises:
        ValueError: if the matrix is empty.
    """
    return _heatmaps([heatmap], title)


def matrices(
    first: Heatmap, second: Heatmap, path: str | os.PathLike[str], title: str
) -> pathlib.Path:
    """Writes the picture of `matrices_figure`; returns the path."""
    return save(matrices_figure(first, second, title), path)


@styled
def matrices_figure(first: Heatmap, second: Heatmap, title: str) -> Figure:
    """Two heatmaps side by side, each as in `matrix_figure`.

    Raises:
        ValueError: if a matrix is empty.
    """
    return _heatmaps([first, second], title)


def _heatmaps(panels: list[Heatmap], title: str) -> Figure:
    for panel in panels:
        if panel.values.empty:
            raise ValueError(f"expected a matrix of {panel.label}, found an empty one")
    rows = max(panel.values.shape[0] for panel in panels)
    columns = [panel.values.shape[1] for panel in panels]
    margin = sum(0.4 + _LETTER * _longest(panel.values.index) for panel in panels)
    below = max(_LETTER * _longest(panel.values.columns) for panel in panels)
    width = max(4.5, sum(columns) * _CELL + margin + 1.1 * len(panels))
    figure = new_figure(title, width, max(2.4, rows * _CELL + below + 1.1))
    # Room between the label of one panel's color bar and that of the next one's rows.
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(wspace=0.05)
    grid = figure.subplots(1, len(panels), squeeze=False, width_ratios=columns)
    for axes, panel in zip(grid[0], panels, strict=True):
        _heatmap(axes, panel)
        bar = figure.colorbar(
            axes.images[0], ax=axes, aspect=28, pad=0.02, extend=_extend(axes, panel)
        )
        bar.set_label(panel.label)
        bar.outline.set_visible(False)
    return figure


def _shown(names: pd.Index) -> list[str]:
    """Names of rows or columns as shown."""
    texts = [str(name) for name in names]
    short = short_names(texts)
    return [short[text] for text in texts]


def _longest(names: pd.Index) -> int:
    """Letters of the longest name as shown."""
    return max(map(len, _shown(names)))


def _heatmap(axes: Axes, panel: Heatmap) -> None:
    values = panel.values.to_numpy(float)
    norm = _limits(panel)
    diverging = panel.diverging_center is not None
    colors = matplotlib.colormaps["RdBu_r" if diverging else "cividis"]
    colors = colors.with_extremes(bad="#F2F2F2", over=None if diverging else "#DADADA")
    axes.imshow(np.ma.masked_invalid(values), cmap=colors, norm=norm, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        defined = bool(np.isfinite(value))
        red, green, blue, _ = colors(norm(value)) if defined else (1, 1, 1, 1)
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        text = f"{value:.2f}".replace("-", "−") if defined else "–"
        axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=7.5,
            color="white" if dark else INK,
        )
    columns, rows = _shown(panel.values.columns), _shown(panel.values.index)
    steep = _longest(panel.values.columns) > 5
    axes.set_xticks(
        range(values.shape[1]),
        columns,
        rotation=45 if steep else 0,
        ha="right" if steep else "center",
        rotation_mode="anchor" if steep else "default",
    )
    axes.set_yticks(range(values.shape[0]), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(str(panel.values.columns.name or ""))
    axes.set_ylabel(str(panel.values.index.name or ""))
    axes.set_title(panel.title)


def _spanned(panel: Heatmap) -> np.ndarray:
    """The numbers that the colors span."""
    values = panel.values.to_numpy(float)
    if len(values) > 1 and list(panel.values.index) == list(panel.values.columns):
        values = values[~np.eye(len(values), dtype=bool)]
    return values[np.isfinite(values)]


def _limits(panel: Heatmap) -> Normalize:
    spanned, center = _spanned(panel), panel.diverging_center
    if center is not None:
        reach = float(np.abs(spanned - center).max(initial=1e-3))
        return Normalize(center - reach, center + reach)
    if not spanned.size:
        return Normalize(0, 1)
    low, high = float(spanned.min()), float(spanned.max())
    return Normalize(low, high if high > low else low + 1e-3)


def _extend(axes: Axes, panel: Heatmap) -> str:
    """Which ends of the color bar get an arrow, since numbers lie beyond."""
    values = panel.values.to_numpy(float)
    norm = axes.images[0].norm
    below = bool(np.nanmin(values, initial=np.inf) < norm.vmin)
    above = bool(np.nanmax(values, initial=-np.inf) > norm.vmax)
    return {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[below, above]
