"""Risk and survival curves of new patients, from a trained or imported model.

    python -m steph_jax.predict --checkpoint W/fold_0 --features DIR [--table CSV] --out preds.csv

`--checkpoint` is a fold's directory of a run, or a model that convert_torch_ckpt.py imported or
`export --to hf` wrote, or a run, whose folds then all predict (evaluation/fold_votes.py).
`--features` is what training takes (a directory, a .lmdb, a packed store), or files, as many as
there are. A patient is a patient of the table (columns patient_id and pathology_id, unless
`--patient_column` and `--slide_column` name others), or else a slide. The output has patient_id,
risk (higher = shorter life) and the survival curve surv_1 .. surv_T; `--merge_weights` writes what
STEPH gave each source. `--out -` is standard output. Patients without any patch are listed and left
out. Slides are read as they are needed: memory does not grow with the length of a slide.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags, logging
from tqdm import tqdm

from steph_jax import cli, files, run_directory
from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data import clinical, tables
from steph_jax.data.bags import OnDiskBags
from steph_jax.data.clinical import ClinicalTable
from steph_jax.data.columns import Columns
from steph_jax.data.features import lookalikes
from steph_jax.data.features.open import open_features
from steph_jax.data.features.source import FeatureSource
from steph_jax.data.features.store import INDEX
from steph_jax.engine.loader import DeviceLoader
from steph_jax.evaluation import fold_votes, predictions
from steph_jax.evaluation.evaluator import Predictor, clinical_predictors
from steph_jax.evaluation.predictions import Predictions
from steph_jax.formats import hub_folder
from steph_jax.messages import join_names, naming_flags
from steph_jax.methods.registry import find_method, load_model
from steph_jax.training.protocol import MOST_PATIENTS_A_STEP
from steph_jax.training.sections import Precision

#: Flags of this program for settings that messages name.
_FLAGS = {
    "data.hdf5_dataset": "--hdf5_dataset",
    "data.columns.patient": "--patient_column",
    "data.columns.slide": "--slide_column",
}


@naming_flags(_FLAGS)
def main(more_files: Sequence[str]) -> int:
    """The entry point; `more_files` are those a shell put behind the first of --features."""
    arguments = flags.FLAGS
    directories = model_directories(arguments.checkpoint)
    features = [*arguments.features, *map(files.path_of, more_files)]
    outputs = [path for path in (arguments.out, arguments.merge_weights) if path is not None]
    inputs = [*directories.values(), *([arguments.table] if arguments.table else [])]
    check_outputs(outputs, inputs)
    models = [open_model(directory) for directory in directories.values()]
    model = models[0]
    if arguments.merge_weights:
        expect_merge_weights(arguments.checkpoint, models)
    cuts = fold_votes.read_cuts(directories) if None not in directories else []
    source = open_features(
        features if len(features) > 1 else features[0],
        dataset_name=arguments.hdf5_dataset,
        feature_dim=model.architecture.feature_dim,
    )
    check_outputs(outputs, files_of(source, features))
    columns = Columns(patient=arguments.patient_column, slide=arguments.slide_column)
    clinical_table = read_clinical(models, arguments.table, columns.patient)
    if arguments.table:
        slides_of = tables.read_slides(arguments.table, columns)
    elif columns != Columns():
        raise ValueError("--patient_column and --slide_column name columns of a --table; give one")
    else:
        slides_of = {slide: (slide,) for slide in sorted(source.slide_ids)}
    patients = Patients.open(source, slides_of, arguments.batch_size, arguments.compute_dtype)
    patients = dataclasses.replace(patients, clinical=clinical_table)
    by_model = [patients.predict(model) for model in models]
    predicted = by_model[0]
    if arguments.merge_weights:
        weights = predictions.merge_weights_table(
            predicted, model.metadata["sources"], model.metadata.get("dataset", "")
        )
        files.write_output(arguments.merge_weights, weights)
    if cuts:
        table = fold_votes.table(predicted.patients, [each.risk for each in by_model], cuts)
    else:
        table = predictions.predictions_table(predicted)
    files.write_output(arguments.out, table)
    to_stdout = any(map(files.is_stdout, outputs))
    print(
        f"{len(predicted.patients)} patients written to {arguments.out}",
        file=sys.stderr if to_stdout else sys.stdout,
    )
    return 0


def model_directories(path: pathlib.Path) -> dict[int | None, pathlib.Path]:
    """Where the models of `--checkpoint` are: of a run by fold, else one, under None.

    Raises:
        ValueError: no fold of a run is finished.
    """
    if not run_directory.is_run(path):
        return {None: run_directory.model_directory(path)}
    folds = run_directory.finished_folds(path)
    if not folds:
        raise ValueError(f"{path}: no fold is finished yet; run steph_jax.train to its end")
    return {
        fold: run_directory.model_directory(run_directory.fold_directory(path, fold))
        for fold in folds
    }


def open_model(directory: pathlib.Path) -> SavedModel:
    """The model of a directory: one of ours, or a folder that `export --to hf` wrote."""
    is_folder = hub_folder.is_hub_folder(directory)
    return hub_folder.read(directory) if is_folder else load_model(directory)


def expect_merge_weights(path: pathlib.Path, models: Sequence[SavedModel]) -> None:
    """Raises ValueError where --merge_weights would have nothing to write, or that of many."""
    if run_directory.is_run(path):
        raise ValueError(f"{path}: --merge_weights are those of one model; name a fold of the run")
    (model,) = models
    # A model whose weights are fixed is one of kind "abmil", with the names of its sources.
    if model.kind == "abmil" or "sources" not in model.metadata:
        raise ValueError(
            f"{path}: a model of kind {model.kind} gives no source a weight that differs between "
            "patients; leave --merge_weights out"
        )


def read_clinical(
    models: Sequence[SavedModel], table: pathlib.Path | None, id_column: str
) -> ClinicalTable | None:
    """The clinical columns that models read, of a table; None where they read none.

    Raises:
        FileNotFoundError, ValueError: as `clinical.read` does; no table is given.
    """
    codings = [coding for m in models for coding in find_method(m.kind).codings(m)]
    names = list(dict.fromkeys(coding.column for coding in codings))
    if not names:
        return None
    if table is None:
        raise ValueError(
            f"a model of kind {models[0].kind} reads the clinical columns {join_names(names)}; "
            "give a --table that has them"
        )
    return clinical.read(table, id_column, names)


def check_outputs(outputs: Sequence[pathlib.Path], inputs: Sequence[pathlib.Path]) -> None:
    """Checks that what is written takes the place of no input, and of nothing but a plain file.

    Raises:
        ValueError, OSError: as `files.check_output` does; two outputs that are one file.
    """
    for path in outputs:
        if not files.is_stdout(path):
            files.check_output(path, inputs)
    if len(outputs) == 2 and files.is_input(*outputs):
        raise ValueError(f"{outputs[0]}: --out and --merge_weights name one file; choose two")


def files_of(source: FeatureSource, locations: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """The files that features are read from; a folder where every file in it is a part of them."""
    paths = []
    for path in locations:
        is_loose = path.is_dir() and not any((path / name).exists() for name in (INDEX, "data.mdb"))
        if is_loose:
            paths += [pathlib.Path(source.path_of(slide)) for slide in source.slide_ids]
        else:
            paths.append(path)
    return paths


@dataclasses.dataclass(frozen=True)
class Patients:
    """The patients to be predicted, whose features are open.

    Attributes:
        names: of all patients.
        loader: of their bags.
        filled: numbers of those with patches.
        precision: of products over patches.
        clinical: columns that models read; None where they read none.
    """

    names: list[str]
    loader: DeviceLoader
    filled: list[int]
    precision: Precision
    clinical: ClinicalTable | None = None

    @classmethod
    def open(
        cls,
        source: FeatureSource,
        slides_of: dict[str, tuple[str, ...]],
        batch_size: int = 16,
        dtype: str = "float32",
    ) -> "Patients":
        """Opens the features; patients without any patch are listed on the log and left out.

        Args:
            source: where the features are.
            slides_of: the slides of each patient.
            batch_size: patients at a time.
            dtype: "float32" or "bfloat16", of the operands of products over patches.

        Raises:
            FileNotFoundError: slides without features; lists them.
            ValueError: features that cannot be used.
        """
        precision = Precision(dtype)
        bags = OnDiskBags(source, list(slides_of.values()), precision.features)
        patients = list(slides_of)
        counts = [source.num_patches(slide) for slides in slides_of.values() for slide in slides]
        slide_level = lookalikes.slide_level_text([number for number in counts if number])
        if slide_level:
            logging.warning("%s: %s", source.location, slide_level)
        filled = np.flatnonzero(bags.num_patches).tolist()
        empty = [patients[i] for i in np.flatnonzero(bags.num_patches == 0)]
        if empty:
            text = "%d patients without any patch are left out: %s"
            logging.warning(text, len(empty), join_names(empty))
        if not filled:
            raise ValueError("no patient has any patch; nothing to predict")
        return cls(patients, DeviceLoader.open(bags, batch_size), filled, precision)

    def predict(self, model: SavedModel) -> Predictions:
        """Predictions of a model of any kind."""
        predictors = clinical_predictors(model, self.clinical, self.names)
        predictor = Predictor.load(
            model, self.loader, self.precision.operands, predictors=predictors
        )

        def progress(batches: Any, total: int) -> Any:
            return tqdm(batches, total=total, desc="predict", disable=not sys.stderr.isatty())

        outputs, aux = predictor(self.filled, progress=progress)
        objective = saved_model.stored_objective(model)
        patients = [self.names[i] for i in self.filled]
        predicted = predictions.predictions_of(patients, outputs, aux, objective)
        return predictions.with_curves(predicted, model.metadata)


def predict(
    model: SavedModel,
    source: FeatureSource,
    slides_of: dict[str, tuple[str, ...]],
    batch_size: int = 16,
) -> Predictions:
    """Predictions of one model; arguments and errors as of `Patients.open`."""
    return Patients.open(source, slides_of, batch_size).predict(model)


if __name__ == "__main__":
    cli.define_path("checkpoint", None, "A fold's directory, a run, or an imported model.")
    cli.define_path("features", None, "A directory, .lmdb, store, or files.", multi=True)
    cli.define_path("table", None, "CSV with a row for each slide.")
    flags.DEFINE_string("patient_column", Columns.patient, "Column of patient ids in --table.")
    flags.DEFINE_string("slide_column", Columns.slide, "Column of slide ids in --table.")
    cli.define_path("out", None, "CSV to write.")
    cli.define_path("merge_weights", None, "CSV of weights per source (STEPH).")
    flags.DEFINE_string("hdf5_dataset", "features", "Array in HDF5 and .npz files.")
    flags.DEFINE_integer(
        "batch_size", 16, "Patients at a time.", lower_bound=1, upper_bound=MOST_PATIENTS_A_STEP
    )
    flags.DEFINE_enum(
        "compute_dtype", "float32", ["float32", "bfloat16"], "Operands of products over patches."
    )
    cli.app_run(main, required=("checkpoint", "features", "out"), takes_arguments=True)
