"""What a model sees in a slide, patch by patch, as maps; and patches as pictures."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from steph_jax.plots.style import INK, new_figure, save, styled

#: Dots along the longer side of a map.
_DOTS = 600
#: Inches of a map: its longer side unless another is asked for, and the least of the shorter.
_LONG, _SHORT = 3.6, 1.2
#: Values beyond this share of all have the color of the ends.
_SHOWN = 0.995


@dataclasses.dataclass(frozen=True, eq=False)
class Panel:
    """A map.

    Attributes:
        values: [N] of the patches.
        title: above it.
        label: what a value is, for the color bar.
        limits: values of the ends of the colors.
        diverging: whether 0 is no effect, white between blue (below) and red (above).
    """

    values: np.ndarray
    title: str
    label: str
    limits: tuple[float, float]
    diverging: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Background:
    """A slide beneath its maps.

    Attributes:
        image: [H, W, 3] uint8, the whole slide.
        size: width and height of the slide, in the unit of the patches.
    """

    image: np.ndarray
    size: tuple[float, float]


def symmetric(*values: np.ndarray) -> tuple[float, float]:
    """Limits about 0 that hold all but the most extreme values of some panels."""
    together = np.abs(np.concatenate(values))
    reach = float(np.quantile(together, _SHOWN)) or float(together.max()) or 1.0
    return -reach, reach


def painted(
    xy: np.ndarray, size: float, bounds: tuple[float, float, float, float], dots: int = _DOTS
) -> np.ndarray:
    """The number of the patch that each dot of a map shows; -1 where there is none.

    Args:
        xy: [N, 2] left upper corners of the patches; where they overlap, the later one is shown.
        size: side of a patch.
        bounds: left, upper, right and lower edge of the map.
        dots: along its longer side.

    Returns:
        [H, W] int32.
    """
    left, upper, right, lower = bounds
    scale = dots / max(right - left, lower - upper)
    width, height = (max(1, round(side * scale)) for side in (right - left, lower - upper))
    corners = np.stack([xy, xy + size]) - [left, upper]
    (x, y), (x_end, y_end) = np.rint(corners * scale).astype(int).transpose(0, 2, 1)
    shown = np.full((height, width), -1, np.int32)
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    for number in range(len(xy)):
        row, column = y[number], x[number]
        shown[row : max(row + 1, y_end[number]), column : max(column + 1, x_end[number])] = number
    return shown


def patch_maps(
    xy: np.ndarray,
    size: float,
    rows: Sequence[Sequence[Panel]],
    path: str | os.PathLike[str],
    title: str,
    background: Background | None = None,
) -> pathlib.Path:
    """Writes the picture of `patch_maps_figure`; returns the path."""
    return save(patch_maps_figure(xy, size, rows, title, background), path)


@styled
def patch_maps_figure(
    xy: np.ndarray,
    size: float,
    rows: Sequence[Sequence[Panel]],
    title: str,
    background: Background | None = None,
    inches: float = _LONG,
) -> Figure:
    """Maps of one slide, each patch a square where it lies.

    Args:
        xy: [N, 2] left upper corners of the patches; y grows downwards.
        size: side of a patch, in the same unit.
        rows: of panels.
        title: above all.
        background: the slide beneath the maps, which shows through them.
        inches: of the longer side of each map.

    Raises:
        ValueError: there is no patch.
    """
    if not len(xy):
        raise ValueError(f"{title}: expected a patch or more, found none")
    low, high = xy.min(axis=0), xy.max(axis=0) + size
    bounds = (low[0], low[1], high[0], high[1])
    if background is not None:
        bounds = (0.0, 0.0, *background.size)
    shown = painted(xy, size, bounds)
    height, width = shown.shape
    scale = inches / max(height, width)
    panel_width, panel_height = (max(_SHORT, side * scale) for side in (width, height))
    columns = max(map(len, rows))
    figure = new_figure(
        title, columns * (panel_width + 1.0) + 0.2, len(rows) * (panel_height + 0.5) + 0.4
    )
    grid = figure.subplots(len(rows), columns, squeeze=False)
    extent = (bounds[0], bounds[2], bounds[3], bounds[1])
    for panels, axes_of_row in zip(rows, grid, strict=True):
        for axes in axes_of_row[len(panels) :]:
            axes.set_visible(False)
        for panel, axes in zip(panels, axes_of_row, strict=False):
            if background is not None:
                axes.imshow(background.image, extent=extent)
            _map(axes, shown, panel, extent, 1.0 if background is None else 0.6)
    return figure


def _map(
    axes: Axes,
    shown: np.ndarray,
    panel: Panel,
    extent: tuple[float, float, float, float],
    alpha: float,
) -> None:
    colors = matplotlib.colormaps["RdBu_r" if panel.diverging else "cividis"]
    values = np.ma.masked_array(panel.values[shown], shown < 0)
    norm = Normalize(*panel.limits)
    image = axes.imshow(
        values, cmap=colors, norm=norm, extent=extent, alpha=alpha, interpolation="nearest"
    )
    axes.set_title(panel.title)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#C8C8C8")
    axes.spines[:].set_visible(True)
    figure = axes.figure
    assert isinstance(figure, Figure)
    low, high = panel.values.min() < panel.limits[0], panel.values.max() > panel.limits[1]
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get(
        (bool(low), bool(high)), "neither"
    )
    bar = figure.colorbar(image, ax=axes, aspect=24, shrink=0.9, pad=0.03, extend=extend)
    bar.set_label(panel.label, fontsize=8)
    bar.ax.tick_params(labelsize=7.5)
    bar.outline.set_visible(False)


def patch_pictures(
    rows: Sequence[tuple[str, Sequence[tuple[np.ndarray, str]]]],
    path: str | os.PathLike[str],
    title: str,
) -> pathlib.Path:
    """Writes the picture of `patch_pictures_figure`; returns the path."""
    return save(patch_pictures_figure(rows, title), path)


@styled
def patch_pictures_figure(
    rows: Sequence[tuple[str, Sequence[tuple[np.ndarray, str]]]], title: str
) -> Figure:
    """Patches of a slide, a row for each list.

    Args:
        rows: (what the list is, its patches: [H, W, 3] uint8 and what is written below).
        title: above all.
    """
    columns = max(len(pictures) for _, pictures in rows)
    figure = new_figure(title, max(4.0, 1.25 * columns + 0.3), 1.85 * len(rows) + 0.3)
    for part, (name, pictures) in zip(
        figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows, strict=True
    ):
        part.suptitle(name, x=0.015, ha="left", fontsize=9.5, color=INK)
        grid = part.subplots(1, columns, squeeze=False)[0]
        for axes in grid[len(pictures) :]:
            axes.set_visible(False)
        for axes, (picture, text) in zip(grid, pictures, strict=False):
            axes.imshow(picture)
            axes.set_xlabel(text, fontsize=7.5)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
    return figure
