"""How fast a step is: against the machine's matrix products, and against a PyTorch program."""

import os
import pathlib
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from steph_jax.plots.style import BLUE, FAINT, GRID, INK, ORANGE, new_figure, save, styled

#: Rows of the measurement, as they are drawn: (key, name, color).
_MODES = (("train", "Training", BLUE), ("predict", "Prediction", ORANGE))


def speed(measured: dict[str, Any], path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes the picture of `speed_figure`; returns the path."""
    return save(speed_figure(measured), path)


@styled
def speed_figure(measured: dict[str, Any]) -> Figure:
    """Share of the matrix-product ceiling, and speed over PyTorch's, by length of the slides.

    Args:
        measured: what benchmarks/step.py writes: {"train": {length: {"fraction_of_ceiling",
            "ratio_to_pytorch", ...}}, "predict": ..., "ceiling_gflops", "about"}.

    Raises:
        ValueError: it has no lengths.
    """
    lengths = list(measured["train"])
    if not lengths:
        raise ValueError("speed: expected at least one length, found none")
    about = measured["about"]
    title = (
        f"Speed by length of the slides: {about['device']}, {about['dtype']}, matrix products "
        f"{measured['ceiling_gflops']:,.0f} GFLOP/s"
    )
    compared = all(measured["train"][n]["ratio_to_pytorch"] is not None for n in lengths)
    figure = new_figure(title, 9.0 if compared else 5.5, 1.2 + 0.5 * len(lengths))
    panels = figure.subplots(1, 2 if compared else 1, sharey=True, squeeze=False)[0]

    _bars(panels[0], measured, "fraction_of_ceiling", "{:.0%}")
    panels[0].set_xlim(0, 1.12)
    panels[0].xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panels[0].set_xlabel("Share of the matrix-product ceiling")
    panels[0].axvline(1, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    panels[0].set_yticks(range(len(lengths)), [_name(n) for n in lengths])
    panels[0].invert_yaxis()
    if compared:
        _bars(panels[1], measured, "ratio_to_pytorch", "{:.1f}")
        panels[1].set_xlim(0, 1.12 * panels[1].get_xlim()[1])
        panels[1].xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g} x"))
        panels[1].set_xlabel("Speed over that of a PyTorch program, slide by slide")
        panels[1].axvline(1, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        panels[1].tick_params(axis="y", length=0)
    panels[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(_MODES), borderaxespad=0.2)
    return figure


def _name(length: str) -> str:
    return f"{int(length):,} patches" if length.isdecimal() else f"{length.upper()}-like"


def _bars(axes: Axes, measured: dict[str, Any], key: str, form: str) -> None:
    """A bar for each length and mode, its value behind it."""
    height = 0.36
    for i, (mode, name, color) in enumerate(_MODES):
        values = [row[key] for row in measured[mode].values()]
        places = np.arange(len(values)) + (i - 0.5) * height
        bars = axes.barh(places, values, 0.9 * height, color=color, label=name, zorder=2)
        axes.bar_label(bars, [form.format(v) for v in values], padding=3, fontsize=8, color=INK)
    axes.grid(axis="x", color=GRID)
