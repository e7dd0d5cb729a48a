"""Which maps of a slide are drawn, and the patches that stand out as pictures."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from steph_jax.heatmaps.tables import TOP
from steph_jax.heatmaps.viewer import DIFFERENCE, OWN
from steph_jax.heatmaps.wsi import Slide
from steph_jax.messages import on_one_line
from steph_jax.plots import Background, Panel
from steph_jax.plots.patch_maps import symmetric

#: Pixels of the longer side of a thumbnail, and of a patch.
_THUMBNAIL, _PATCH = 2000, 224
#: Letters of a slide's id in a title.
_MOST_LETTERS = 80
_OF_OWN = "target's own model"


def panels(table: pd.DataFrame, sources: Sequence[str] = ()) -> list[list[Panel]]:
    """Rows of maps: of the model, of the target's own model, and what merging changed.

    Args:
        table: of the patches of a slide, as `viewer` gives it.
        sources: names of sources that the table has.
    """
    columns = {str(name): table[name].to_numpy(np.float64) for name in table.columns}
    attention = [_percentile(columns["percentile"], "Attention")]
    contribution = [_risk(columns["contribution"], "Contribution to the risk", ())]
    has_own = f"{OWN}percentile" in columns
    if has_own:
        attention += [
            _percentile(columns[f"{OWN}percentile"], f"Attention, {_OF_OWN}"),
            Panel(
                columns[f"percentile{DIFFERENCE}"],
                "Attention: what merging changed",
                "percentiles more or less",
                symmetric(columns[f"percentile{DIFFERENCE}"]),
                diverging=True,
            ),
        ]
    if f"{OWN}contribution" in columns:
        both = (columns["contribution"], columns[f"{OWN}contribution"])
        change = columns[f"contribution{DIFFERENCE}"]
        contribution = [
            _risk(both[0], "Contribution to the risk", both),
            _risk(both[1], f"Contribution, {_OF_OWN}", both),
            _risk(change, "Contribution: what merging changed", ()),
        ]
    rows = [attention, contribution] if has_own else [[*attention, *contribution]]
    width = len(rows[0])
    of_sources = [
        _percentile(columns[f"percentile[{name}]"], f"Attention, {name}") for name in sources
    ]
    return rows + [of_sources[i : i + width] for i in range(0, len(of_sources), width)]


def shown_name(slide_id: str) -> str:
    """A slide's id as a title has it: on one line, and not endless."""
    name = on_one_line(slide_id)
    return name if len(name) <= _MOST_LETTERS else f"{name[: _MOST_LETTERS - 1]}…"


def _percentile(values: np.ndarray, title: str) -> Panel:
    return Panel(values, title, "percentile within the patient", (0.0, 100.0))


def _risk(values: np.ndarray, title: str, together: Sequence[np.ndarray]) -> Panel:
    limits = symmetric(*(together or (values,)))
    return Panel(values, title, "below 0: lowers, above: raises", limits, diverging=True)


def background(slide: Slide) -> Background:
    """A slide as it lies beneath its maps."""
    return Background(slide.thumbnail(_THUMBNAIL), slide.size)


def top_pictures(
    slide: Slide, top: pd.DataFrame, size: float
) -> list[tuple[str, list[tuple[np.ndarray, str]]]]:
    """The patches of `tables.top_patches` as `plots.patch_pictures` draws them.

    Args:
        slide: that they are of.
        top: the table.
        size: side of a patch in pixels of level 0.
    """
    rows = []
    for name, (column, _) in TOP.items():
        pictures = []
        for patch in top[top["list"] == name].to_dict("records"):
            image = slide.patch(float(patch["x"]), float(patch["y"]), size, _PATCH)
            pictures.append((image, f"patch {patch['patch']}\n{column} {patch[column]:.2g}"))
        rows.append((name, pictures))
    return rows
