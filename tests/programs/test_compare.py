"""Comparisons: what is run, written and reported."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pandas as pd
import pools
import pytest

from steph_jax import compare, run_directory, train
from steph_jax.evaluation import comparison, comparison_report, cost, fold_results
from steph_jax.evaluation.comparison import Difference
from steph_jax.plots.style import signed
from steph_jax.reports import comparison_page
from steph_jax.survival import metrics, significance
from steph_jax.survival.significance import Interval

pytestmark = pytest.mark.usefixtures("no_pictures")

METHODS, SEEDS = ("abmil", "average", "roupkt"), (1, 2)
COMMAND = "python -m steph_jax.compare"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return pools.make(tmp_path_factory.mktemp("world"))


@pytest.fixture
def config(world):
    return pools.config(world)


@pytest.fixture(scope="module")
def compared(world, tmp_path_factory):
    """A finished comparison: (its directory, what was found)."""
    workdir = tmp_path_factory.mktemp("W")
    result = compare.compare(pools.config(world), METHODS, SEEDS, workdir, COMMAND)
    return workdir, result


def test_the_table_of_the_contract(compared):
    workdir, _ = compared
    table = pd.read_csv(workdir / "compare.csv")
    assert list(table) == ["method", "fold", "seed", "c_index"]
    assert len(table) == len(METHODS) * len(SEEDS) * 2
    for row in table.itertuples():
        fold = workdir / f"{row.method}-seed_{row.seed}" / f"fold_{row.fold}"
        metrics_json = json.loads((fold / "metrics.json").read_text())
        assert row.c_index == pytest.approx(metrics_json["test"]["c_index"], abs=1e-8)
        assert (metrics_json["method"], metrics_json["seed"]) == (row.method, row.seed)


def test_numbers_follow_from_the_predictions(compared):
    workdir, result = compared
    table = pd.read_csv(workdir / "compare_table.csv").set_index("method")
    folds = {}
    for method in METHODS:
        seed_values = []
        for seed in SEEDS:
            directory = workdir / f"{method}-seed_{seed}"
            tests = [pd.read_csv(directory / f"fold_{k}/predictions_test.csv") for k in (0, 1)]
            seed_values.append(
                [metrics.concordance_index(p["t"], p["e"], p["risk"]) for p in tests]
            )
        folds[method] = np.mean(seed_values, axis=0)
        row = table.loc[method]
        np.testing.assert_allclose(row[["fold_0", "fold_1"]].astype(float), folds[method])
        assert row["mean"] == pytest.approx(np.mean(folds[method]))
        assert row["sd"] == pytest.approx(np.std(folds[method], ddof=1))
        assert row["seed_sd"] == pytest.approx(
            np.std(np.mean(seed_values, axis=1), ddof=1), abs=1e-9
        )
        assert row["low"] <= row["mean"] <= row["high"]
        assert result.differences.keys() == {"average", "roupkt"}
    difference = folds["roupkt"] - folds["abmil"]
    row = table.loc["roupkt"]
    assert row["difference"] == pytest.approx(difference.mean())
    split = fold_results.read_patients(workdir / "abmil-seed_1/fold_0")[1]
    sizes = [len(split.train)] * 2, [len(split.test)] * 2
    p = significance.corrected_t_test(difference, *sizes)
    assert row["p"] == pytest.approx(p, rel=0.05)
    assert row["difference_low"] <= row["difference_high"]
    assert math.isnan(table.loc["abmil", "difference"])
    assert table.loc["average", "trainable_parameters"] == 0
    assert table.loc["average", "train_seconds_per_fold"] == 0
    assert table.loc["average", "flops_per_slide"] == table.loc["abmil", "flops_per_slide"]
    assert table.loc["roupkt", "flops_per_slide"] > 3.5 * table.loc["abmil", "flops_per_slide"]
    assert (table["seconds_per_slide"] > 0).all()


def test_the_pages_for_people(compared):
    workdir, _ = compared
    page = (workdir / "compare.md").read_text()
    for text in (
        f"    {COMMAND}",
        "| method | fold 0 | fold 1 | mean | sd | sd of seeds | difference to abmil [95 %] | p |",
        "- `roupkt`: ",
        "These are 2 comparisons",
        "mean of the seeds 1, 2",
        "GFLOP and ms per slide: inference on a slide of N = ",
    ):
        assert text in page
    tex = (workdir / "compare.tex").read_text()
    (titles,) = [line for line in tex.splitlines() if line.startswith("method &")]
    assert "[95 \\%]" in titles
    assert all(
        line.count(" & ") == titles.count(" & ") for line in tex.splitlines() if " & " in line
    )
    for picture in ("compare", "differences"):
        assert (workdir / f"{picture}.png").stat().st_size > 10_000


def test_differences_are_to_the_method_that_is_named(compared, tmp_path):
    workdir, result = compared
    other = comparison.compare_runs(
        workdir, "sim_a", METHODS, SEEDS, (0, 1), resamples=200, reference="roupkt"
    )
    assert other.differences.keys() == {"abmil", "average"}
    one, reverse = result.differences["roupkt"], other.differences["abmil"]
    np.testing.assert_allclose(reverse.folds, -one.folds)
    assert reverse.p == pytest.approx(one.p)
    costs = {m: {"flops_per_slide": 1, "seconds_per_slide": 1} for m in METHODS}
    table = comparison.table(other, costs)
    titles = list(comparison_report.columns(other))
    assert "difference to roupkt [95 %]" in titles
    place = titles.index("difference to roupkt [95 %]")
    by_method = {row[0]: row for row in comparison_report.cells(other, table)}
    assert by_method["roupkt"][place : place + 2] == ["", ""]
    assert by_method["abmil"][place].startswith(signed(reverse.mean))
    assert comparison_report.words(other)[0].startswith("- `abmil`: ")
    missing = dataclasses.replace(other, methods=("abmil",), reference="steph")
    assert comparison_report.words(missing)[0].startswith("`steph` is not among the methods")


def test_a_second_call_trains_and_measures_nothing(compared, config, monkeypatch):
    workdir, first = compared
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("*/fold_*/*")}

    def refuse(*given):
        raise AssertionError("trained or measured again")

    monkeypatch.setattr(train, "train", refuse)
    monkeypatch.setattr(cost, "seconds_per_slide", refuse)
    fewer = compare.compare(config, ["roupkt"], [1], workdir, COMMAND)
    assert {path: path.stat().st_mtime_ns for path in workdir.glob("*/fold_*/*")} == before
    assert fewer.differences == {}
    page = (workdir / "compare.md").read_text()
    assert "`abmil` is not among the methods, so differences to it are left out" in page
    assert "difference to" not in page.split("## Differences")[0]
    again = compare.compare(config, METHODS, SEEDS, workdir, COMMAND)
    assert again.intervals == first.intervals
    with pytest.raises(ValueError, match=r"other settings; use them, or another --workdir"):
        compare.compare(config | {"epochs": 2}, METHODS, SEEDS, workdir, COMMAND)


def test_comparison_with_several_numbers_of_training_patients(config, tmp_path):
    few = config | {"folds": [0], "batch_size": 2}
    methods = ["abmil", "average"]
    results = compare.compare_numbers(few, methods, [1], tmp_path, COMMAND, [0, 6])
    assert list(results) == [6, 0]
    table = pd.read_csv(tmp_path / "compare.csv")
    assert table["train_patients"].tolist() == [6, 6, 0, 0]
    for number, place in ((6, "patients_6"), (0, "patients_all")):
        run = tmp_path / place / "average-seed_1/fold_0"
        assert json.loads((run / "metrics.json").read_text())["train_patients"] == number
        assert (tmp_path / place / "report.html").is_file()
    tests = [
        pd.read_csv(tmp_path / place / "abmil-seed_1/fold_0/predictions_test.csv")["patient_id"]
        for place in ("patients_6", "patients_all")
    ]
    assert tests[0].equals(tests[1])
    page = (tmp_path / "learning_curve.md").read_text()
    assert "| average less abmil |" in page
    with pytest.raises(ValueError, match=r"compare.csv: expected a comparison on one dataset with"):
        comparison_page.report_numbers(tmp_path)
    with pytest.raises(ValueError, match=r"train_patients = 900, but fold 0 of sim_a has"):
        compare.compare_numbers(few, methods, [1], tmp_path / "other", COMMAND, [6, 900])
    assert not (tmp_path / "other").exists()


def test_comparison_resumes(compared, config, tmp_path):
    workdir, first = compared
    shutil.copytree(workdir, tmp_path / "W")
    shutil.rmtree(tmp_path / "W/abmil-seed_2/fold_1")
    time_before = (tmp_path / "W/abmil-seed_2/fold_0/metrics.json").stat().st_mtime_ns
    again = compare.compare(config, METHODS, SEEDS, tmp_path / "W", COMMAND)
    assert (tmp_path / "W/abmil-seed_2/fold_0/metrics.json").stat().st_mtime_ns == time_before
    assert again.intervals == first.intervals


def test_runs_with_other_test_patients_are_refused(compared, tmp_path):
    workdir, _ = compared
    shutil.copytree(workdir, tmp_path / "W")
    path = tmp_path / "W/roupkt-seed_1/fold_1/predictions_test.csv"
    predictions = pd.read_csv(path)
    predictions.loc[0, "t"] += 1
    predictions.to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"roupkt-seed_1 were tested on other patients, .* fold 1"):
        comparison.compare_runs(tmp_path / "W", "sim_a", METHODS, SEEDS, (0, 1))
    predictions.drop(columns="risk").to_csv(path, index=False)
    with pytest.raises(
        ValueError, match=r"predictions_test.csv: expected the column risk, found none; python"
    ):
        comparison.compare_runs(tmp_path / "W", "sim_a", METHODS, SEEDS, (0, 1))


def test_pictures_of_a_run_killed_before_its_summary_are_made(compared, config, tmp_path):
    workdir, _ = compared
    shutil.copytree(workdir, tmp_path / "W")
    run = tmp_path / "W/roupkt-seed_1"
    for name in ("summary.json", "risk_groups.png"):
        (run / name).unlink(missing_ok=True)
    # A summary of the fold that was asked for first stays where the process died after the second.
    summary = json.loads((tmp_path / "W/abmil-seed_1/summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"fold_numbers": [0]}))
    compare.compare(config, METHODS, SEEDS, tmp_path / "W", COMMAND)
    assert json.loads((run / "summary.json").read_text())["fold_numbers"] == [0, 1]


def test_run_on_other_inputs_than_the_finished_ones_is_refused(compared, config, world, tmp_path):
    workdir, _ = compared
    shutil.copytree(workdir, tmp_path / "W")
    shutil.rmtree(tmp_path / "W/roupkt-seed_2")
    path = world / "data/sim_a/sim_a_survival.csv"
    before = path.read_text()
    table = pd.read_csv(path)
    table["e"] = 1 - table["e"]
    table.to_csv(path, index=False)
    try:
        with pytest.raises(ValueError, match=r"abmil-seed_1: inputs have changed .* slides of SIM"):
            compare.compare(config, METHODS, SEEDS, tmp_path / "W", COMMAND)
    finally:
        path.write_text(before)
    assert not (tmp_path / "W/roupkt-seed_2/fold_0").exists()


def test_nothing_is_trained_where_a_method_cannot_be(config, tmp_path):
    with pytest.raises(ValueError, match=r"method is one of abmil, .*; found 'stef'"):
        compare.compare(config, ["abmil", "stef"], [1], tmp_path, COMMAND)
    with pytest.raises(ValueError, match=r"each of them once; found --methods abmil,abmil"):
        compare.compare(config, ["abmil", "abmil"], [1], tmp_path, COMMAND)
    with pytest.raises(FileNotFoundError, match=r"no model of 'sim_b' for fold 1.*pool.save=true"):
        compare.compare(config | {"dataset": "sim_b"}, ["abmil", "steph"], [1], tmp_path, COMMAND)
    saving = config | {"pool": config["pool"] | {"save": True}}
    absent = config | {"sources": ("sim_b", "sim_x")}
    with pytest.raises(
        FileNotFoundError,
        match=r"joint trains on .* sim_x too: .*sim_x_survival.csv.*--config.sources",
    ):
        compare.compare(absent, ["abmil", "joint"], [1], tmp_path, COMMAND)
    with pytest.raises(ValueError, match=r"pool.save is for `steph_jax.train`"):
        compare.compare(saving, ["abmil"], [1], tmp_path, COMMAND)
    with pytest.raises(ValueError, match=r"--seeds are whole numbers, as 42,43; found 42,x"):
        compare.whole_numbers(["42", "x"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mean", "interval", "p", "expected"),
    [
        (0.02, (0.01, 0.03), 0.01, "better, beyond the noise of patients and of folds"),
        (-0.02, (-0.03, -0.01), 0.01, "worse, beyond the noise"),
        (0.02, (-0.01, 0.05), 0.4, "within the noise"),
        (0.02, (-0.01, 0.05), 0.01, "within the noise: the folds agree"),
        (0.02, (0.01, 0.03), 0.2, "within the noise of folds, though better"),
        (0.02, (0.01, 0.03), math.nan, "better, as far as patients go"),
        (0.02, (-0.01, 0.03), math.nan, "within the noise"),
        (math.nan, (math.nan, math.nan), math.nan, "not known"),
    ],
)
def test_verdicts_on_differences(mean, interval, p, expected):
    text = comparison.verdict(Difference(mean, Interval(*interval), p, np.zeros(2)))
    assert text.startswith(expected)


def test_verdict_on_equal_differences():
    alike = Difference(0.02, Interval(0.01, 0.03), math.nan, np.full(5, 0.02))
    assert comparison.verdict(alike).endswith(
        "all folds differ alike, so there is no test over them"
    )
    one_fold = alike._replace(folds=np.full(1, 0.02))
    assert comparison.verdict(one_fold).endswith("there are too few folds for a test over them")


def test_one_fold_one_seed_one_method(compared):
    workdir, _ = compared
    result = comparison.compare_runs(workdir, "sim_a", ["abmil"], [1], [0], resamples=50)
    assert math.isnan(result.seed_sd("abmil"))
    assert "sd of seeds" not in comparison_report.columns(result)
    assert comparison_report.words(result) == ["There is no method but `abmil`."]
    assert run_directory.is_finished(workdir / "abmil-seed_1/fold_0")
