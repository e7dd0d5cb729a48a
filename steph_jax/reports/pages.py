"""What all reports share: the templates, and pictures and numbers as a page has them."""

import base64
import io
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from steph_jax.plots.style import DPI


def render(template: str, **values: Any) -> str:
    """A page of a template; every text among the values is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("steph_jax.reports", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": _number, "interval": _interval, "percent": _percent}
    return environment.get_template(template).render(**values)


def png_of(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _number(value: float | None, digits: int = 3) -> str:
    """A number for people; a dash where there is none."""
    if value is None or pd.isna(value):
        return "–"
    return f"{value:.{digits}f}".replace("-", "−")


def _interval(ends: tuple[float, float] | None, digits: int = 3) -> str:
    return "" if ends is None else f"{_number(ends[0], digits)} to {_number(ends[1], digits)}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
