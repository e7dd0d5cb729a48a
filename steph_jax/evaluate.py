"""Writes metrics, predictions, pictures and report of a finished run again, from its directories.

    python -m steph_jax.evaluate --workdir W

A fold's directory holds its model (task vectors included), its patients and what became of them;
only the features are read from elsewhere: from where training found them, or from `--features`.
"""

import pathlib
from typing import NamedTuple

from absl import flags

from steph_jax import cli, run_directory
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.cohort import Fold
from steph_jax.engine.loader import DeviceLoader
from steph_jax.evaluation import evaluator, fold_results, run_summary
from steph_jax.evaluation.evaluator import Evaluator
from steph_jax.methods.registry import load_model
from steph_jax.reports import run_page
from steph_jax.training import experiment
from steph_jax.training.config import Config, stored_config


def main() -> int:
    """The entry point."""
    workdir = flags.FLAGS.workdir
    config = stored_config(workdir)
    directories = {fold: run_directory.fold_directory(workdir, fold) for fold in config.folds}
    done = [f for f, at in directories.items() if run_directory.training_record(at).is_file()]
    if not done:
        raise ValueError(f"{workdir}: no fold is finished yet; run steph_jax.train to its end")
    with run_directory.folds_locked(workdir, done):
        for fold in done:
            evaluate_fold(directories[fold], config, flags.FLAGS.features)
        with run_directory.locked(workdir, run_directory.TURN_SECONDS):
            run_summary.write(workdir, config.dataset, config.method, config.seed, done)
    print(f"report: {run_page.write(workdir)}")
    return 0


class OpenFold(NamedTuple):
    """A trained fold: its model, what runs it on the fold's patients, and who they are."""

    model: SavedModel
    evaluate: Evaluator
    split: Fold


def open_fold(
    directory: pathlib.Path, config: Config, features_at: str | pathlib.Path | None = None
) -> OpenFold:
    """The model of a fold and the features of its patients.

    Args:
        directory: of the fold.
        config: of the run.
        features_at: where the features are, if not where training found them.

    Raises:
        FileNotFoundError, ValueError: a file of the fold, or features, that are missing or damaged.
    """
    model = load_model(directory / "model")
    table, split = fold_results.read_patients(directory)
    source = experiment.open_source(
        config, config.dataset, features_at, model.architecture.feature_dim
    )
    (bags,) = experiment.open_all_bags(config, [(source, table)])
    loader = DeviceLoader.open(bags, config.batch_size, config.data.device_gb)
    evaluate = Evaluator.load(model, loader, table, config.precision.operands)
    return OpenFold(model, evaluate, split)


def evaluate_fold(
    directory: pathlib.Path, config: Config, features_at: str | pathlib.Path | None = None
) -> None:
    """Evaluates the model of one fold on its patients; arguments as in `open_fold`."""
    numbers = fold_results.read_training(directory)
    model, evaluate, split = open_fold(directory, config, features_at)
    table = evaluate.table
    parts = {"train": evaluate(split.train), "test": evaluate(split.test)}
    parts = evaluator.parts_with_curves(parts, model)
    numbers = numbers | {"target_only": evaluator.target_only(model, evaluate, split.test)}
    fold_results.write_results(directory, parts, table, model, numbers, config.evaluate.years)


if __name__ == "__main__":
    cli.define_path("workdir", None, "Of a run of steph_jax.train.")
    cli.define_path("features", None, "Features, if not where training found them.")
    cli.app_run(main, required=("workdir",))
