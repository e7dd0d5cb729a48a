"""The pool of a fold that leaves training patients out (`train_patients`)."""

import dataclasses
import pathlib

import numpy as np

from steph_jax.data.cohort import Fold
from steph_jax.training.experiment import Experiment
from steph_jax.training.inner_folds import InnerFold
from steph_jax.training.sweep import refitted_pool

#: Where an unfinished fold keeps the target's model of its training patients.
SUBSET = "subset"


def with_subset_pool(
    run: Experiment, split: Fold, directory: pathlib.Path, label: str
) -> Experiment:
    """The experiment whose model of the target was fitted on the fold's training patients alone.

    The pool's was fitted on all of them, whom `train_patients` leaves out in part: a method that
    starts from it would know patients that it does not have.

    Args:
        run: config and data.
        split: of the fold.
        directory: that keeps the model.
        label: in the log.
    """
    if not run.config.train_patients:
        return run
    cut = InnerFold(split, np.zeros(0, np.intp))
    return dataclasses.replace(run, pool=refitted_pool(run, cut, directory, label))
