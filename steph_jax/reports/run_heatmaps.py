"""Heatmaps of a report: where the model looks in patients of high, median and low risk."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from steph_jax import plots, run_directory
from steph_jax.data.features.open import open_features
from steph_jax.data.features.source import FeatureSource
from steph_jax.evaluation import fold_results
from steph_jax.heatmaps import pictures
from steph_jax.heatmaps.viewer import Viewer, coordinates_of
from steph_jax.messages import USER_ERRORS
from steph_jax.reports import pages

#: Of the longer side of a map: small, so that its words are large on a page.
_INCHES = 2.5


def section(workdir: pathlib.Path, settings: Mapping[str, Any], fold: int) -> dict[str, Any]:
    """Maps of three test patients of a fold, each of its slide with the most patches.

    Args:
        workdir: of the run.
        settings: of the run.
        fold: that is finished.

    Returns:
        {"fold", "reference", "own", "patients": [{"which", "patient_id", "slide_id", "slides",
        "risk", "image"}]}, images as data: URIs; or {"missing": why there are none}.
    """
    try:
        return _section(workdir, settings, fold)
    except USER_ERRORS as problem:
        return {"missing": " ".join(str(problem).split())}


def without_images(heatmaps: Mapping[str, Any]) -> dict[str, Any]:
    """What `section` gives, but for the pictures."""
    patients = [
        {name: value for name, value in patient.items() if name != "image"}
        for patient in heatmaps.get("patients", [])
    ]
    return {**heatmaps, **({"patients": patients} if patients else {})}


def _section(workdir: pathlib.Path, settings: Mapping[str, Any], fold: int) -> dict[str, Any]:
    directory = run_directory.fold_directory(workdir, fold)
    viewer = Viewer.load(directory)
    try:
        data = settings["data"]
        location = data["features"].format(dataset=settings["dataset"], root=data["root"])
    except (KeyError, IndexError, AttributeError, TypeError, ValueError):
        raise ValueError("the settings of the run do not say where its features are") from None
    source = open_features(
        location,
        dataset_name=data.get("hdf5_dataset", "features"),
        feature_dim=viewer.model.architecture.feature_dim,
    )
    table, _ = fold_results.read_patients(directory)
    slides_of = dict(zip(table.patients, table.slides, strict=True))
    path = directory / "predictions_test.csv"
    risks = pd.read_csv(path, dtype={"patient_id": str}, keep_default_na=False)
    chosen = extremes(risks["risk"].to_numpy(np.float64))
    return {
        "fold": fold,
        "reference": viewer.reference,
        "own": viewer.own is not None,
        "patients": [
            {"which": which}
            | _patient(viewer, source, patient := str(risks["patient_id"][row]), slides_of[patient])
            for which, row in chosen.items()
        ],
    }


def extremes(risk: np.ndarray) -> dict[str, int]:
    """Rows of the highest, the median and the lowest risk, as far as they are different rows."""
    order = np.argsort(-risk, kind="stable")
    rows = {
        "highest": order[0],
        "median": order[(len(order) - 1) // 2],
        "lowest": order[-1],
    }
    seen: dict[str, int] = {}
    for name, row in rows.items():
        if int(row) not in seen.values():
            seen[name] = int(row)
    return seen


def _patient(
    viewer: Viewer, source: FeatureSource, patient: str, slides: tuple[str, ...]
) -> dict[str, Any]:
    slide = max(slides, key=source.num_patches)
    coordinates = coordinates_of(source, slide)
    size = coordinates.size
    seen = viewer.patient(source, patient, slides)
    rows = pictures.panels(seen.tables[slide])
    figure = plots.patch_maps_figure(
        coordinates.xy, size, rows, pictures.shown_name(slide), inches=_INCHES
    )
    return {
        "patient_id": patient,
        "slide_id": slide,
        "slides": len(slides),
        "risk": seen.risk,
        "image": pages.uri(pages.png_of(figure)),
    }
