"""Inner folds: the training patients of a fold cut once more, to compare settings on."""

import math
from typing import NamedTuple

import numpy as np

from steph_jax.data.cohort import Cohort, Fold
from steph_jax.data.folds import make_folds
from steph_jax.survival import metrics

NUM_INNER_FOLDS = 3


class InnerFold(NamedTuple):
    """A cut of a fold's training patients.

    Attributes:
        split: the inner training patients; the fold's validation patients; no test patients.
        held_out: numbers of the patients that values are compared on.
    """

    split: Fold
    held_out: np.ndarray


def cut_inner_folds(cohort: Cohort, fold: int, seed: int) -> list[InnerFold]:
    """Cuts the training patients of a fold into inner folds; equal arguments give equal ones.

    Raises:
        ValueError: an inner fold would have no two patients to compare.
    """
    outer = cohort.folds[fold]
    rows, table = outer.train, cohort.table
    event = table.event[rows]
    if event.sum() < NUM_INNER_FOLDS:
        raise ValueError(_too_few(cohort, fold))
    numbers = make_folds(
        [table.patients[i] for i in rows],
        table.time[rows],
        event,
        num_folds=NUM_INNER_FOLDS,
        seed=seed,
    )
    cuts = []
    for number in range(NUM_INNER_FOLDS):
        held_out = rows[numbers == number]
        labels = table.time[held_out], table.event[held_out]
        if math.isnan(metrics.concordance_index(*labels, np.zeros(len(held_out)))):
            raise ValueError(_too_few(cohort, fold))
        none = np.zeros(0, rows.dtype)
        cuts.append(InnerFold(Fold(rows[numbers != number], none, outer.validation), held_out))
    return cuts


def _too_few(cohort: Cohort, fold: int) -> str:
    rows = cohort.folds[fold].train
    return (
        f"fold {fold} of {cohort.dataset} has {int(cohort.table.event[rows].sum())} "
        f"events among {len(rows)} training patients, too few for {NUM_INNER_FOLDS} inner folds: "
        "each needs a patient with an event whom another one outlived. Use a "
        "method that chooses nothing on them, and no --sweep"
    )
