"""A report as one HTML page that needs no network: text, tables and pictures inside."""

import base64
import io
import pathlib
from collections.abc import Mapping
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from steph_jax import files, plots
from steph_jax.messages import setting_values
from steph_jax.plots.style import DPI
from steph_jax.reports import provenance, run_numbers
from steph_jax.run_directory import flatten


def write(workdir: pathlib.Path) -> pathlib.Path:
    """Writes report.json and then report.html of a run with a finished fold or more.

    Returns:
        the page.

    Raises:
        FileNotFoundError, ValueError: as `run_numbers.report_numbers` does.
        OSError: the page cannot be written.
    """
    numbers = run_numbers.report_numbers(workdir)
    numbers["provenance"] = provenance.read(workdir)
    files.write_json(workdir / "report.json", numbers)
    page = workdir / "report.html"
    files.write_text(page, html(numbers, pictures(workdir, numbers)))
    return page


def pictures(workdir: pathlib.Path, numbers: Mapping[str, Any]) -> dict[str, str]:
    """Pictures by name, as data: URIs; those that cannot be drawn are left out."""
    title = f"{numbers['dataset']}, {numbers['method']}"
    found = {}
    for name in ("c_index", "risk_groups", "source_weights"):
        path = workdir / f"{name}.png"
        if path.is_file():
            found[name] = _uri(path.read_bytes())
    if numbers["d_calibration"] is not None:
        figure = plots.calibration_figure(
            numbers["calibration"], numbers["d_calibration"]["shares"], f"{title}, test patients"
        )
        found["calibration"] = _uri(_png(figure))
    return found


def html(numbers: Mapping[str, Any], images: Mapping[str, str]) -> str:
    """The page; every text of the numbers is escaped."""
    loader = jinja2.PackageLoader("steph_jax.reports", ".")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.undefined = jinja2.StrictUndefined
    environment.filters |= {"number": _number, "interval": _interval, "percent": _percent}
    settings = {
        name: setting_values({name: value}).partition("=")[2]
        for name, value in flatten(numbers["settings"]).items()
    }
    return environment.get_template("run.html").render(n=numbers, images=images, settings=settings)


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def _uri(png: bytes) -> str:
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
