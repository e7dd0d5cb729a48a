"""Which epoch is kept, and when training ends."""

import math

import pytest

from steph_jax.training.early_stopping import EarlyStopping

ROWS = [
    {"validation_nll": nll, "validation_c_index": c}
    for nll, c in ((3.0, 0.5), (2.0, 0.7), (2.0, 0.7), (2.5, math.nan))
]


def test_first_of_equal_epochs_is_selected():
    assert EarlyStopping("loss").best_epoch(ROWS) == 2
    assert EarlyStopping("c_index").best_epoch(ROWS) == 2
    assert EarlyStopping("c_index").best_epoch([ROWS[3], ROWS[0]]) == 2
    assert EarlyStopping().best_epoch(ROWS) == 4
    assert EarlyStopping("loss").best_epoch([]) == 0


def test_training_ends_after_epochs_without_a_better_one():
    selection = EarlyStopping("loss", patience=2)
    assert [selection.is_over(ROWS[:n]) for n in range(5)] == [False, False, False, False, True]
    assert not EarlyStopping(patience=1).is_over(ROWS)


def test_invalid_settings_are_refused():
    with pytest.raises(ValueError, match="none, loss, c_index, not 'auc'"):
        EarlyStopping("auc")
    with pytest.raises(ValueError, match="1 epoch or more, not 0"):
        EarlyStopping("loss", patience=0)
