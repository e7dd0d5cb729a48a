"""Risk and survival curves of new patients, from a trained or imported model.

    python -m steph_jax.predict --checkpoint W/fold_0 --features DIR_OR_FILES [--table CSV] --out p.csv

`--checkpoint` is a fold's directory of a run, or a model that convert_torch_ckpt.py imported.
`--features` is what training takes (a directory, a .lmdb, a packed store), or files, as many as
there are. A patient is a patient of the table (columns patient_id and pathology_id), or else a
slide. The output has patient_id, risk (higher = shorter life) and the survival curve surv_1 .. surv_T;
`--merge_weights` writes what STEPH gave each source. Patients without any patch are listed and left
out. Slides are read as they are needed: memory does not grow with the length of a slide.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from tqdm import tqdm

from steph_jax import checkpoints, cli, evaluation, files, runs, settings
from steph_jax.checkpoints import SavedModel
from steph_jax.data import features, survival
from steph_jax.data.bags import LazyBags
from steph_jax.data.batches import choose_layout, slots_for
from steph_jax.evaluation import Predictions
from steph_jax.methods.registry import recipe
from steph_jax.program import Program, device_mesh

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A fold's directory or an imported model.")
FEATURES = flags.DEFINE_multi_string("features", None, "A directory, .lmdb, store, or files.")
TABLE = flags.DEFINE_string("table", None, "CSV of patient_id and pathology_id.")
OUT = flags.DEFINE_string("out", None, "CSV to write.")
MERGE_WEIGHTS = flags.DEFINE_string("merge_weights", None, "CSV of weights per source (STEPH).")
HDF5_DATASET = flags.DEFINE_string("hdf5_dataset", "features", "Array in HDF5 and .npz files.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Patients at a time.", lower_bound=1)
COMPUTE_DTYPE = flags.DEFINE_enum(
    "compute_dtype", "float32", ["float32", "bfloat16"], "Operands of products over patches."
)


def main(more_files: Sequence[str]) -> int:
    """The entry point; `more_files` are those a shell put behind the first of --features."""
    model = checkpoints.load_model(runs.model_directory(pathlib.Path(CHECKPOINT.value)))
    given = [*FEATURES.value, *more_files]
    source = features.open_features(
        given if len(given) > 1 else given[0],
        dataset_name=HDF5_DATASET.value,
        feature_dim=model.architecture.feature_dim,
    )
    if TABLE.value:
        slides_of = survival.read_slides(pathlib.Path(TABLE.value))
    else:
        slides_of = {slide: (slide,) for slide in sorted(source.slide_ids)}
    predicted = predict(model, source, slides_of, BATCH_SIZE.value, COMPUTE_DTYPE.value)
    out = pathlib.Path(OUT.value)
    files.write_table(out, evaluation.predictions_table(predicted))
    print(f"{len(predicted.patients)} patients written to {out}")
    if MERGE_WEIGHTS.value:
        if "weight" not in predicted.record:
            raise ValueError(
                f"{CHECKPOINT.value}: a model of kind {model.kind} has no source weights"
            )
        weights = evaluation.merge_weights_table(predicted, model.settings["sources"])
        files.write_table(pathlib.Path(MERGE_WEIGHTS.value), weights)
    return 0


def predict(
    model: SavedModel,
    source: features.FeatureSource,
    slides_of: dict[str, tuple[str, ...]],
    batch_size: int = 16,
    dtype: str = "float32",
) -> Predictions:
    """Predictions of some patients; those without any patch are listed on the log and left out.

    Args:
        model: any kind of model.
        source: where the features are.
        slides_of: the slides of each patient.
        batch_size: patients at a time.
        dtype: "float32" or "bfloat16", of the operands of products over patches.

    Raises:
        FileNotFoundError: slides without features; lists them.
        ValueError: features that cannot be used.
    """
    bags = LazyBags(source, list(slides_of.values()), settings.feature_dtype(dtype))
    patients = list(slides_of)
    filled = np.flatnonzero(bags.num_patches)
    empty = [patients[i] for i in np.flatnonzero(bags.num_patches == 0)]
    if empty:
        logging.warning(
            "%d patients without any patch are left out: %s", len(empty), ", ".join(empty)
        )
    if not len(filled):
        raise ValueError("no patient has any patch; nothing to predict")
    ready = recipe(model.kind).restore(model, settings.compute_dtype(dtype))
    objective = settings.stored_objective(model)
    mesh = device_mesh()
    budget = settings.patches_per_group(mesh.devices.flat[0].platform)
    layout = choose_layout(bags.num_patches, batch_size, budget)
    program = Program(ready.method, None, mesh, slots_for(batch_size, mesh.size))

    def progress(batches: Any, total: int) -> Any:
        return tqdm(batches, total=total, desc="predict", disable=not sys.stderr.isatty())

    outputs, record = evaluation.run(
        program,
        jax.tree.map(jnp.asarray, ready.trainable),
        jax.tree.map(jnp.asarray, ready.frozen),
        bags,
        filled.tolist(),
        layout,
        {},
        progress,
    )
    return evaluation.predictions([patients[i] for i in filled], outputs, record, objective)


if __name__ == "__main__":
    cli.app_run(main, required=("checkpoint", "features", "out"), takes_arguments=True)
