"""Trains a method on the folds of a dataset and writes what came out.

    python -m steph_jax.train --config configs/brca.py --workdir runs/brca

Read from top to bottom: settings, data, then for every fold the model, the epochs, the results. A
run that was interrupted goes on where its last epoch ended when the same command is given again.

W/summary.json          {"c_index": {"folds", "mean", "sd"}, ...} over the folds of the run
W/config.json           the settings
W/fold_{k}/             all that `evaluate` and `predict` need:
    model/              the trained model (steph_jax.checkpoints), task vectors included
    metrics.json        {"train": {"c_index", "nll"}, "test": {...}, ...}; written last
    predictions_test.csv, merge_weights_test.csv, history.csv, pictures
"""

import pathlib
import sys
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any

import jax
import pandas as pd
from absl import flags, logging
from ml_collections import config_flags
from tqdm import tqdm

from steph_jax import (
    checkpoints,
    cli,
    epochs,
    files,
    fitting,
    report,
    runs,
    settings,
    task_vectors,
)
from steph_jax.data import batches, features
from steph_jax.data.cache import Bags, open_bags
from steph_jax.data.cohort import Cohort, load_cohort
from steph_jax.methods import abmil
from steph_jax.methods.recipe import with_settings
from steph_jax.methods.registry import recipe
from steph_jax.pool import Pool
from steph_jax.program import device_mesh, program_of


def main() -> int:
    """The entry point."""
    train(settings.as_dict(flags.FLAGS.config), pathlib.Path(flags.FLAGS.workdir))
    return 0


def train(config: dict[str, Any], workdir: pathlib.Path) -> dict[str, Any]:
    """Runs all folds of a config that are not finished; returns the summary.

    Args:
        config: as `settings.as_dict` gives it.
        workdir: where the run keeps its files.

    Raises:
        ValueError, FileNotFoundError: a setting, file or directory that cannot be used.
    """
    settings.check(config)
    method = recipe(config["method"])
    data, dataset = config["data"], config["dataset"]
    pool = Pool(pathlib.Path(config["pool"]["root"]))
    cohort = load_cohort(
        pathlib.Path(data["root"]), dataset, config["folds"], settings.columns(data)
    )
    # A fold's model is made before the features are read: a pool that lacks one is known at once.
    for fold in config["folds"]:
        method.start(fold_spec(config, cohort, fold), pool)
    with runs.locked(workdir):
        runs.settle(workdir, config, settings.FREE)
        logging.info("devices: %s", ", ".join(str(d) for d in jax.local_devices()))
        unfinished = [
            fold
            for fold in config["folds"]
            if not runs.is_finished(runs.fold_directory(workdir, fold))
        ]
        if unfinished:
            source = features.open_features(
                settings.features_location(data, dataset), dataset_name=data["hdf5_dataset"]
            )
            dtype = settings.feature_dtype(config["compute_dtype"])
            bags = open_bags(
                source,
                cohort.table.patients,
                cohort.table.slides,
                dtype,
                data["cache_gb"],
                config["batch_size"],
            )
            for fold in unfinished:
                train_fold(config, cohort, bags, pool, fold, workdir)
        return report.summarize(workdir, config)


def fold_spec(config: dict[str, Any], cohort: Cohort, fold: int) -> Any:
    """What a fold asks of its method; the number of outputs follows from bins and loss."""
    bins = fold_bins(config, cohort, fold)
    num_outputs = settings.objective(config["loss"]).output.num_outputs(bins.num_bins)
    return settings.spec(config, fold, num_outputs)


def fold_bins(config: dict[str, Any], cohort: Cohort, fold: int) -> Any:
    """Time bins of a fold, from its training patients."""
    trained = cohort.folds[fold].train
    return settings.time_bins(
        config["bins"], cohort.table.time[trained], cohort.table.event[trained]
    )


def train_fold(
    config: dict[str, Any],
    cohort: Cohort,
    bags: Bags,
    pool: Pool,
    fold: int,
    workdir: pathlib.Path,
) -> None:
    """Trains and evaluates one fold, from its last finished epoch."""
    directory = runs.fold_directory(workdir, fold)
    directory.mkdir(exist_ok=True)

    # --- model ---
    method = recipe(config["method"])
    bins = fold_bins(config, cohort, fold)
    objective = settings.objective(config["loss"])
    model = method.start(fold_spec(config, cohort, fold), pool)
    model = with_settings(
        model, bins=bins.to_json(), objective=settings.objective_record(objective)
    )
    if bags.feature_dim != model.architecture.feature_dim:
        raise ValueError(
            f"features of {config['dataset']} have D = {bags.feature_dim}, the models of "
            f"{pool.root} expect D = {model.architecture.feature_dim}; use features of the encoder "
            "that the pool was fitted on"
        )
    ready = method.restore(model, settings.compute_dtype(config["compute_dtype"]))
    frozen = jax.tree.map(jax.numpy.asarray, ready.frozen)

    # --- data ---
    split = cohort.folds[fold]
    labels = report.cohort_labels(cohort.table, bins)
    size = config["batch_size"]
    if len(split.train) < size:
        raise ValueError(
            f"fold {fold} of {config['dataset']} has {len(split.train)} training patients, fewer "
            f"than one batch of {size}; lower --config.batch_size"
        )
    mesh = device_mesh()
    layout = batches.choose_layout(
        bags.num_patches, size, settings.patches_per_group(mesh.devices.flat[0].platform)
    )

    # --- compiled phases, optimizer, state ---
    program = program_of(
        ready.method,
        report.loss_function(objective),
        mesh,
        batches.slots_for(size, mesh.size),
    )
    sources = model.settings.get("sources", [])
    evaluate = report.Evaluator(program, frozen, bags, layout, labels, cohort.table, objective)
    steps = len(split.train) // size
    schedule = fitting.learning_rates(
        config["learning_rate"], config["warmup_epochs"] * steps, config["epochs"] * steps
    )
    optimizer = fitting.adamw(schedule, config["weight_decay"])
    state = fitting.initial_state(ready.trainable, optimizer)
    store = epochs.EpochStore(directory / "checkpoints")
    start = epochs.fingerprint(model)
    begun, state, history = store.restore(state, start)
    if begun:
        logging.info("fold %d: going on after epoch %d", fold, begun)
    key = jax.random.fold_in(jax.random.key(config["seed"]), 2)

    # --- epochs ---
    orders = [
        list(batches.epoch_order(split.train, size, config["seed"], epoch))
        for epoch in range(config["epochs"])
    ]
    for epoch, order in enumerate(orders[begun:], begun):
        tests = (epoch + 1) % config["eval_every"] == 0 or epoch + 1 == config["epochs"]
        following = orders[epoch + 1] if epoch + 1 < config["epochs"] else []
        bags.expect([*chain(*order), *(split.test if tests else ()), *chain(*following)])
        made = (
            batches.make_batch(
                bags, layout, chosen, labels, program.num_slots, mesh.size, program.place
            )
            for chosen in order
        )
        label = f"fold {fold} epoch {epoch + 1}/{config['epochs']}"
        state, passed = fitting.train_epoch(
            program,
            optimizer,
            state,
            frozen,
            made,
            key,
            epoch * steps,
            partial(bar, total=steps, label=label),
        )
        row = {"epoch": epoch + 1, "learning_rate": float(schedule((epoch + 1) * steps - 1))}
        row |= report.epoch_row(passed, cohort.table, bags, labels, objective, sources)
        if tests:
            tested = evaluate(state.trainable, split.test)
            row |= {f"test_{name}": value for name, value in tested.scores.items()}
        history.append(row)
        logging.info("%s: %s", label, report.epoch_line(row))
        store.save(epoch + 1, state, history, start)

    store.close()

    # --- results ---
    trained = method.store(model, jax.device_get(state.trainable))
    checkpoints.save_model(directory / "model", trained)
    report.write_patients(directory, cohort.table, split)
    table = pd.DataFrame(history)
    files.write_table(directory / "history.csv", table)
    parts = {
        part: evaluate(state.trainable, rows)
        for part, rows in (("train", split.train), ("test", split.test))
    }
    report.write_fold(
        directory,
        parts,
        cohort.table,
        trained,
        {
            "method": config["method"],
            "dataset": config["dataset"],
            "fold": fold,
            "seed": config["seed"],
            "epochs": config["epochs"],
            "trainable_parameters": task_vectors.count_parameters(ready.trainable),
            "train_seconds": float(table["seconds"].sum()),
            "train_slides_per_second": report.median_speed(table),
        },
    )
    if config["method"] == "abmil" and config["pool"]["save"]:
        abmil.add_to_pool(pool, trained, config["seed"])


def bar(iterator: Iterator[Any], total: int, label: str) -> Iterator[Any]:
    """A progress bar on a terminal; nothing in a log, where every epoch has its line."""
    return iter(
        tqdm(iterator, total=total, desc=label, unit="step", disable=not sys.stderr.isatty())
    )


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Where the run keeps its files.")
    cli.app_run(main, required=("config", "workdir"))
