"""What all trainings of a run share: its config, its data, and the devices they are on."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import logging

from steph_jax import hosts
from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.bags import BagReader
from steph_jax.data.cache import open_bags, total_bytes
from steph_jax.data.cohort import (
    Cohort,
    Fold,
    joined,
    load_cohort,
    other_patients,
    read_patients,
    with_clinical,
)
from steph_jax.data.features.open import open_features
from steph_jax.data.features.source import FeatureSource
from steph_jax.data.tables import SurvivalTable, table_path
from steph_jax.data.training_subsets import with_fewer_training_patients
from steph_jax.engine.frozen_encoders import Representations
from steph_jax.engine.loader import DeviceLoader
from steph_jax.methods.base import FoldSpec, Method, with_defaults
from steph_jax.survival.objectives import objective_record
from steph_jax.survival.time_bins import TimeBins
from steph_jax.training.config import Config


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """Config and data of a run, open for training.

    Attributes:
        config: of the run.
        pool: of models.
        cohort: of the target; for a method that joins cohorts, with the others' patients.
        bags: of all patients of the cohort.
        loader: batches of them, of `config.batch_size`.
        represent: embeddings of the bags by frozen models.
        profile: folder for the trace of one epoch, unless there is one already; None for none.
        encoder: name of the encoder of the target's features, stored with models of a pool.
        shared: what methods compute once for all folds (`FoldPatients.shared`).
    """

    config: Config
    pool: Pool
    cohort: Cohort
    bags: BagReader
    loader: DeviceLoader
    represent: Representations
    profile: pathlib.Path | None = None
    encoder: str = ""
    shared: dict[Any, Any] = dataclasses.field(default_factory=dict)

    @property
    def method(self) -> Method:
        """What `config.method` and `config.control` name."""
        return self.config.controlled_method


def read_cohort(config: Config) -> Cohort:
    """The target's patients and folds.

    Raises:
        FileNotFoundError, ValueError: see `load_cohort`, `with_clinical` and
            `with_fewer_training_patients`.
    """
    data = config.data
    cohort = load_cohort(data.folder, config.dataset, config.folds, data.table_columns)
    names = config.controlled_method.columns(config.options)
    if names:
        setting = f"{config.method}.columns"
        cohort = with_clinical(cohort, data.table_columns, names, setting)
    if not config.train_patients:
        return cohort
    return with_fewer_training_patients(cohort, config.train_patients, config.seed)


def open_experiment(config: Config, cohort: Cohort, pool: Pool) -> Experiment:
    """Opens the features of all patients of a run.

    Raises:
        FileNotFoundError, ValueError: features that are missing or cannot be used.
    """
    names = joined_names(config, cohort, pool)
    if names:
        cohort, bags = join_cohorts(config, cohort, names)
    else:
        bags = read_bags(config, config.dataset, cohort.table)
    return _experiment(config, cohort, pool, bags)


def _experiment(config: Config, cohort: Cohort, pool: Pool, bags: BagReader) -> Experiment:
    """The experiment on bags that are open."""
    loader = DeviceLoader.open(bags, config.batch_size, config.data.device_gb)
    represent = Representations(loader, config.precision.operands)
    return Experiment(config, pool, cohort, bags, loader, represent)


def with_config(run: Experiment, config: Config) -> Experiment:
    """The experiment with other values of settings that do not change its data."""
    if config.batch_size == run.config.batch_size:
        return dataclasses.replace(run, config=config)
    other = _experiment(config, run.cohort, run.pool, run.bags)
    return dataclasses.replace(run, config=config, loader=other.loader, represent=other.represent)


def fold_spec(
    config: Config, cohort: Cohort, fold: int, split: Fold | None = None
) -> FoldSpec[Any]:
    """What a fold asks of its method; the number of outputs follows from bins and loss.

    Args:
        config: of the run.
        cohort: of the target.
        fold: number of the fold whose models of the pool are read.
        split: its patients; by default those of the cohort's fold.
    """
    bins = time_bins(config, cohort, cohort.folds[fold] if split is None else split)
    return config.fold_spec(fold, config.loss.output.num_outputs(bins.num_bins), bins)


def with_run_outputs(model: SavedModel, run: Experiment, split: Fold) -> SavedModel:
    """The model with time bins and loss of the run, where it has none of its own."""
    bins = time_bins(run.config, run.cohort, split)
    return with_defaults(model, bins=bins.to_json(), objective=objective_record(run.config.loss))


def time_bins(config: Config, cohort: Cohort, split: Fold) -> TimeBins:
    """Time bins of a split, from its training patients."""
    rows = split.train
    return config.bins.cut(cohort.table.time[rows], cohort.table.event[rows])


def joined_names(config: Config, cohort: Cohort, pool: Pool) -> Sequence[str]:
    """Names of the other cohorts whose patients are training patients too; () for most methods."""
    joins = config.controlled_method.joins
    if joins is None:
        return ()
    fold = config.folds[0]
    return joins(fold_spec(config, cohort, fold), pool)


def open_source(
    config: Config,
    dataset: str,
    location: str | pathlib.Path | None = None,
    feature_dim: int | None = None,
) -> FeatureSource:
    """The reader of the features of a dataset, which reads nothing yet.

    Args:
        config: of the run.
        dataset: name.
        location: where the features are, if not at the config's.
        feature_dim: D that they must have, if one is known.
    """
    return open_features(
        location or config.data.features_of(dataset),
        dataset_name=config.data.hdf5_dataset,
        feature_dim=feature_dim,
    )


def read_bags(config: Config, dataset: str, table: SurvivalTable) -> BagReader:
    """The features of the patients of a dataset."""
    return open_all_bags(config, [(open_source(config, dataset), table)])[0]


def open_all_bags(
    config: Config, parts: Sequence[tuple[FeatureSource, SurvivalTable]]
) -> list[BagReader]:
    """The features of the patients of several tables, which share the cache by their sizes."""
    dtype = config.precision.features
    needed = [total_bytes(source, table.slides, dtype) for source, table in parts]
    return [
        open_bags(
            source,
            table.patients,
            table.slides,
            dtype,
            config.data.cache_gb,
            config.batch_size,
            sum(needed) - own,
            at_once=hosts.count() == 1,
        )
        for (source, table), own in zip(parts, needed, strict=True)
    ]


def join_cohorts(config: Config, cohort: Cohort, names: Sequence[str]) -> tuple[Cohort, BagReader]:
    """The target's cohort followed by all patients of other cohorts, and the features of all."""
    root, columns = config.data.folder, config.data.table_columns
    complete = [read_patients(root, name, columns) for name in names]
    tables = other_patients(complete, cohort.table)
    for name, before, after in zip(names, complete, tables, strict=True):
        logging.info("trains on %d of the %d patients of %s too", len(after), len(before), name)
        if not len(after):
            raise ValueError(
                f"{table_path(root, name)}: all patients have ids of patients of "
                f"{config.dataset}, or of a cohort before it in `sources`; give other persons "
                f"other ids, or leave {name} out of `sources`"
            )
    parts = [(config.dataset, cohort.table), *zip(names, tables, strict=True)]
    bags, *others = open_all_bags(config, [(open_source(config, n), t) for n, t in parts])
    return joined(cohort, bags, list(zip(names, tables, others, strict=True)))
