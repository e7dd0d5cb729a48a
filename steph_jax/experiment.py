"""What all trainings of a run share: its settings, its data, and the devices they are on."""

import dataclasses
import math
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from absl import logging
from tqdm import tqdm

from steph_jax import files, metrics, settings
from steph_jax.checkpoints import SavedModel
from steph_jax.checks.findings import Status
from steph_jax.checks.folds import check_leaks
from steph_jax.data import features, values
from steph_jax.data.batches import choose_layout
from steph_jax.data.bins import TimeBins
from steph_jax.data.cache import Bags, needed_bytes, open_bags
from steph_jax.data.cohort import Cohort, Fold, load_cohort, read_patients
from steph_jax.data.joined import joined, other_patients
from steph_jax.data.survival import (
    Split,
    SurvivalTable,
    read_table,
    split_path,
    table_path,
)
from steph_jax.feed import Feed
from steph_jax.labels import listed
from steph_jax.methods.recipe import Recipe, Spec
from steph_jax.methods.registry import recipe
from steph_jax.pool import Pool
from steph_jax.program import device_mesh
from steph_jax.representations import Representations
from steph_jax.selection import Selection


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """Settings and data of a run, open to be trained on.

    Attributes:
        config: as `settings.as_dict` gives it.
        pool: of models.
        cohort: of the target; for a method that joins cohorts, with the others' patients.
        bags: of all patients of the cohort.
        feed: of them, in batches of `config["batch_size"]`.
        represent: the bags as frozen models see them.
        profile: where one epoch leaves its trace, unless there is one already; None for no trace.
        encoder: name of the encoder that made the target's features, for a run whose models say so.
    """

    config: dict[str, Any]
    pool: Pool
    cohort: Cohort
    bags: Bags
    feed: Feed
    represent: Representations
    profile: pathlib.Path | None = None
    encoder: str = ""

    @property
    def method(self) -> Recipe:
        """What `config.method` names."""
        return recipe(self.config["method"])


def read_cohort(config: dict[str, Any]) -> Cohort:
    """The target's patients and folds.

    Raises:
        FileNotFoundError, ValueError: see `load_cohort`.
    """
    data = config["data"]
    root = pathlib.Path(data["root"])
    return load_cohort(root, config["dataset"], config["folds"], settings.columns(data))


def open_experiment(config: dict[str, Any], cohort: Cohort, pool: Pool) -> Experiment:
    """Opens the features of all patients that a run trains on.

    Raises:
        FileNotFoundError, ValueError: features that are missing or cannot be used.
    """
    names = joined_names(config, cohort, pool)
    if names:
        cohort, bags = join_cohorts(config, cohort, names)
    else:
        bags = read_bags(config, config["dataset"], cohort.table)
    return arranged(config, cohort, pool, bags)


def arranged(config: dict[str, Any], cohort: Cohort, pool: Pool, bags: Bags) -> Experiment:
    """The experiment on bags that are open, in batches of `config["batch_size"]`."""
    mesh, size = device_mesh(), config["batch_size"]
    device = mesh.devices.flat[0]
    layout = choose_layout(bags.num_patches, size, settings.patches_per_group(device.platform))
    feed = Feed(bags, layout, mesh, size, settings.resident_bytes(config["data"], device))
    represent = Representations(feed, settings.compute_dtype(config["compute_dtype"]))
    return Experiment(config, pool, cohort, bags, feed, represent)


def expect_features_of(model: SavedModel, run: Experiment) -> None:
    """Raises ValueError where a model was made for features of another size than a run's."""
    found, expected = run.bags.feature_dim, model.architecture.feature_dim
    if found == expected:
        return
    if run.pool.has_null():
        what = f"the models of {run.pool.root} expect"
        advice = "use features of the encoder that the pool was fitted on, or another pool"
    else:
        what = "model.feature_dim says"
        advice = f"set --config.model.feature_dim={found}"
    raise ValueError(
        f"features of {run.config['dataset']} have D = {found}, {what} D = {expected}; {advice}"
    )


def check_values(run: Experiment, marker: pathlib.Path) -> None:
    """Reads the values of streamed features once, before they are trained on (`data.values`).

    Args:
        run: whose features are open; what is on the devices was looked at on its way.
        marker: file that says which features were found to be good; written if all are.

    Raises:
        ValueError: values that are not finite or cannot be read; lists every such slide.
    """
    parts = [] if run.feed.is_resident else values.unchecked(run.bags)
    if not parts:
        return
    found = values.fingerprint(parts)
    if marker.is_file() and marker.read_text(encoding="utf-8") == found:
        return
    total, done = sum(len(part.num_patches) for part in parts), 0
    logging.info("reading the values of %d patients once (data.check_values)", total)
    terminal = sys.stderr.isatty()
    with tqdm(total=total, desc="values", unit="patient", disable=not terminal) as shown:

        def progress() -> None:
            nonlocal done
            done += 1
            shown.update()
            if not terminal and done % max(1, total // 10) == 0:
                logging.info("values of %d of %d patients are read", done, total)

        bad = [problem for part in parts for problem in values.bad_slides(part, progress)]
    if bad:
        raise ValueError(
            f"values of {len(bad)} slides cannot be used; extract these slides again, or take them "
            "out of the table\n  " + "\n  ".join(bad)
        )
    files.write_text(marker, found)


def configured(run: Experiment, config: dict[str, Any]) -> Experiment:
    """The experiment under other settings than those that say on what and how it works."""
    if config["batch_size"] == run.config["batch_size"]:
        return dataclasses.replace(run, config=config)
    anew = arranged(config, run.cohort, run.pool, run.bags)
    return dataclasses.replace(run, config=config, feed=anew.feed, represent=anew.represent)


def fold_spec(config: dict[str, Any], cohort: Cohort, fold: int, split: Fold | None = None) -> Spec:
    """What a fold asks of its method; the number of outputs follows from bins and loss.

    Args:
        config: of the run.
        cohort: of the target.
        fold: number of the fold whose models of the pool are meant.
        split: its patients; by default those of the cohort's fold.
    """
    bins = time_bins(config, cohort, cohort.folds[fold] if split is None else split)
    num_outputs = settings.objective(config["loss"]).output.num_outputs(bins.num_bins)
    return settings.spec(config, fold, num_outputs, bins)


def look_ahead(
    config: dict[str, Any], cohort: Cohort, pool: Pool, folds: Sequence[int]
) -> SavedModel:
    """The untrained model of the first of some folds, after a look at what all of them need.

    It shows before features are read whether folds can be started. Preparing task vectors may take
    long, so of the other folds the models are looked at that they read.

    Raises:
        ValueError, FileNotFoundError: folds that cannot be trained on; a setting that cannot be
            used; a model that the pool lacks; tables or features of joined cohorts.
    """
    check_parts(config, cohort)
    check_joined(config, cohort, pool)
    first, *others = folds
    for member in {member for fold in others for member in members(config, cohort, pool, fold)}:
        pool.member(*member)
    return recipe(config["method"]).start(fold_spec(config, cohort, first), pool)


def members(
    config: dict[str, Any], cohort: Cohort, pool: Pool, fold: int
) -> Sequence[tuple[str, int]]:
    """(dataset, fold) of the models of the pool that a fold of a run reads."""
    return recipe(config["method"]).members(fold_spec(config, cohort, fold), pool)


def warn_of_leaks(config: dict[str, Any], cohort: Cohort, sources: Iterable[str]) -> None:
    """Says on the log which test patients models of sources were, or may have been, fitted on."""
    root, patients = pathlib.Path(config["data"]["root"]), cohort.table.patients
    splits = {
        fold: Split(split_path(root, cohort.dataset, fold), (), tuple(patients[i] for i in of.test))
        for fold, of in cohort.folds.items()
    }
    columns = settings.columns(config["data"])
    for finding in check_leaks(root, cohort.dataset, splits, tuple(sources), columns):
        if finding.status is Status.WARNING:
            logging.warning("%s: %s; %s", finding.message, listed(finding.items), finding.advice)


def time_bins(config: dict[str, Any], cohort: Cohort, split: Fold) -> TimeBins:
    """Time bins of a split, from its training patients."""
    rows = split.train
    return settings.time_bins(config["bins"], cohort.table.time[rows], cohort.table.event[rows])


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
        if config["validation"]["select"] == "c_index":
            time, event = cohort.table.time[split.validation], cohort.table.event[split.validation]
            if math.isnan(metrics.concordance_index(time, event, np.zeros(len(time)))):
                raise ValueError(
                    f"fold {fold} of {config['dataset']}: no two of its {len(time)} validation "
                    f"patients ({event.sum():g} with an event) can be compared, so no epoch has a "
                    "C-index; select by --config.validation.select=loss"
                )


def check_joined(config: dict[str, Any], cohort: Cohort, pool: Pool) -> None:
    """Looks for the tables and features of other cohorts that a method trains on, if it does.

    Raises:
        FileNotFoundError, ValueError: one that is missing or cannot be used.
    """
    data = config["data"]
    columns = settings.columns(data)
    for name in joined_names(config, cohort, pool):
        try:
            read_table(table_path(pathlib.Path(data["root"]), name), columns)
            features.open_features(
                settings.features_location(data, name), dataset_name=data["hdf5_dataset"]
            )
        except (OSError, ValueError) as error:
            kind = FileNotFoundError if isinstance(error, OSError) else ValueError
            raise kind(
                f"method {config['method']} trains on the patients of {name} too: {error}; "
                "--config.sources names the cohorts to be joined, all others of the pool by default"
            ) from error


def joined_names(config: dict[str, Any], cohort: Cohort, pool: Pool) -> Sequence[str]:
    """Other cohorts all of whose patients a run trains on too; () for most methods."""
    joins = recipe(config["method"]).joins
    if joins is None:
        return ()
    fold = config["folds"][0]
    return joins(fold_spec(config, cohort, fold), pool)


def encoder(config: dict[str, Any], table: SurvivalTable) -> str:
    """Name of the encoder that made the features of a dataset, where its files say; else ""."""
    data = config["data"]
    location = settings.features_location(data, config["dataset"])
    source = features.open_features(location, dataset_name=data["hdf5_dataset"])
    slides = [slide for of_patient in table.slides[:20] for slide in of_patient]
    return next(filter(None, (source.encoder(slide) for slide in slides)), "")


def read_bags(config: dict[str, Any], dataset: str, table: SurvivalTable) -> Bags:
    """The features of the patients of a dataset."""
    return read_together(config, [(dataset, table)])[0]


def read_together(config: dict[str, Any], parts: Sequence[tuple[str, SurvivalTable]]) -> list[Bags]:
    """The features of patients of several datasets, which share the cache by their sizes."""
    data, dtype = config["data"], settings.feature_dtype(config["compute_dtype"])
    sources = [
        features.open_features(
            settings.features_location(data, dataset), dataset_name=data["hdf5_dataset"]
        )
        for dataset, _ in parts
    ]
    needed = [
        needed_bytes(source, table.slides, dtype)
        for source, (_, table) in zip(sources, parts, strict=True)
    ]
    return [
        open_bags(
            source,
            table.patients,
            table.slides,
            dtype,
            data["cache_gb"],
            config["batch_size"],
            sum(needed) - own,
        )
        for source, (_, table), own in zip(sources, parts, needed, strict=True)
    ]


def join_cohorts(
    config: dict[str, Any], cohort: Cohort, names: Sequence[str]
) -> tuple[Cohort, Bags]:
    """The target's cohort with all patients of other cohorts behind its own, and their features."""
    root, columns = pathlib.Path(config["data"]["root"]), settings.columns(config["data"])
    whole = [read_patients(root, name, columns) for name in names]
    tables = other_patients(whole, cohort.table)
    for name, before, after in zip(names, whole, tables, strict=True):
        logging.info("trains on %d of the %d patients of %s too", len(after), len(before), name)
        if not len(after):
            raise ValueError(
                f"{table_path(root, name)}: all patients have ids of patients of "
                f"{config['dataset']}, or of a cohort before it in `sources`; give other persons "
                f"other ids, or leave {name} out of `sources`"
            )
    parts = [(config["dataset"], cohort.table), *zip(names, tables, strict=True)]
    bags, *others = read_together(config, parts)
    return joined(cohort, bags, list(zip(tables, others, strict=True)))
