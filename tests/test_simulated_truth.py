"""The study of the simulator's truth, at a tiny size, with a stand-in for training."""

import dataclasses
import json
import pathlib
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest

from steph_jax import plots
from steph_jax.training.config import Config

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from scripts import simulated_truth
from scripts.simulated_truth import Study

TINY = Study(
    seeds=(3,),
    methods=("abmil", "average", "steph"),
    cohorts=3,
    patients=20,
    source_patients=20,
    test_patients=15,
    patches=10,
    feature_dim=8,
    embed_dim=8,
    attention_dim=4,
    epochs=1,
    folds=2,
)


def stand_in(record: dict[str, Any], workdir: pathlib.Path) -> None:
    """Leaves what training leaves, as far as the study reads it."""
    config = Config.from_dict(record)
    rng = np.random.default_rng(0)
    dataset, root = config.dataset, config.data.folder
    table = pd.read_csv(root / dataset / f"{dataset}_survival.csv").drop_duplicates("patient_id")
    for fold in config.folds:
        assert record["steph"]["top_k"] == 1
        tested = pd.read_csv(root / dataset / f"splits_{fold}.csv")["test"].dropna()
        rows = table.set_index("patient_id").loc[tested, ["t", "e"]].reset_index(names="patient_id")
        directory = workdir / f"fold_{fold}"
        directory.mkdir(parents=True)
        risk = rng.normal(size=len(rows))
        rows.assign(risk=risk).to_csv(directory / "predictions_test.csv", index=False)
        if config.method == "steph":
            weights = rows[["patient_id"]].merge(
                pd.DataFrame({"source": ["sim_b", "sim_c"], "weight": [0.1, 0.3]}), how="cross"
            )
            weights = weights.assign(selected=[0, 1] * len(rows))
            weights["lambda"] = 0.5
            weights.to_csv(directory / "merge_weights_test.csv", index=False)
    (workdir / "summary.json").write_text(json.dumps({}))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulated_truth.train, "train", stand_in)
        simulated_truth.run(TINY, out)
    return out


def test_every_method_is_tested_on_the_same_fresh_patients(finished):
    scores = pd.read_csv(finished / "results.csv")
    keys = ["scenario", "seed", "method", "fold"]
    expected = {
        (scenario, 3, method, fold)
        for scenario in ("shared", "not shared")
        for method in TINY.methods
        for fold in (0, 1)
    }
    assert set(scores[keys].itertuples(index=False, name=None)) == expected
    assert len(scores) == len(expected)
    assert scores["c_index"].between(0, 1).all()

    home = finished / "shared-seed_3"
    table = pd.read_csv(home / "data/sim_a/sim_a_survival.csv").drop_duplicates("patient_id")
    fresh = set(table["patient_id"].iloc[20:])
    left_out = []
    for fold in range(5):
        split = pd.read_csv(home / f"data/sim_a/splits_{fold}.csv")
        assert set(split["test"].dropna()) == fresh
        left_out += sorted(set(table["patient_id"]) - fresh - set(split["train"].dropna()))
    assert sorted(left_out) == sorted(set(table["patient_id"]) - fresh)
    for method in TINY.methods:
        tested = pd.read_csv(home / f"runs/sim_a-{method}/fold_0/predictions_test.csv")
        assert set(tested["patient_id"]) == fresh


def test_the_oracle_is_the_truth_of_the_tested_patients(finished):
    home = finished / "shared-seed_3"
    truth = pd.read_csv(home / "data/sim_a/sim_a_truth.csv").set_index("patient_id")["log_hazard"]
    table = pd.read_csv(home / "data/sim_a/sim_a_survival.csv").drop_duplicates("patient_id")
    patients = list(table.iloc[20:].itertuples())
    pairs = [(a, b) for a in patients for b in patients if a.e and a.t < b.t]
    expected = np.mean([truth[a.patient_id] > truth[b.patient_id] for a, b in pairs])
    scores = pd.read_csv(finished / "results.csv")
    oracle = scores.loc[scores["scenario"] == "shared", "oracle_c_index"]
    assert oracle.to_numpy() == pytest.approx(expected)


def test_weights_are_grouped_by_the_true_relation(finished):
    weights = pd.read_csv(finished / "weights.csv")
    assert set(weights["method"]) == {"steph"}
    cosines = weights.groupby(["scenario", "source"])["cosine"].unique().map(list).to_dict()
    assert cosines == {
        ("shared", "sim_b"): [0],
        ("shared", "sim_c"): [0.9],
        ("not shared", "sim_b"): [0],
        ("not shared", "sim_c"): [0],
    }
    kinds = simulated_truth.kinds_of(weights).set_index("kind")
    for kind, expected in (("related", [0.3, 1, 0.15]), ("unrelated", [0.1, 0, 0])):
        assert kinds.loc[kind, ["weight", "selected", "used"]].tolist() == pytest.approx(expected)


def test_a_finished_study_trains_nothing_and_gives_the_same_tables(finished, monkeypatch):
    before = {name: (finished / name).read_bytes() for name in ("results.csv", "results.md")}

    def refuse(*args: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(simulated_truth.train, "train", refuse)
    simulated_truth.run(TINY, finished)
    assert before == {name: (finished / name).read_bytes() for name in before}
    with pytest.raises(ValueError, match=r"patients: 20 then, 30 now"):
        simulated_truth.run(dataclasses.replace(TINY, patients=30), finished)
    with pytest.raises(ValueError, match="scenarios are shared, not shared; found 'half'"):
        simulated_truth.run(dataclasses.replace(TINY, scenarios=("half",)), finished)


def scores(rows: list[tuple[str, int, str, int, float]]) -> pd.DataFrame:
    columns = ["scenario", "seed", "method", "fold", "c_index"]
    return pd.DataFrame(rows, columns=columns).assign(oracle_c_index=0.8)


def test_gains_are_paired_by_simulation():
    table = scores(
        [
            ("shared", seed, method, fold, 0.5 + 0.1 * seed + 0.01 * fold + gain)
            for seed in (1, 2)
            for method, gain in (("abmil", 0.0), ("steph", 0.02 * seed))
            for fold in (0, 1)
        ]
    )
    gains = simulated_truth.gains_of(table).set_index(["method", "seed"])["gain"]
    assert gains["steph", 1] == pytest.approx(0.02)
    assert gains["steph", 2] == pytest.approx(0.04)
    assert gains["abmil", 1] == 0
    text = simulated_truth.markdown(table, pd.DataFrame())
    assert "| shared | steph | 0.6250 | 0.7450 | 0.6850 | +0.0300 | 0.0141 | 2 of 2 |" in text
    assert "| shared | the true hazard | 0.8000 | 0.8000 | 0.8000 |" in text


def test_collapsed_weights_are_counted():
    weights = pd.DataFrame(
        {
            "scenario": "not shared",
            "seed": 1,
            "method": "steph",
            "fold": [0, 0, 1, 1],
            "source": ["sim_b", "sim_c"] * 2,
            "cosine": 0.0,
            "weight": [0.0, 0.0, 0.1, 0.0],
            "selected": [1, 0, 1, 0],
            "used": [0.0, 0.0, 0.05, 0.0],
        }
    )
    text = simulated_truth.markdown(scores([("not shared", 1, "abmil", 0, 0.6)]), weights)
    assert "died (are 0): 1." in text
    assert "related" not in text


def test_the_picture_shows_every_simulation_and_the_means():
    gains = pd.DataFrame(
        [(s, m, k, 0.01 * k) for s in ("x", "y") for m in ("fix", "steph") for k in (1, 2, 3)],
        columns=["scenario", "method", "seed", "gain"],
    )
    weights = pd.DataFrame(
        [("steph", k, kind, 0.1 * k) for kind in ("related", "unrelated") for k in (1, 2, 3)],
        columns=["method", "seed", "kind", "used"],
    )
    figure = plots.simulated_truth_figure(gains, weights, "A title")
    assert [axes.get_title(loc="left") for axes in figure.axes][:2] == ["x", "y"]
    assert [t.get_text() for t in figure.axes[0].texts] == ["+0.020", "+0.020"]
    assert [t.get_text() for t in figure.axes[2].texts] == ["0.200", "0.200"]
    drawn = [line for line in figure.axes[2].lines if line.get_marker() != "|"]
    assert [line.get_xdata()[0] for line in drawn] == pytest.approx([0.1, 0.2, 0.3] * 2)
    assert len(plots.simulated_truth_figure(gains, weights.head(0), "A title").axes) == 2
    with pytest.raises(ValueError, match="gains: expected the columns gain"):
        plots.simulated_truth_figure(gains.drop(columns="gain"), weights, "A title")
