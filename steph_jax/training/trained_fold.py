"""What a trained fold leaves in its directory, and in the pool."""

import dataclasses
import pathlib
import shutil

from steph_jax import files, run_directory
from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.evaluation import evaluator, fold_results
from steph_jax.evaluation.evaluator import SplitScores
from steph_jax.methods import abmil
from steph_jax.models import task_vectors
from steph_jax.training import history as epoch_rows
from steph_jax.training.experiment import Experiment
from steph_jax.training.fitting import inner_directory
from steph_jax.training.loop import TrainResult
from steph_jax.training.pool_growth import as_pool_member, saves_to_pool
from steph_jax.training.subset_pool import SUBSET
from steph_jax.training.sweep import SweepResult


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedFold:
    """A fold that is trained and evaluated, before any of it is written.

    Attributes:
        number: of the fold.
        selection: what its sweep selected.
        result: of its training.
        stored: the trained model.
        parts: its "train" and "test" patients.
        target_only: numbers of the target's own model on the test patients.
        null_model: those of the null model; None where they are not shown.
    """

    number: int
    selection: SweepResult
    result: TrainResult
    stored: SavedModel
    parts: dict[str, SplitScores]
    target_only: dict[str, float]
    null_model: dict[str, float] | None


def write_fold(run: Experiment, fold: TrainedFold, directory: pathlib.Path) -> None:
    """Writes the model and the results of a fold.

    Args:
        run: config and data.
        fold: what is written.
        directory: of the fold.
    """
    config, cohort, split = run.config, run.cohort, run.cohort.folds[fold.number]
    result, model, history = fold.result, fold.result.start, fold.result.history
    saved_model.save_model(directory / "model", fold.stored)
    # Before the metrics, which mark the fold as finished.
    if saves_to_pool(config):
        abmil.add_to_pool(run.pool, as_pool_member(fold.stored, run, split, fold.parts["test"]))
    fold_results.write_patients(directory, cohort.table, split)
    files.write_table(directory / "history.csv", epoch_rows.history_table(history))
    count = task_vectors.count_parameters(result.trainable) if run.method.trains else 0
    count = model.metadata.get("fitted_parameters", count)
    fields = (
        *("source", "source_train_c_index", "cohorts", "weights", "restarts"),
        *("penalty", "pool_weights", "source_share"),
    )
    numbers = (
        {
            "method": config.method,
            "control": config.control,
            "dataset": config.dataset,
            "fold": fold.number,
            "seed": config.seed,
            "train_patients": config.train_patients,
            "best_epoch": config.validation.best_epoch(history),
            "trainable_parameters": count,
        }
        | epoch_rows.training_numbers(history, result.collapsed_seconds + result.fit_seconds)
        | {name: model.metadata[name] for name in fields if name in model.metadata}
        | fold.selection.record()
    )
    if fold.null_model is not None:
        numbers["null_model"] = fold.null_model
    files.write_json(run_directory.training_record(directory), numbers)
    shutil.rmtree(inner_directory(directory), ignore_errors=True)
    shutil.rmtree(directory / SUBSET, ignore_errors=True)
    numbers["target_only"] = fold.target_only
    fold_results.write_results(
        directory,
        evaluator.parts_with_curves(fold.parts, fold.stored),
        cohort.table,
        fold.stored,
        numbers,
        config.evaluate.years,
    )
