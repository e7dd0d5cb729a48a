"""Where a model looks on slides, and what each patch adds to the risk; from stored features alone.

    python -m steph_jax.heatmap --checkpoint W/fold_0 --features DIR --slides ID,ID --out DIR
    python -m steph_jax.heatmap ... --slides ID --slide ID.svs

For every slide ID, in DIR:

    ID.csv             a row for each patch: x, y (left upper corner, pixels of level 0), attention,
                       percentile, contribution; own_* of the target's own model, *_difference what
                       merging changed
    ID.png             the same as maps
    ID.geojson         the same for QuPath (drag it onto the slide; Measure > Show measurement maps)
    ID.patches.png     with --slide: the patches that stand out, and the maps lie on the slide
    top_patches.csv    patches of most attention, and those that raise and lower the risk most
    slides.csv         risk of each slide's patient, and what contributions are measured from

Attention adds up to 1 over all slides of a patient, for they are one bag to the model. Patients are
those of --table, or of the fold where the checkpoint is one of a run, or else every slide is a
patient. Contributions add up to the patient's risk less the fold's cut between the risk groups
(equation 55 of docs/method.md). --sources adds the attention of models of single sources.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence

import pandas as pd
from absl import flags
from tqdm import tqdm

from steph_jax import cli, files, plots, run_directory
from steph_jax.data import tables
from steph_jax.data.columns import Columns
from steph_jax.data.features.coordinates import PIXELS, Coordinates
from steph_jax.data.features.open import open_features, slides_in
from steph_jax.data.features.slide_ids import resolve_slide_id, slide_name
from steph_jax.data.features.source import FeatureSource
from steph_jax.evaluation import fold_results
from steph_jax.heatmaps import pictures
from steph_jax.heatmaps.tables import file_name, geojson, slide_table, top_patches
from steph_jax.heatmaps.viewer import PatientMaps, Viewer, coordinates_of
from steph_jax.heatmaps.wsi import Slide
from steph_jax.messages import join_names, naming_flags

#: Flags of this program for settings that messages name.
_FLAGS = {
    "data.hdf5_dataset": "--hdf5_dataset",
    "data.columns.patient": "--patient_column",
    "data.columns.slide": "--slide_column",
}
TOP_TABLE, SLIDES_TABLE = "top_patches.csv", "slides.csv"


@naming_flags(_FLAGS)
def main(more_files: Sequence[str]) -> int:
    """The entry point; `more_files` are those a shell put behind the first of --features."""
    arguments = flags.FLAGS
    features = [*arguments.features, *map(files.path_of, more_files)]
    files.check_output_folder(arguments.out)
    viewer = Viewer.load(arguments.checkpoint, arguments.sources)
    source = open_features(
        features if len(features) > 1 else features[0],
        dataset_name=arguments.hdf5_dataset,
        feature_dim=viewer.model.architecture.feature_dim,
    )
    columns = Columns(patient=arguments.patient_column, slide=arguments.slide_column)
    if columns != Columns() and not arguments.table:
        raise ValueError("--patient_column and --slide_column name columns of a --table; give one")
    slides = [resolve_slide_id(slide, source.slide_ids) or slide for slide in arguments.slides]
    source.require(slides)
    written = heatmaps(
        viewer,
        source,
        patients_of(slides, source, arguments.checkpoint, arguments.table, columns),
        arguments.out,
        Request(
            arguments.coords and slides_in(arguments.coords),
            images_of(slides, arguments.slide or ()),
            arguments.patch_size,
            arguments.mpp,
            arguments.top,
            [*(arguments.slide or ()), *([arguments.table] if arguments.table else [])],
        ),
    )
    print(f"heatmaps of {len(written)} slide(s) written to {arguments.out}")
    if viewer.reference is None:
        print(
            "contributions are measured from each patient's own risk and add up to 0: the "
            "checkpoint is no fold of a run, whose training patients would give a cut"
        )
    if viewer.own is None:
        print("the checkpoint holds no model of the target's own, so nothing is compared with it")
    elif viewer.own_output is None:
        print("outputs of the target's own model mean something else: its attention is compared")
    return 0


@dataclasses.dataclass(frozen=True)
class Request:
    """Options other than the slides.

    Attributes:
        coords: files of patches by name, in place of those in the files of features.
        images: files of slides, by slide id.
        patch_size: side of a patch in pixels of level 0, in the place of what files say.
        mpp: micrometers per pixel of level 0, for coordinates in micrometers.
        top: patches of each list of top_patches.csv.
        inputs: files that nothing may be written over.
    """

    coords: Mapping[str, pathlib.Path] | None = None
    images: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    patch_size: float | None = None
    mpp: float | None = None
    top: int = 8
    inputs: Sequence[pathlib.Path] = ()


def patients_of(
    slides: Sequence[str],
    source: FeatureSource,
    checkpoint: pathlib.Path,
    table: pathlib.Path | None = None,
    columns: Columns | None = None,
) -> dict[str, tuple[list[str], list[str]]]:
    """The patients of some slides: all slides of each, and those that were asked for.

    Args:
        slides: ids, as the source has them.
        source: of the features.
        checkpoint: a fold of a run knows its patients.
        table: survival table that says whose slides are whose, before the fold does.
        columns: of the table.

    Raises:
        ValueError: slides that the table lacks.
        FileNotFoundError: other slides of these patients have no features.
    """
    if table is not None:
        slides_of = tables.read_slides(table, columns or Columns())
    elif (checkpoint / fold_results.PATIENTS).is_file():
        patients = fold_results.read_patients(checkpoint)[0]
        slides_of = dict(zip(patients.patients, patients.slides, strict=True))
    else:
        slides_of = {}
    own = {
        patient: [resolve_slide_id(slide, source.slide_ids) or slide for slide in names]
        for patient, names in slides_of.items()
    }
    patient_of = {slide: patient for patient, names in own.items() for slide in names}
    unknown = [slide for slide in slides if slide not in patient_of]
    if unknown and table is not None:
        raise ValueError(f"{table}: no row for slides of --slides: {join_names(unknown)}")
    chosen: dict[str, tuple[list[str], list[str]]] = {}
    for slide in slides:
        patient = patient_of.get(slide, slide)
        chosen.setdefault(patient, (own.get(patient, [slide]), []))[1].append(slide)
    missing = source.missing(slide for names, _ in chosen.values() for slide in names)
    if missing:
        raise FileNotFoundError(
            f"{source.location}: no features of {join_names(missing)}: other slides of the same "
            "patients, all of which are one bag to the model; add them, or give a --table without"
        )
    return chosen


def images_of(slides: Sequence[str], images: Sequence[pathlib.Path]) -> dict[str, pathlib.Path]:
    """Which file of --slide is which slide: by their names, or the only one of the only slide.

    Raises:
        ValueError: a file whose name is that of no slide.
    """
    if len(slides) == len(images) == 1:
        return {slides[0]: images[0]}
    names = {slide_name(slide): slide for slide in slides}
    unknown = [str(image) for image in images if slide_name(image.name) not in names]
    if unknown:
        raise ValueError(
            f"--slide: {join_names(unknown)}: no slide of --slides has this name; name files of "
            f"{join_names(slides)}"
        )
    return {names[slide_name(image.name)]: image for image in images}


def heatmaps(
    viewer: Viewer,
    source: FeatureSource,
    patients: Mapping[str, tuple[list[str], list[str]]],
    out: pathlib.Path,
    request: Request,
) -> list[str]:
    """Writes the files of some slides, each of them whole or not at all.

    Args:
        viewer: of the model.
        source: of the features.
        patients: as `patients_of` gives them.
        out: folder, made if need be.
        request: what else is asked for.

    Returns:
        the slides, in order.

    Raises:
        ValueError: a slide without coordinates, before anything is written; see also `Viewer`.
    """
    asked = [(slide, patient) for patient, (_, slides) in patients.items() for slide in slides]
    places = {slide: places_of(source, slide, request) for slide, _ in asked}
    run_directory.make(out)
    for path in outputs(out, [slide for slide, _ in asked], request):
        files.check_output(path, request.inputs)
    tops, rows = [], []
    shown = tqdm(patients.items(), unit="patient", disable=not sys.stderr.isatty())
    for patient, (names, slides) in shown:
        seen = viewer.patient(source, patient, names)
        for slide in slides:
            top = write_slide(viewer, seen, slide, *places[slide], out, request)
            top.insert(0, "patient_id", patient)
            top.insert(0, "slide_id", slide)
            tops.append(top)
            rows.append(_row(seen, slide))
    files.write_table(out / TOP_TABLE, pd.concat(tops, ignore_index=True))
    files.write_table(out / SLIDES_TABLE, pd.DataFrame(rows))
    return [slide for slide, _ in asked]


def outputs(out: pathlib.Path, slides: Sequence[str], request: Request) -> list[pathlib.Path]:
    """All files that are written."""
    names = [TOP_TABLE, SLIDES_TABLE]
    for slide in slides:
        endings = (*(".csv", ".png", ".geojson"), *([".patches.png"] if request.images else ()))
        names += [file_name(slide) + ending for ending in endings]
    return [out / name for name in names]


def places_of(source: FeatureSource, slide: str, request: Request) -> tuple[Coordinates, float]:
    """Where the patches of a slide lie in pixels of level 0, and the side of a patch.

    Raises:
        ValueError: no coordinates, or in micrometers without --mpp; patches of unknown size.
    """
    coordinates = coordinates_of(source, slide, request.coords)
    if not len(coordinates.xy):
        raise ValueError(f"{source.path_of(slide)}: no patches; there is nothing to draw")
    mpp = request.mpp
    if coordinates.unit != PIXELS and mpp is None and slide in request.images:
        with Slide(request.images[slide]) as image:
            mpp = image.micrometers_per_pixel
    if coordinates.unit != PIXELS and mpp is None:
        raise ValueError(
            f"{source.path_of(slide)}: coordinates in micrometers; give --mpp, micrometers per "
            "pixel of level 0"
        )
    pixels = coordinates.in_pixels(mpp or 1.0)
    if request.patch_size is not None:
        return pixels, request.patch_size
    try:
        return pixels, pixels.size
    except ValueError as error:
        raise ValueError(f"{source.path_of(slide)}: {error}; give --patch_size") from None


def write_slide(
    viewer: Viewer,
    seen: PatientMaps,
    slide: str,
    coordinates: Coordinates,
    size: float,
    out: pathlib.Path,
    request: Request,
) -> pd.DataFrame:
    """Writes the files of one slide; returns its part of top_patches.csv."""
    table = slide_table(coordinates.xy, seen.tables[slide])
    top = top_patches(table, request.top)
    name = file_name(slide)
    shown = pictures.shown_name(slide)
    title = f"{shown}: risk {seen.risk:.3g}, reference {seen.reference:.3g}"
    background = None
    if slide in request.images:
        with Slide(request.images[slide]) as image:
            image.expect_patches(coordinates.xy, size)
            background = pictures.background(image)
            rows = pictures.top_pictures(image, top, size)
        plots.patch_pictures(rows, out / f"{name}.patches.png", f"{shown}: patches that stand out")
    files.write_table(out / f"{name}.csv", table)
    files.write_text(out / f"{name}.geojson", geojson(slide, table, size))
    panels = pictures.panels(seen.tables[slide], list(viewer.sources))
    plots.patch_maps(coordinates.xy, size, panels, out / f"{name}.png", title, background)
    return top


def _row(seen: PatientMaps, slide: str) -> dict[str, object]:
    return {
        "slide_id": slide,
        "patient_id": seen.patient_id,
        "slides_of_patient": len(seen.tables),
        "patches": len(seen.tables[slide]),
        "risk": seen.risk,
        "own_risk": seen.own_risk,
        "reference": seen.reference,
        "files": file_name(slide),
    }


if __name__ == "__main__":
    cli.define_path("checkpoint", None, "A fold's directory or an imported model.")
    cli.define_path("features", None, "A directory, .lmdb, store, or files.", multi=True)
    flags.DEFINE_list("slides", None, "Ids of slides, with commas.")
    cli.define_path("out", None, "Folder to write to.")
    cli.define_path("table", None, "CSV with a row for each slide, which says whose it is.")
    flags.DEFINE_string("patient_column", Columns.patient, "Column of patient ids in --table.")
    flags.DEFINE_string("slide_column", Columns.slide, "Column of slide ids in --table.")
    flags.DEFINE_list("sources", [], "Sources whose attention is added, with commas, or all.")
    cli.define_path("coords", None, "Folder of files of patches (TRIDENT's or CLAM's `patches`).")
    cli.define_path("slide", None, "The slide itself, for pictures; one for each ID.", multi=True)
    flags.DEFINE_float("patch_size", None, "Side of a patch, pixels of level 0.", lower_bound=1.0)
    flags.DEFINE_float("mpp", None, "Micrometers per pixel of level 0.", lower_bound=1e-3)
    flags.DEFINE_integer("top", 8, "Patches of each list.", lower_bound=1, upper_bound=50)
    flags.DEFINE_string("hdf5_dataset", "features", "Array in HDF5 and .npz files.")
    cli.app_run(main, required=("checkpoint", "features", "slides", "out"), takes_arguments=True)
