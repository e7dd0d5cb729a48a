"""Writes the metrics, predictions and pictures of a finished run anew, from its directories alone.

    python -m steph_jax.evaluate --workdir W

A fold's directory holds its model (task vectors included), its patients and what became of them;
only the features are read from elsewhere: from where training found them, or from `--features`.
"""

import pathlib

from absl import flags

from steph_jax import checkpoints, cli, fold_files, runs, scoring, settings, summaries
from steph_jax.data import features
from steph_jax.data.batches import choose_layout
from steph_jax.data.bins import TimeBins
from steph_jax.data.cache import open_bags
from steph_jax.feed import Feed
from steph_jax.methods.registry import recipe
from steph_jax.program import device_mesh, program_of
from steph_jax.representations import Representations


def main() -> int:
    """The entry point."""
    workdir = pathlib.Path(flags.FLAGS.workdir)
    config = runs.load(workdir)
    with runs.locked(workdir):
        directories = {fold: runs.fold_directory(workdir, fold) for fold in config["folds"]}
        done = [f for f, at in directories.items() if runs.training_record(at).is_file()]
        if not done:
            raise ValueError(f"{workdir}: no fold is finished yet; run steph_jax.train to its end")
        for fold in done:
            evaluate_fold(directories[fold], config, flags.FLAGS.features)
        summaries.write(workdir, config | {"folds": done})
    return 0


def evaluate_fold(directory: pathlib.Path, config: dict, features_at: str | None = None) -> None:
    """Evaluates the model of one fold on its training and test patients.

    Args:
        directory: of the fold.
        config: settings of the run.
        features_at: where the features are, if not where training found them.
    """
    numbers = fold_files.read_training(directory)
    model = checkpoints.load_model(directory / "model")
    table, split = fold_files.read_patients(directory)
    data = config["data"]
    location = features_at or settings.features_location(data, config["dataset"])
    source = features.open_features(
        location,
        dataset_name=data["hdf5_dataset"],
        feature_dim=model.architecture.feature_dim,
    )
    bags = open_bags(
        source,
        table.patients,
        table.slides,
        settings.feature_dtype(config["compute_dtype"]),
        data["cache_gb"],
        config["batch_size"],
    )
    objective = settings.stored_objective(model)
    bins = TimeBins.from_json(model.settings["bins"])
    method = recipe(model.kind)
    dtype = settings.compute_dtype(config["compute_dtype"])
    mesh = device_mesh()
    size = config["batch_size"]
    layout = choose_layout(
        bags.num_patches, size, settings.patches_per_group(mesh.devices.flat[0].platform)
    )
    feed = Feed(bags, layout, mesh, size, settings.resident_bytes(data, mesh.devices.flat[0]))
    represent = Representations(feed, dtype)
    labels = scoring.cohort_labels(table, bins) | method.patient_inputs(model, represent)
    ready = method.restore(model, dtype)
    program = program_of(ready.method, None, mesh, feed.num_slots)
    trainable, frozen = program.replicate((ready.trainable, ready.frozen))
    evaluate = scoring.Evaluator(program, frozen, feed, labels, table, objective)
    parts = {
        "train": evaluate(trainable, split.train),
        "test": evaluate(trainable, split.test),
    }
    parts = scoring.with_curves(parts, model)
    alone = scoring.target_only(model, evaluate, split.test)
    fold_files.write_results(directory, parts, table, model, numbers | {"target_only": alone})


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Of a run of steph_jax.train.")
    flags.DEFINE_string("features", None, "Features, if not where training found them.")
    cli.app_run(main, required=("workdir",))
