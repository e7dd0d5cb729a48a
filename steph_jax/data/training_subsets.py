"""Fewer training patients than a split has: what a method needs is seen at several numbers of them.

The training patients of a fold are put in an order in which events are spread evenly, and the first
ones are taken. So a subset is part of every larger one, and has the share of events of all.
"""

import dataclasses

import numpy as np

from steph_jax.data.cohort import Cohort, Fold


def spread_order(event: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[P] places of patients in a random order along which events are spread evenly.

    The first n of them hold n times the share of events, give or take one event.

    Args:
        event: [P] True where death was seen.
        rng: of what chance decides.
    """
    events = np.asarray(event, bool)
    position = np.empty(len(events))
    for status in (True, False):
        rows = rng.permutation(np.flatnonzero(events == status))
        position[rows] = (np.arange(len(rows)) + 0.5) / max(1, len(rows))
    return np.argsort(position, kind="stable")


def with_fewer_training_patients(cohort: Cohort, number: int, seed: int) -> Cohort:
    """The cohort, each of whose folds has some of its training patients.

    Test and validation patients stay. `Cohort.splits` still has all.

    Args:
        cohort: of the target.
        number: of training patients of each fold, above 0.
        seed: of the choice; a larger number of the same seed adds patients to a smaller one.

    Raises:
        ValueError: a fold has fewer training patients, or the subset has no event.
    """
    folds = {}
    for name, fold in cohort.folds.items():
        if number > len(fold.train):
            raise ValueError(
                f"train_patients = {number}, but fold {name} of {cohort.dataset} has "
                f"{len(fold.train)} training patients; give a smaller number, or 0 for all"
            )
        event = cohort.table.event[fold.train]
        chosen = fold.train[spread_order(event, np.random.default_rng([seed, name]))[:number]]
        if not cohort.table.event[chosen].any():
            raise ValueError(
                f"train_patients = {number}: none of them has an event in fold {name} of "
                f"{cohort.dataset}, where {int(event.sum())} of {len(event)} have one; give a "
                "larger number"
            )
        folds[name] = Fold(np.sort(chosen), fold.test, fold.validation)
    return dataclasses.replace(cohort, folds=folds, whole_folds=cohort.folds)
