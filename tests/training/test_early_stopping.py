"""Which epoch is kept, and when training ends."""

import math

import pytest

from steph_jax.training.early_stopping import Selection

ROWS = [
    {"validation_nll": nll, "validation_c_index": c}
    for nll, c in ((3.0, 0.5), (2.0, 0.7), (2.0, 0.7), (2.5, math.nan))
]


def test_the_first_of_the_best_epochs_is_kept():
    assert Selection("loss").best_epoch(ROWS) == 2
    assert Selection("c_index").best_epoch(ROWS) == 2
    assert Selection("c_index").best_epoch([ROWS[3], ROWS[0]]) == 2
    assert Selection().best_epoch(ROWS) == 4
    assert Selection("loss").best_epoch([]) == 0


def test_training_ends_after_epochs_without_a_better_one():
    selection = Selection("loss", patience=2)
    assert [selection.is_over(ROWS[:n]) for n in range(5)] == [False, False, False, False, True]
    assert not Selection(patience=1).is_over(ROWS)


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="none, loss, c_index, not 'auc'"):
        Selection("auc")
    with pytest.raises(ValueError, match="1 epoch or more, not 0"):
        Selection("loss", patience=0)
