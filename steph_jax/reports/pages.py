"""What all reports share: the templates, and pictures and numbers as a page has them."""

import base64
import dataclasses
import io
from collections.abc import Mapping
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from steph_jax.data.columns import Columns
from steph_jax.messages import setting_values
from steph_jax.plots.style import DPI, p_value
from steph_jax.run_directory import flatten
from steph_jax.survival.time_bins import DAYS_PER_YEAR

#: What pages call numbers, in their order there.
_NAMES = {
    "c_index": "C-index (Harrell)",
    "uno": "C-index (Uno)",
    "auc": "AUC",
    "ibs": "Brier scores and calibration",
    "ipa": "IPA",
    "brier": "Brier score",
}


def render(template: str, **values: Any) -> str:
    """A page of a template; every text among the values is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("steph_jax.reports", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "number": number,
        "signed": signed,
        "p": _p,
        "p_alone": _p_alone,
        "interval": _interval,
        "percent": _percent,
        "percents": _percents,
        "years": lambda days: days / DAYS_PER_YEAR,
    }
    return environment.get_template(template).render(**values)


def png_of(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def settings_in_words(settings: Mapping[str, Any]) -> dict[str, str]:
    """Values of settings by their names with dots."""
    return {
        name: setting_values({name: value}).partition("=")[2]
        for name, value in flatten(settings).items()
    }


def outcome(settings: Mapping[str, Any]) -> dict[str, str]:
    """The columns of the survival table by what they hold, as `Columns` names them."""
    columns = settings.get("data", {}).get("columns", {})
    return dataclasses.asdict(Columns()) | dict(columns)


def name_in_words(name: str) -> str:
    """What a page calls a number that has no value, by its name in `reasons`."""
    name, _, year = name.partition(" ")
    words = _NAMES.get(name, name)
    return f"{words} at {year} year{'' if year == '1' else 's'}" if year else words


def reasons(missing: Mapping[str, Mapping[str, str]], num_folds: int) -> dict[str, str]:
    """Why a number is null, by its name; names the folds unless it is so in all.

    Args:
        missing: by fold and number, why.
        num_folds: of the run.
    """
    folds: dict[str, dict[str, list[str]]] = {}
    for fold, of_fold in missing.items():
        for name, reason in of_fold.items():
            folds.setdefault(name, {}).setdefault(reason, []).append(fold)
    order = list(_NAMES)

    def place(name: str) -> tuple[int, float]:
        first, _, year = name.partition(" ")
        return (order.index(first) if first in order else len(order), float(year or 0))

    return {
        name: "; ".join(
            reason if len(where) == num_folds else f"{', '.join(where)}: {reason}"
            for reason, where in folds[name].items()
        )
        for name in sorted(folds, key=place)
    }


def number(value: float | None, digits: int = 3) -> str:
    """A number for people; a dash where there is none."""
    if value is None or pd.isna(value):
        return "–"
    return f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None) -> str:
    """A difference for people, with its sign."""
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def _p(value: float | None) -> str:
    """p for people, with its sign: "= 0.031", "< 0.001"."""
    if value is None:
        return "not known"
    return p_value(value).removeprefix("p ").replace(" ", "\u00a0")


def _p_alone(value: float | None) -> str:
    """p for a column of them: "0.031", "< 0.001"."""
    return _p(value).removeprefix("=\u00a0")


def _interval(ends: tuple[float, float] | None, digits: int = 3) -> str:
    return "" if ends is None else f"{number(ends[0], digits)} to {number(ends[1], digits)}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f}\u00a0%"


def _percents(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{_percent(ends[0])} to {_percent(ends[1])}"
