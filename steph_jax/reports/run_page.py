"""A report as one HTML page that needs no network: text, tables and pictures inside."""

import pathlib
from collections.abc import Mapping
from typing import Any

from steph_jax import files, plots
from steph_jax.reports import clinical_file, pages, run_heatmaps, run_numbers


def write(workdir: pathlib.Path) -> pathlib.Path:
    """Writes report.json and then report.html of a run with a finished fold or more.

    Returns:
        the page.

    Raises:
        FileNotFoundError, ValueError: as `run_numbers.report_numbers` does.
        OSError: the page cannot be written.
    """
    numbers = run_numbers.report_numbers(workdir, clinical_file.read(workdir))
    heatmaps = run_heatmaps.section(workdir, numbers["settings"], numbers["folds"][0])
    numbers["heatmaps"] = run_heatmaps.without_images(heatmaps)
    files.write_json(workdir / "report.json", numbers)
    page = workdir / "report.html"
    files.write_text(page, html(numbers | {"heatmaps": heatmaps}, pictures(workdir, numbers)))
    return page


def pictures(workdir: pathlib.Path, numbers: Mapping[str, Any]) -> dict[str, str]:
    """Pictures by name, as data: URIs; those that cannot be drawn are left out."""
    title = f"{numbers['dataset']}, {numbers['method']}"
    pictures = {}
    for name in ("c_index", "risk_groups", "source_weights"):
        path = workdir / f"{name}.png"
        if path.is_file():
            pictures[name] = pages.uri(path.read_bytes())
    if numbers["d_calibration"] is not None:
        figure = plots.calibration_figure(
            numbers["calibration"], numbers["d_calibration"]["shares"], f"{title}, test patients"
        )
        pictures["calibration"] = pages.uri(pages.png_of(figure))
    return pictures


def html(numbers: Mapping[str, Any], images: Mapping[str, str]) -> str:
    """The page; every text of the numbers is escaped."""
    return pages.render(
        "run.html",
        n=numbers,
        images=images,
        settings=pages.settings_in_words(numbers["settings"]),
        outcome=pages.outcome(numbers["settings"]),
        why=pages.reasons(numbers["missing"], len(numbers["folds"])),
    )
