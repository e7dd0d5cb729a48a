"""Comparisons on several cohorts: means, tables, words and files."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from steph_jax.evaluation import over_cohorts
from steph_jax.evaluation.comparison import Comparison, Difference, FoldRun
from steph_jax.survival.significance import Interval

LABELS = ("abmil", "steph", "steph+permuted")
PREDICTIONS = pd.DataFrame({"patient_id": ["a"], "t": [1.0], "e": [1], "risk": [0.0]})
#: Differences of two cohorts' seeds to the mean over seeds.
SEEDS = {1: 0.003, 2: -0.003}


def difference(mean, half):
    return Difference(mean, Interval(mean - half, mean + half), 0.2, np.full(2, mean))


def compared(dataset, gain, real_less_permuted, half=0.02):
    scores = {"abmil": 0.6, "steph": 0.6 + gain, "steph+permuted": 0.6 + gain - real_less_permuted}
    runs = tuple(
        FoldRun(
            label,
            seed,
            fold,
            {"test": {"c_index": scores[label] + (shift if label == "steph" else 0)}},
            PREDICTIONS,
            100,
        )
        for label in LABELS
        for seed, shift in SEEDS.items()
        for fold in (0, 1)
    )
    return Comparison(
        dataset=dataset,
        methods=LABELS,
        seeds=tuple(SEEDS),
        folds=(0, 1),
        runs=runs,
        c_index={label: np.full(2, score) for label, score in scores.items()},
        intervals=dict.fromkeys(LABELS, Interval(0.5, 0.7)),
        differences={
            "steph": difference(gain, half),
            "steph+permuted": difference(gain - real_less_permuted, half),
        },
        undefined=0.0,
        control_differences={"steph+permuted": difference(real_less_permuted, half / 4)},
    )


@pytest.fixture
def results():
    gains = {"a": (0.03, 0.004), "b": (0.05, 0.006), "c": (-0.01, 0.005), "d": (0.02, 0.003)}
    return {dataset: compared(dataset, *values) for dataset, values in gains.items()}


def test_gains_are_those_of_methods_and_of_methods_less_their_controls(results):
    gains = over_cohorts.gains_of(results)
    assert [(gain.method, gain.against) for gain in gains] == [
        ("steph", "abmil"),
        ("steph", "steph+permuted"),
    ]
    table = over_cohorts.total_table(gains).set_index("against")
    values = np.array([0.03, 0.05, -0.01, 0.02])
    row = table.loc["abmil"]
    # All errors are equal, so the mean and its p are those of the t-test.
    assert row["mean"] == pytest.approx(values.mean())
    assert row["p"] == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert (row["cohorts"], row["better"]) == (4, 3)
    assert row["p_wilcoxon"] == pytest.approx(stats.wilcoxon(values).pvalue)
    small, large = sorted(table["p"])
    assert sorted(table["p_corrected"]) == pytest.approx([2 * small, max(2 * small, large)])


def test_error_of_a_cohort_has_the_noise_of_patients_and_of_seeds(results):
    gain = over_cohorts.gains_of(results)[0]
    patients = 0.02 / stats.norm.ppf(0.975)
    seeds = np.var([0.003, -0.003], ddof=1) / 2
    np.testing.assert_allclose(gain.errors, math.sqrt(patients**2 + seeds), rtol=1e-5)


def test_the_primary_comparison_is_not_corrected(results):
    gains = over_cohorts.gains_of(results)
    table = over_cohorts.total_table(gains, "steph+permuted")
    assert table["primary"].tolist() == [False, True]
    assert table["p_corrected"].tolist() == pytest.approx(table["p"].tolist())
    assert "(the primary comparison)" in over_cohorts.markdown(results, table, "", [])
    over_cohorts.expect_primary("steph+permuted", LABELS, "abmil")
    over_cohorts.expect_primary("steph", LABELS, "abmil")
    for primary, methods in (
        ("abmil", LABELS),
        ("average", LABELS),
        ("steph+longer", LABELS),
        ("steph+permuted", ("abmil", "steph")),
        ("steph", ("steph", "average")),
    ):
        with pytest.raises(ValueError, match=r"--primary is a method other than --reference"):
            over_cohorts.expect_primary(primary, methods, "abmil")


def test_words_say_what_is_beyond_the_noise(results):
    table = over_cohorts.total_table(over_cohorts.gains_of(results))
    page = over_cohorts.markdown(results, table, "command", ["forest.png"])
    assert "| method | a | b | c | d | mean |" in page
    assert "| steph | 0.6300 | 0.6500 | 0.5900 | 0.6200 | 0.6225 |" in page
    assert "- `steph` less `abmil`: +0.02" in page
    assert page.count("within the noise of cohorts.") == 1
    assert "- `steph` less `steph+permuted`: +0.00" in page
    assert page.count(": better, beyond the noise of cohorts.") == 1
    assert over_cohorts.verdict({"p_corrected": math.nan, "mean": 0.1}).startswith("within")


def test_a_cohort_without_a_difference_is_left_out(results):
    undefined = difference(math.nan, math.nan)
    results["b"] = dataclasses.replace(
        results["b"], differences={"steph": undefined}, control_differences={}
    )
    table = over_cohorts.total_table(over_cohorts.gains_of(results))
    assert table["cohorts"].tolist() == [3, 3]
    alone = {"b": results["b"], "a": results["a"]}
    assert over_cohorts.total_table(over_cohorts.gains_of(alone)).empty
    assert "No comparison is defined" in over_cohorts.markdown(
        alone, over_cohorts.total_table([]), "", []
    )


def test_files(results, tmp_path):
    over_cohorts.write_all(tmp_path, {0: results}, "command")
    table = pd.read_csv(tmp_path / "compare.csv")
    assert list(table) == ["method", "fold", "seed", "c_index", "control", "dataset"]
    assert len(table) == 4 * len(LABELS) * len(SEEDS) * 2
    cohorts = pd.read_csv(tmp_path / "by_cohort.csv")
    assert cohorts.groupby("against")["weight"].sum().tolist() == pytest.approx([1, 1])
    assert (tmp_path / "over_cohorts.md").is_file()
    assert (tmp_path / "forest.png").stat().st_size > 10_000
    assert not (tmp_path / "learning_curve.png").exists()


def test_files_by_number_of_patients(results, tmp_path):
    over_cohorts.write_all(tmp_path, {40: results, 0: results}, "command", by_number=True)
    assert (tmp_path / "patients_40/over_cohorts.csv").is_file()
    assert (tmp_path / "patients_all/forest.png").is_file()
    curve = pd.read_csv(tmp_path / "learning_curve.csv")
    assert curve["train_patients"].tolist() == [40, 40, 0, 0]
    assert curve["difference"].iloc[0] == pytest.approx(0.0225)
    assert (tmp_path / "learning_curve.png").stat().st_size > 10_000
    table = pd.read_csv(tmp_path / "compare.csv")
    assert table.groupby("train_patients").size().tolist() == [48, 48]
