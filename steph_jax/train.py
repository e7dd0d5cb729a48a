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
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from ml_collections import config_flags
from tqdm import tqdm

from steph_jax import (
    checkpoints,
    cli,
    epochs,
    files,
    fitting,
    metrics,
    report,
    runs,
    settings,
    task_vectors,
)
from steph_jax.abmil import Params
from steph_jax.checkpoints import SavedModel
from steph_jax.data import batches, features
from steph_jax.data.batches import Layout
from steph_jax.data.bins import TimeBins
from steph_jax.data.cache import Bags, open_bags
from steph_jax.data.cohort import Cohort, Fold, load_cohort
from steph_jax.data.joined import joined, other_patients
from steph_jax.data.survival import SurvivalTable, read_table, split_path, table_path
from steph_jax.methods import abmil
from steph_jax.methods.recipe import Recipe, Spec, with_settings
from steph_jax.methods.registry import recipe
from steph_jax.pool import Pool
from steph_jax.program import device_mesh, program_of
from steph_jax.representations import Representations
from steph_jax.selection import Selection


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
    specs = {fold: fold_spec(config, cohort, fold) for fold in config["folds"]}
    for spec in specs.values():
        method.start(spec, pool)
    check_parts(config, cohort)
    with runs.locked(workdir):
        runs.settle(workdir, config, settings.FREE)
        logging.info("devices: %s", ", ".join(str(d) for d in jax.local_devices()))
        unfinished = [
            fold
            for fold in config["folds"]
            if not runs.is_finished(runs.fold_directory(workdir, fold))
        ]
        if unfinished:
            bags = read_bags(config, dataset, cohort.table)
            if method.joins is not None:
                cohort, bags = join_cohorts(config, cohort, bags, method.joins(spec, pool))
            mesh = device_mesh()
            budget = settings.patches_per_group(mesh.devices.flat[0].platform)
            layout = batches.choose_layout(bags.num_patches, config["batch_size"], budget)
            represent = Representations(
                bags,
                layout,
                mesh,
                batches.slots_for(config["batch_size"], mesh.size),
                settings.compute_dtype(config["compute_dtype"]),
            )
            for fold in unfinished:
                train_fold(config, cohort, bags, layout, represent, pool, fold, workdir)
        return report.summarize(workdir, config)


def fold_spec(config: dict[str, Any], cohort: Cohort, fold: int) -> Spec:
    """What a fold asks of its method; the number of outputs follows from bins and loss."""
    bins = fold_bins(config, cohort, fold)
    num_outputs = settings.objective(config["loss"]).output.num_outputs(bins.num_bins)
    return settings.spec(config, fold, num_outputs)


def fold_bins(config: dict[str, Any], cohort: Cohort, fold: int) -> TimeBins:
    """Time bins of a fold, from its training patients."""
    trained = cohort.folds[fold].train
    return settings.time_bins(
        config["bins"], cohort.table.time[trained], cohort.table.event[trained]
    )


def check_parts(config: dict[str, Any], cohort: Cohort) -> None:
    """Raises ValueError for folds with too few training patients, or none to validate on."""
    for fold, split in cohort.folds.items():
        size = config["batch_size"]
        if len(split.train) < size:
            raise ValueError(
                f"fold {fold} of {config['dataset']} has {len(split.train)} training patients, "
                f"fewer than one batch of {size}; lower --config.batch_size"
            )
        if Selection(**config["validation"]).is_on and not len(split.validation):
            path = split_path(pathlib.Path(config["data"]["root"]), config["dataset"], fold)
            raise ValueError(
                f"{path}: expected a column `validation`, for validation.select = "
                f"{config['validation']['select']!r}, found no patients there; add some, or use "
                "--config.validation.select=none"
            )


def read_bags(config: dict[str, Any], dataset: str, table: SurvivalTable) -> Bags:
    """The features of the patients of a dataset."""
    data = config["data"]
    source = features.open_features(
        settings.features_location(data, dataset), dataset_name=data["hdf5_dataset"]
    )
    dtype = settings.feature_dtype(config["compute_dtype"])
    return open_bags(
        source,
        table.patients,
        table.slides,
        dtype,
        data["cache_gb"],
        config["batch_size"],
    )


def join_cohorts(
    config: dict[str, Any], cohort: Cohort, bags: Bags, names: Sequence[str]
) -> tuple[Cohort, Bags]:
    """The target's cohort with all patients of other cohorts behind its own."""
    root, columns = pathlib.Path(config["data"]["root"]), settings.columns(config["data"])
    tables = other_patients(
        [read_table(table_path(root, name), columns) for name in names], cohort.table
    )
    filled = [(name, table) for name, table in zip(names, tables, strict=True) if len(table)]
    return joined(cohort, bags, [(table, read_bags(config, name, table)) for name, table in filled])


def train_fold(
    config: dict[str, Any],
    cohort: Cohort,
    bags: Bags,
    layout: Layout,
    represent: Representations,
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
    model = start_model(config, method, cohort, bags, represent, pool, fold)
    model = with_settings(
        model, bins=bins.to_json(), objective=settings.objective_record(objective)
    )
    ready = method.restore(model, settings.compute_dtype(config["compute_dtype"]))

    # --- data ---
    split = cohort.folds[fold]
    labels = report.cohort_labels(cohort.table, bins) | method.patient_inputs(model, represent)

    # --- compiled phases ---
    mesh = device_mesh()
    program = program_of(
        ready.method,
        report.loss_function(objective),
        mesh,
        batches.slots_for(config["batch_size"], mesh.size),
    )
    frozen = program.replicate(ready.frozen)
    evaluate = report.Evaluator(program, frozen, bags, layout, labels, cohort.table, objective)

    # --- epochs ---
    trainable: Params = program.replicate(ready.trainable)
    history: list[dict[str, float]] = []
    if method.trains:
        patients = np.concatenate([split.train, cohort.others])
        trainable, history = fit(
            config, f"fold {fold}", evaluate, model, trainable, patients, split, directory
        )

    # --- results ---
    parts = {
        "train": evaluate(trainable, split.train),
        "test": evaluate(trainable, split.test),
    }
    trained = method.store(model, jax.device_get(trainable))
    trained = with_settings(trained, **report.baseline(parts["train"], cohort.table, objective))
    checkpoints.save_model(directory / "model", trained)
    report.write_patients(directory, cohort.table, split)
    files.write_table(directory / "history.csv", report.history_table(history))
    count = task_vectors.count_parameters(ready.trainable) if method.trains else 0
    chosen = ("source", "source_train_c_index", "cohorts", "weights")
    report.write_fold(
        directory,
        report.with_curves(parts, trained),
        cohort.table,
        trained,
        {
            "method": config["method"],
            "dataset": config["dataset"],
            "fold": fold,
            "seed": config["seed"],
            "best_epoch": Selection(**config["validation"]).best_epoch(history),
            "trainable_parameters": count,
        }
        | report.training_numbers(history)
        | {name: model.settings[name] for name in chosen if name in model.settings}
        | {"target_only": report.target_only(trained, evaluate, split.test)},
    )
    if config["method"] == "abmil" and config["pool"]["save"]:
        abmil.add_to_pool(pool, trained, config["seed"])


def start_model(
    config: dict[str, Any],
    method: Recipe,
    cohort: Cohort,
    bags: Bags,
    represent: Representations,
    pool: Pool,
    fold: int,
) -> SavedModel:
    """The untrained model of a fold; some methods look at its training patients to make it.

    Raises:
        ValueError: the features have another size than the models.
    """
    spec = fold_spec(config, cohort, fold)
    model = method.start(spec, pool)
    if bags.feature_dim != model.architecture.feature_dim:
        raise ValueError(
            f"features of {config['dataset']} have D = {bags.feature_dim}, the models of "
            f"{pool.root} expect D = {model.architecture.feature_dim}; use features of the encoder "
            "that the pool was fitted on"
        )
    if method.choose is None:
        return model
    rows = cohort.folds[fold].train

    def c_index(candidate: SavedModel, outputs: np.ndarray) -> float:
        output = settings.stored_objective(candidate).output
        risk = np.asarray(output.risk(jax.numpy.asarray(outputs[rows])))
        return metrics.concordance_index(cohort.table.time[rows], cohort.table.event[rows], risk)

    return method.choose(spec, pool, represent, c_index)


def fit(
    config: dict[str, Any],
    label: str,
    evaluate: report.Evaluator,
    model: SavedModel,
    trainable: Params,
    patients: np.ndarray,
    split: Fold,
    directory: pathlib.Path,
) -> tuple[Params, list[dict[str, float]]]:
    """The epochs of a fold.

    Args:
        config: of the run.
        label: of the fold, in the log.
        evaluate: the compiled method, and all it reads.
        model: what training starts from.
        trainable: its parameters.
        patients: numbers of those that are trained on.
        split: of the fold.
        directory: of the fold.

    Returns:
        the parameters of the last epoch, or of the best by `config.validation`; and the history.
    """
    # --- optimizer, state ---
    program, bags, labels = evaluate.program, evaluate.bags, evaluate.labels
    size, sources = config["batch_size"], model.settings.get("sources", [])
    steps = len(patients) // size
    schedule = fitting.learning_rates(
        config["learning_rate"], config["warmup_epochs"] * steps, config["epochs"] * steps
    )
    optimizer = fitting.adamw(schedule, config["weight_decay"])
    selection = Selection(**config["validation"])
    state = program.replicate(fitting.initial_state(trainable, optimizer))
    kept = fitting.Kept(state, fitting.copied(trainable) if selection.is_on else ())
    store = epochs.EpochStore(directory / "checkpoints")
    start = epochs.fingerprint(model)
    begun, (state, best), history = store.restore(kept, start)
    if begun:
        logging.info("%s: going on after epoch %d", label, begun)
    key = jax.random.fold_in(jax.random.key(config["seed"]), 2)

    # --- epochs ---
    orders = [
        list(batches.epoch_order(patients, size, config["seed"], epoch))
        for epoch in range(config["epochs"])
    ]
    for epoch, order in enumerate(orders[begun:], begun):
        if selection.is_over(history):
            logging.info("%s: no better epoch in the last %d", label, selection.patience)
            break
        tests = (epoch + 1) % config["eval_every"] == 0 or epoch + 1 == config["epochs"]
        following = orders[epoch + 1] if epoch + 1 < config["epochs"] else []
        evaluated = [*(split.test if tests else ()), *(split.validation if selection.is_on else ())]
        bags.expect([*chain(*order), *evaluated, *chain(*following)])
        made = (
            batches.make_batch(
                bags,
                evaluate.layout,
                chosen,
                labels,
                program.num_slots,
                program.mesh.size,
                program.place,
            )
            for chosen in order
        )
        named = f"{label} epoch {epoch + 1}/{config['epochs']}"
        state, passed = fitting.train_epoch(
            program,
            optimizer,
            state,
            evaluate.frozen,
            made,
            key,
            epoch * steps,
            partial(bar, total=steps, label=named),
        )
        row = {"epoch": epoch + 1, "learning_rate": float(schedule((epoch + 1) * steps - 1))}
        row |= report.epoch_row(passed, evaluate.table, bags, labels, evaluate.objective, sources)
        if tests:
            tested = evaluate(state.trainable, split.test)
            row |= {f"test_{name}": value for name, value in tested.scores.items()}
        if selection.is_on:
            validated = evaluate(state.trainable, split.validation)
            row |= {f"validation_{name}": value for name, value in validated.scores.items()}
        history.append(row)
        logging.info("%s: %s", named, report.epoch_line(row))
        if selection.is_on and selection.best_epoch(history) == epoch + 1:
            best = fitting.copied(state.trainable)
        store.save(epoch + 1, fitting.Kept(state, best), history, start)
    store.close()
    return (best if selection.is_on else state.trainable), history


def bar(iterator: Iterator[Any], total: int, label: str) -> Iterator[Any]:
    """A progress bar on a terminal; nothing in a log, where every epoch has its line."""
    return iter(
        tqdm(iterator, total=total, desc=label, unit="step", disable=not sys.stderr.isatty())
    )


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Where the run keeps its files.")
    cli.app_run(main, required=("config", "workdir"))
