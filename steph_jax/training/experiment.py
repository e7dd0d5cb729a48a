"""What all trainings of a run share: its settings, its data, and the devices they are on."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import logging

from steph_jax.checkpoints.pool import Pool
from steph_jax.data.bags import Bags
from steph_jax.data.cache import needed_bytes, open_bags
from steph_jax.data.cohort import Cohort, Fold, joined, load_cohort, other_patients, read_patients
from steph_jax.data.features.open import open_features
from steph_jax.data.features.source import FeatureSource
from steph_jax.data.tables import SurvivalTable, table_path
from steph_jax.engine.frozen_encoders import Representations
from steph_jax.engine.loader import Feed
from steph_jax.methods.base import FoldSpec, Recipe
from steph_jax.survival.time_bins import TimeBins
from steph_jax.training.config import Config


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """Settings and data of a run, open to be trained on.

    Attributes:
        config: of the run.
        pool: of models.
        cohort: of the target; for a method that joins cohorts, with the others' patients.
        bags: of all patients of the cohort.
        feed: of them, in batches of `config.batch_size`.
        represent: the bags as frozen models see them.
        profile: where one epoch leaves its trace, unless there is one already; None for no trace.
        encoder: name of the encoder that made the target's features, for a run whose models say so.
    """

    config: Config
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
        return self.config.recipe


def read_cohort(config: Config) -> Cohort:
    """The target's patients and folds.

    Raises:
        FileNotFoundError, ValueError: see `load_cohort`.
    """
    data = config.data
    return load_cohort(data.folder, config.dataset, config.folds, data.table_columns)


def open_experiment(config: Config, cohort: Cohort, pool: Pool) -> Experiment:
    """Opens the features of all patients that a run trains on.

    Raises:
        FileNotFoundError, ValueError: features that are missing or cannot be used.
    """
    names = joined_names(config, cohort, pool)
    if names:
        cohort, bags = join_cohorts(config, cohort, names)
    else:
        bags = read_bags(config, config.dataset, cohort.table)
    return arranged(config, cohort, pool, bags)


def arranged(config: Config, cohort: Cohort, pool: Pool, bags: Bags) -> Experiment:
    """The experiment on bags that are open, in batches of `config.batch_size`."""
    feed = Feed.open(bags, config.batch_size, config.data.device_gb)
    represent = Representations(feed, config.precision.operands)
    return Experiment(config, pool, cohort, bags, feed, represent)


def configured(run: Experiment, config: Config) -> Experiment:
    """The experiment under other settings than those that say on what and how it works."""
    if config.batch_size == run.config.batch_size:
        return dataclasses.replace(run, config=config)
    anew = arranged(config, run.cohort, run.pool, run.bags)
    return dataclasses.replace(run, config=config, feed=anew.feed, represent=anew.represent)


def fold_spec(
    config: Config, cohort: Cohort, fold: int, split: Fold | None = None
) -> FoldSpec[Any]:
    """What a fold asks of its method; the number of outputs follows from bins and loss.

    Args:
        config: of the run.
        cohort: of the target.
        fold: number of the fold whose models of the pool are meant.
        split: its patients; by default those of the cohort's fold.
    """
    bins = time_bins(config, cohort, cohort.folds[fold] if split is None else split)
    return config.fold_spec(fold, config.loss.output.num_outputs(bins.num_bins), bins)


def time_bins(config: Config, cohort: Cohort, split: Fold) -> TimeBins:
    """Time bins of a split, from its training patients."""
    rows = split.train
    return config.bins.cut(cohort.table.time[rows], cohort.table.event[rows])


def joined_names(config: Config, cohort: Cohort, pool: Pool) -> Sequence[str]:
    """Other cohorts all of whose patients a run trains on too; () for most methods."""
    joins = config.recipe.joins
    if joins is None:
        return ()
    fold = config.folds[0]
    return joins(fold_spec(config, cohort, fold), pool)


def open_source(config: Config, dataset: str) -> FeatureSource:
    """The reader of the features of a dataset, which reads nothing yet."""
    data = config.data
    return open_features(data.features_of(dataset), dataset_name=data.hdf5_dataset)


def read_bags(config: Config, dataset: str, table: SurvivalTable) -> Bags:
    """The features of the patients of a dataset."""
    return read_together(config, [(dataset, table)])[0]


def read_together(config: Config, parts: Sequence[tuple[str, SurvivalTable]]) -> list[Bags]:
    """The features of patients of several datasets, which share the cache by their sizes."""
    dtype = config.precision.features
    sources = [open_source(config, dataset) for dataset, _ in parts]
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
            config.data.cache_gb,
            config.batch_size,
            sum(needed) - own,
        )
        for source, (_, table), own in zip(sources, parts, needed, strict=True)
    ]


def join_cohorts(config: Config, cohort: Cohort, names: Sequence[str]) -> tuple[Cohort, Bags]:
    """The target's cohort with all patients of other cohorts behind its own, and their features."""
    root, columns = config.data.folder, config.data.table_columns
    whole = [read_patients(root, name, columns) for name in names]
    tables = other_patients(whole, cohort.table)
    for name, before, after in zip(names, whole, tables, strict=True):
        logging.info("trains on %d of the %d patients of %s too", len(after), len(before), name)
        if not len(after):
            raise ValueError(
                f"{table_path(root, name)}: all patients have ids of patients of "
                f"{config.dataset}, or of a cohort before it in `sources`; give other persons "
                f"other ids, or leave {name} out of `sources`"
            )
    parts = [(config.dataset, cohort.table), *zip(names, tables, strict=True)]
    bags, *others = read_together(config, parts)
    return joined(cohort, bags, list(zip(tables, others, strict=True)))
