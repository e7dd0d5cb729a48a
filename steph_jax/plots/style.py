"""Shared by all pictures: fonts and colors, labels next to lines, and writing the file."""

import io
import os
import pathlib
import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from steph_jax import files
from steph_jax.messages import join_names

DPI = 150

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
#: Colors for categories (Okabe and Ito 2008, without yellow, which is faint on white).
CATEGORIES = (BLUE, ORANGE, GREEN, PURPLE, "#56B4E9", "#E69F00", "#222222")
INK, GRAY, FAINT, GRID = "#222222", "#666666", "#8C8C8C", "#E3E3E3"

#: Names longer than this are shortened in the middle.
_MAX_NAME = 26

_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#666666",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "text.parse_math": False,  # a "$" in a name is a "$"
}

P = ParamSpec("P")
R = TypeVar("R")


def styled(build: Callable[P, R]) -> Callable[P, R]:
    """Runs a function under these pictures' settings, not those of the user's matplotlibrc."""

    @wraps(build)
    def under_style(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.style.context(["default", _RC]):
            return build(*args, **kwargs)

    return under_style


def new_figure(title: str, width: float, height: float) -> Figure:
    """An empty figure of `width` x `height` inches under its title, wrapped to the width."""
    lines = textwrap.wrap(title, width=max(20, int(width * 10.5)), break_on_hyphens=False)
    figure = Figure(
        figsize=(width, height + 0.2 * max(0, len(lines) - 1)),
        layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08),
    )
    figure.suptitle(
        "\n".join(lines), x=0.015, ha="left", fontsize=11.5, fontweight="bold", color=INK
    )
    return figure


@styled
def save(figure: Figure, path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes a PNG of 150 dots per inch, whole or not at all; returns the path."""
    path = pathlib.Path(path)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DPI, metadata={"Software": None})
    with files.whole(path) as temporary:
        temporary.write_bytes(picture.getvalue())
    return path


def require_columns(table: pd.DataFrame, columns: Iterable[str], what: str) -> None:
    """Raises a ValueError unless the table has rows and these columns."""
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise ValueError(
            f"{what}: expected the columns {join_names(missing)}; found {join_names(table.columns)}"
        )
    if table.empty:
        raise ValueError(f"{what}: expected at least one row, found none")


def shortened(name: str) -> str:
    """A long name cut in the middle."""
    half = _MAX_NAME // 2
    return name if len(name) <= _MAX_NAME else f"{name[:half]}…{name[-half + 1 :]}"


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Names as shown: without the first words (up to "_") that all share; long ones cut.

    Two names never become one.
    """
    unique = list(dict.fromkeys(map(str, names)))
    words = [name.split("_") for name in unique]
    shared = 0
    if len(unique) > 1:
        most = min(map(len, words)) - 1
        while shared < most and len({own[shared] for own in words}) == 1:
            shared += 1
    labels = {
        name: shortened("_".join(own[shared:])) for name, own in zip(unique, words, strict=True)
    }
    return labels if len(set(labels.values())) == len(unique) else {name: name for name in unique}


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """The closest positions (least squares) in the same order that are at least `gap` apart.

    All lie within [gap / 2, 1 - gap / 2], or start at gap / 2 where they do not fit.
    """
    order = np.argsort(positions, kind="stable")
    clusters: list[list[float]] = []  # [mean, size] of positions less i * gap
    for i, where in enumerate(order):
        clusters.append([positions[where] - i * gap, 1])
        while len(clusters) > 1 and clusters[-2][0] > clusters[-1][0]:
            mean, size = clusters.pop()
            last = clusters[-1]
            last[0] = (last[0] * last[1] + mean * size) / (last[1] + size)
            last[1] += size
    flat = np.repeat([c[0] for c in clusters], [int(c[1]) for c in clusters])
    highest = 1 - gap / 2 - gap * (len(order) - 1)
    result = np.empty(len(order))
    result[order] = np.clip(flat, gap / 2, max(gap / 2, highest)) + gap * np.arange(len(order))
    return [float(value) for value in result]


def label_lines(
    axes: Axes,
    ends: Sequence[tuple[float, float]],
    texts: Sequence[str],
    colors: Sequence[str],
    gap: float,
) -> None:
    """Writes a text right of the axes for each line, at the height of its end, none on another.

    Args:
        axes: with its final limits.
        ends: (x, y) of the lines' last points, in data.
        texts: what to write.
        colors: of lines and texts.
        gap: least distance between two texts, as a share of the axes' height.
    """
    low, high = axes.get_ylim()
    heights = spread([(y - low) / (high - low) for _, y in ends], gap)
    for end, text, color, height in zip(ends, texts, colors, heights, strict=True):
        axes.annotate(
            text,
            xy=end,
            xytext=(1.06, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8.5,
            color=color,
            linespacing=1.15,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.6,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 3,
            },
        )


def chance_line(axes: Axes, vertical: bool = False) -> None:
    """Marks a C-index of 0.5."""
    draw = axes.axvline if vertical else axes.axhline
    draw(0.5, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)


def number(value: float, digits: int = 3) -> str:
    """A number for people; "n/a" where it is undefined."""
    return "n/a" if not np.isfinite(value) else f"{value:.{digits}f}"


def signed(value: float, digits: int = 3) -> str:
    """A difference for people, with its sign."""
    if not np.isfinite(value):
        return "n/a"
    return f"{value:+.{digits}f}".replace("-", "−")


def p_value(value: float) -> str:
    """p for people: "p = 0.031", "p < 0.001", "p n/a"."""
    if not np.isfinite(value):
        return "p n/a"
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"
