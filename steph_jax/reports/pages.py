"""What all reports share: the templates, and pictures and numbers as a page has them."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from steph_jax.plots.style import DPI, p_value


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
        "number": _number,
        "signed": _signed,
        "p": _p,
        "interval": _interval,
        "percent": _percent,
        "percents": _percents,
    }
    return environment.get_template(template).render(**values)


def png_of(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


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
    return {
        name: "; ".join(
            reason if len(where) == num_folds else f"{', '.join(where)}: {reason}"
            for reason, where in by_reason.items()
        )
        for name, by_reason in folds.items()
    }


def _number(value: float | None, digits: int = 3) -> str:
    """A number for people; a dash where there is none."""
    if value is None or pd.isna(value):
        return "–"
    return f"{value:.{digits}f}".replace("-", "−")


def _signed(value: float | None) -> str:
    """A difference for people, with its sign."""
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def _p(value: float | None) -> str:
    """p for people, with its sign: "= 0.031", "< 0.001"."""
    return "not known" if value is None else p_value(value).removeprefix("p ")


def _interval(ends: tuple[float, float] | None, digits: int = 3) -> str:
    return "" if ends is None else f"{_number(ends[0], digits)} to {_number(ends[1], digits)}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _percents(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{_percent(ends[0])} to {_percent(ends[1])}"
