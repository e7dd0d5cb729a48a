"""The positive control, at a tiny size, with stand-ins for training and comparing."""

import dataclasses
import pathlib
import sys
import types

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from scripts import positive_control
from scripts.simulated_truth import Study
from steph_jax.evaluation.comparison import Comparison, Difference
from steph_jax.survival.significance import Interval

TINY = Study(
    cohorts=3, patients=20, source_patients=20, test_patients=15, patches=8, feature_dim=8, folds=2
)
#: What the stand-in gains with real sources over permuted ones, by scenario and simulation.
GAINS = {"shared-seed_1": 0.05, "shared-seed_2": 0.06, "not_shared-seed_1": 0.01}
GAINS["not_shared-seed_2"] = -0.01


def stand_in(record, labels, seeds, workdir, command, reference):
    gain = GAINS[workdir.parent.name]

    def difference(mean):
        return Difference(mean, Interval(mean - 0.01, mean + 0.01), 0.5, np.full(2, mean))

    assert (pathlib.Path(record["data"]["root"]) / "sim_a/splits_0.csv").is_file()
    return Comparison(
        dataset=record["dataset"],
        methods=tuple(labels),
        seeds=tuple(seeds),
        folds=(0, 1),
        runs=(),
        c_index={label: np.full(2, 0.6) for label in labels},
        intervals={},
        differences={"linear_pool": difference(gain)},
        undefined=0.0,
        control_differences={
            label: difference(gain) for label in labels if label.startswith("linear_pool+")
        },
        reference=reference,
    )


def test_a_row_for_each_comparison_and_scenario(tmp_path, monkeypatch):
    monkeypatch.setattr(positive_control, "compare", stand_in)
    table = positive_control.run(TINY, [1, 2], ["linear_pool"], tmp_path)
    assert table["scenario"].tolist() == ["shared"] * 3 + ["not shared"] * 3
    assert table["against"].tolist() == 2 * [
        "ridge_cox",
        "linear_pool+permuted",
        "linear_pool+no_sources",
    ]
    np.testing.assert_allclose(table["mean"], [0.055] * 3 + [0.0] * 3)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "positive_control.csv"), table)
    assert (tmp_path / "shared/forest.png").is_file()


def test_what_is_finished_is_written_before_the_next_simulation(tmp_path, monkeypatch):
    def ends_at_the_third(record, labels, seeds, workdir, command, reference):
        if workdir.parent.name == "shared-seed_3":
            raise KeyboardInterrupt
        return stand_in(record, labels, seeds, workdir, command, reference)

    monkeypatch.setattr(positive_control, "compare", ends_at_the_third)
    monkeypatch.setattr(positive_control.over_cohorts, "plots", types.SimpleNamespace(forest=print))
    with pytest.raises(KeyboardInterrupt):
        positive_control.run(TINY, [1, 2, 3], ["linear_pool"], tmp_path)
    table = pd.read_csv(tmp_path / "positive_control.csv")
    assert table["cohorts"].tolist() == [2] * 6
    assert (tmp_path / "not_shared/over_cohorts.csv").is_file()


@pytest.mark.parametrize(("method", "trained"), [("linear_pool", []), ("average", "bca")])
def test_own_models_are_trained_where_a_method_takes_them(tmp_path, monkeypatch, method, trained):
    runs = []
    monkeypatch.setattr(positive_control.train, "train", lambda *asked: runs.append(asked))
    study = dataclasses.replace(TINY, epochs=3)
    record = positive_control.prepared(study, "shared", 1, [method], tmp_path)
    assert record["sources"] == ["sim_b", "sim_c"]
    assert (record["dataset"], record["epochs"], record["pool"]["save"]) == ("sim_a", 3, False)
    assert [run["dataset"] for run, _ in runs] == [f"sim_{letter}" for letter in trained]
    assert all(run["pool"]["save"] and run["method"] == "abmil" for run, _ in runs)
    assert [list(run["folds"]) for run, _ in runs] == [[0], [0], [0, 1]][: len(runs)]
