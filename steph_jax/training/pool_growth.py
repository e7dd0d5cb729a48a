"""A pool that grows by the models that a run trains (`pool.save`)."""

import dataclasses
import math
from collections.abc import Sequence

from steph_jax.checkpoints.pool import Pool, member_name
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.cohort import Cohort, Fold
from steph_jax.evaluation.evaluator import SplitScores
from steph_jax.methods.base import with_metadata
from steph_jax.models.abmil import Architecture
from steph_jax.training import experiment
from steph_jax.training.config import Config
from steph_jax.training.experiment import Experiment


def saves_to_pool(config: Config) -> bool:
    """Whether the trained models become members of the pool."""
    return config.method == "abmil" and config.pool.save


def check_can_add(
    config: Config,
    cohort: Cohort,
    pool: Pool,
    first: Architecture,
    folds: Sequence[int],
) -> None:
    """Checks that the models of all folds can be added to the pool, before any is trained.

    Args:
        config: of the run.
        cohort: of the target.
        pool: that grows.
        first: of the first fold's model, and of the null model of a pool that has none yet.
        folds: numbers; their models differ in their time bins at most.

    Raises:
        ValueError: models of other dimensions than those that are there, or than each other; a run
            on some of the training patients.
    """
    if config.train_patients:
        raise ValueError(
            f"pool.save: a model of the pool is fitted on all training patients of its fold, not "
            f"on train_patients = {config.train_patients}; leave one of the two out"
        )
    bins = {fold: experiment.fold_spec(config, cohort, fold).num_outputs for fold in folds}
    for fold, number in bins.items():
        fold_architecture = dataclasses.replace(first, num_bins=number)
        pool.check_can_add(member_name(config.dataset, fold), fold_architecture)
    if len(set(bins.values())) > 1:
        bins_text = ", ".join(f"fold {fold} {number}" for fold, number in bins.items())
        raise ValueError(
            f"models of a pool share all dimensions, but with bins.kind = "
            f"{config.bins.kind!r} folds of {config.dataset} have other numbers of "
            f"outputs: {bins_text}; use --config.bins.kind=quantile, or --config.pool.save=false"
        )


def as_pool_member(
    model: SavedModel, run: Experiment, split: Fold, test: SplitScores
) -> SavedModel:
    """The model with what a pool lists of it: encoder, training patients, and its test C-index."""
    c_index = test.scores["c_index"]
    return with_metadata(
        model,
        encoder=run.encoder,
        patients=len(split.train),
        events=int(run.cohort.table.event[split.train].sum()),
        test_c_index=None if math.isnan(c_index) else c_index,
    )
