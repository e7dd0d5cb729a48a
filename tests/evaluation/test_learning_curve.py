"""Gains by number of training patients: tables, words and the order of the numbers."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from steph_jax.evaluation import learning_curve
from steph_jax.evaluation.comparison import Comparison, Difference, FoldRun
from steph_jax.survival.significance import Interval

LABELS = ("abmil", "steph", "steph+permuted")
PREDICTIONS = pd.DataFrame({"patient_id": ["a"], "t": [1.0], "e": [1], "risk": [0.0]})


def difference(mean: float, low: float, high: float) -> Difference:
    return Difference(mean, Interval(low, high), 0.2, np.full(2, mean))


def compared(num_train: int, gain: Difference, real_less_permuted: Difference) -> Comparison:
    scores = {"abmil": 0.6, "steph": 0.6 + gain.mean, "steph+permuted": 0.6}
    runs = tuple(
        FoldRun(label, 1, fold, {"test": {"c_index": scores[label]}}, PREDICTIONS, num_train)
        for label in LABELS
        for fold in (0, 1)
    )
    return Comparison(
        dataset="x",
        methods=LABELS,
        seeds=(1,),
        folds=(0, 1),
        runs=runs,
        c_index={label: np.full(2, score) for label, score in scores.items()},
        intervals=dict.fromkeys(LABELS, Interval(0.5, 0.7)),
        differences={"steph": gain, "steph+permuted": difference(0.0, -0.01, 0.01)},
        undefined=0.0,
        control_differences={"steph+permuted": real_less_permuted},
    )


@pytest.fixture
def results():
    small = compared(40, difference(0.03, 0.01, 0.05), difference(0.01, -0.01, 0.03))
    whole = compared(276, difference(-0.02, -0.03, -0.01), difference(0.0, -0.01, 0.01))
    return {40: small, 0: whole}


def test_numbers_are_in_order_and_all_come_last():
    assert learning_curve.in_order([0, 160, 40]) == [40, 160, 0]
    for numbers in ([], [40, 40], [-1, 40]):
        with pytest.raises(ValueError, match=r"--train_patients are different numbers of patients"):
            learning_curve.in_order(numbers)


def test_a_method_is_compared_with_the_reference_and_with_its_control(results):
    table = learning_curve.table(results)
    assert list(zip(table["train_patients"], table["method"], table["against"], strict=True)) == [
        (40, "steph", "abmil"),
        (40, "steph", "steph+permuted"),
        (0, "steph", "abmil"),
        (0, "steph", "steph+permuted"),
    ]
    assert table["patients"].tolist() == [40, 40, 276, 276]
    np.testing.assert_allclose(table["difference"], [0.03, 0.01, -0.02, 0.0])
    np.testing.assert_allclose(table["low"], [0.01, -0.01, -0.03, -0.01])


def test_words_name_the_numbers_beyond_the_noise(results):
    gain, control = learning_curve.words(results)
    assert gain == "- `steph` less `abmil`: better with 40; worse with all (276); no other."
    assert control == (
        "- `steph` less `steph+permuted`: within the noise of patients with any number of them."
    )
    third = compared(80, difference(0.0, -0.01, 0.01), difference(0.01, 0.005, 0.015))
    gain, control = learning_curve.words({40: results[40], 80: third})
    assert gain.endswith("better with 40; within the noise with the others.")
    assert control.endswith("better with 80; within the noise with the others.")


def test_files_of_a_learning_curve(results, tmp_path):
    learning_curve.write(tmp_path, results, "command")
    table = pd.read_csv(tmp_path / "compare.csv")
    assert list(table) == ["method", "fold", "seed", "c_index", "control", "train_patients"]
    assert len(table) == 2 * len(LABELS) * 2
    page = (tmp_path / "learning_curve.md").read_text()
    assert "| method | 40 | all (276) |" in page
    assert "| steph less abmil | +0.030 [+0.010, +0.050] | −0.020 [−0.030, −0.010] |" in page
    assert (tmp_path / "learning_curve.png").stat().st_size > 10_000


def test_one_method_has_no_gains_and_no_picture(results, tmp_path):
    alone = {
        number: dataclasses.replace(result, differences={}, control_differences={})
        for number, result in results.items()
    }
    learning_curve.write(tmp_path, alone, "command")
    assert "## Gains" not in (tmp_path / "learning_curve.md").read_text()
    assert not (tmp_path / "learning_curve.png").exists()
