"""Trains one split, with another random start where the weights of all sources collapse to 0."""

import dataclasses
import pathlib

import jax
import numpy as np
from absl import logging

from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.cohort import Fold
from steph_jax.methods.base import with_metadata
from steph_jax.survival import metrics
from steph_jax.trackers.track import Track
from steph_jax.training.experiment import Experiment, fold_spec, with_run_outputs
from steph_jax.training.fitting import fit_split
from steph_jax.training.loop import CollapsedWeightsError, TrainingJob, TrainResult, train_model
from steph_jax.training.preflight import check_feature_dim

#: Starts of a fold at most.
MOST_STARTS = 5
#: What a restart adds to the seed of the start; the order of patients and dropout stay as they are.
_RESTART_STRIDE = 1000
#: From this restart on, weights of sources start higher (`steph.initial_weight` at least that).
_RAISED_RESTART, _RAISED_WEIGHT = 3, 0.3


def train_split(
    run: Experiment,
    fold: int,
    split: Fold,
    directory: pathlib.Path,
    label: str,
    track: Track | None = None,
) -> TrainResult:
    """Trains the model of a split; where all weights of sources collapse, it is re-initialized.

    Weights of sources are relu outputs that start near 0, and the merge regularizer pushes them
    down. Where it drives all of them below 0 for every slide, no gradient moves them again (a dying
    ReLU), and the encoder is the untrained null model's. Where a few slides keep small weights,
    they may rise again, but only late, when the learning rate has fallen. The first epoch in whose
    training passes either happens (`history.has_collapsed`) ends that start. Starts differ in their
    random numbers, and the last ones begin with higher weights; the result of the last of
    `MOST_STARTS` stands in any case.

    Args:
        run: config and data.
        fold: number of the fold whose models of the pool are read.
        split: its patients.
        directory: where the states of training are kept.
        label: in the log.
        track: trackers that log the epochs.
    """
    if run.method.fit is not None:
        return fit_split(run, fold, split, directory, label)
    patients = np.concatenate([split.train, run.cohort.others])
    collapsed_seconds = 0.0
    for restart in range(MOST_STARTS):
        model = start_model(run, fold, split, restart)
        can_collapse = run.method.weights_can_collapse(model)
        if can_collapse:
            model = with_metadata(model, restarts=restart)
        states = directory / f"restart_{restart}" if restart else directory
        last = restart + 1 == MOST_STARTS
        try:
            ends = can_collapse and not last
            job = TrainingJob(
                run.method, model, patients, split, states, label, ends, track or Track()
            )
            return train_model(run, job)._replace(collapsed_seconds=collapsed_seconds)
        except CollapsedWeightsError as error:
            collapsed_seconds += error.seconds
            logging.warning(
                "%s: the weights of all sources fell to 0, from which relu lets none rise; "
                "starting again from other random numbers (%d of %d)",
                label,
                restart + 1,
                MOST_STARTS - 1,
            )
    raise AssertionError("the last start does not end on a collapse")


def start_model(run: Experiment, fold: int, split: Fold, restart: int = 0) -> SavedModel:
    """The untrained model of a split; some methods choose it by its training patients.

    Args:
        run: config and data.
        fold: number of the fold whose models of the pool are read.
        split: its patients.
        restart: how many starts from this seed have collapsed.

    Raises:
        ValueError: as `preflight.check_feature_dim` does.
    """
    spec = fold_spec(run.config, run.cohort, fold, split)
    spec = dataclasses.replace(spec, seed=spec.seed + restart * _RESTART_STRIDE)
    if restart >= _RAISED_RESTART:
        spec = run.method.raise_weights(spec, _RAISED_WEIGHT)
    model = run.method.start(spec, run.pool)
    check_feature_dim(model, run)
    if run.method.choose is not None:
        table, rows = run.cohort.table, split.train

        def c_index(candidate: SavedModel, outputs: np.ndarray) -> float:
            output = saved_model.stored_objective(candidate).output
            risk = np.asarray(output.risk(jax.numpy.asarray(outputs[rows])))
            return metrics.concordance_index(table.time[rows], table.event[rows], risk)

        model = run.method.choose(spec, run.pool, run.represent, c_index)
    return with_run_outputs(model, run, split)
