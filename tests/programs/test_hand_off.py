"""A trained run handed to others: one static model, the hub, and predictions of all folds."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pools
import pytest
from safetensors.numpy import load_file

from steph_jax import export, predict, train
from steph_jax.checkpoints import saved_model, torch_names
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.features.open import open_features
from steph_jax.data.tables import read_slides
from steph_jax.evaluation import fold_results
from steph_jax.formats import model_card
from steph_jax.survival import metrics


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Cohorts, a pool and, in w, a run of STEPH on two folds."""
    home = pools.make(tmp_path_factory.mktemp("home"))
    train.train(pools.config(home), home / "w")
    return home


def run(program, *words):
    command = [sys.executable, "-m", f"steph_jax.{program}", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def features_of(home):
    return open_features(home / "data" / "features" / "sim_a")


def slides_of(table, rows):
    return {table.patients[i]: table.slides[i] for i in rows}


def test_the_static_model_of_a_fold(home, tmp_path):
    out = tmp_path / "static.safetensors"
    words = ["--checkpoint", home / "w" / "fold_1", "--static", "mean", "--out", out]
    done = run("export", *words)
    assert done.returncode == 0, done.stderr
    architecture, params = torch_names.abmil_from_torch(load_file(out))
    full = saved_model.load_model(home / "w" / "fold_1" / "model")
    one = SavedModel("abmil", architecture, {"objective": full.metadata["objective"]}, params)
    table, split = fold_results.read_patients(home / "w" / "fold_1")
    test = slides_of(table, split.test)
    risk = predict.predict(one, features_of(home), test).risk
    c_index = metrics.concordance_index(table.time[split.test], table.event[split.test], risk)
    recorded = json.loads((home / "w" / "fold_1" / "metrics.json").read_text())["test"]["c_index"]
    assert f"full model {recorded:.4f}, static model {c_index:.4f} (coeff" in done.stdout
    assert f"C-index of the {len(test)} test patients" in done.stdout
    assert f"mean of {len(split.train)} training patients" in done.stdout
    # Parameters are those of the mean coefficients of the training patients, as predict has them.
    aux = predict.predict(full, features_of(home), slides_of(table, split.train)).aux
    target = aux["target"].sum(axis=1).mean()
    frozen, kernel = full.params["frozen"], ("feat_proj", "layers_0", "kernel")

    def leaf(theta):
        for name in kernel:
            theta = theta[name]
        return theta

    expected = leaf(frozen["null"]) + target * leaf(frozen["target_task_vector"])
    for s in range(2):
        expected = expected + aux["source"][:, s].mean() * leaf(frozen["task_vectors"])[s]
    np.testing.assert_allclose(leaf(params), expected, rtol=1e-4, atol=1e-6)


def test_the_static_model_of_a_patient_is_a_model_for_predict(home, tmp_path, capsys):
    path = home / "w" / "fold_0"
    full = saved_model.load_model(path / "model")
    table, split = fold_results.read_patients(path)
    patient = table.patients[split.test[1]]
    one, c_index = export.make_static(full, path, f"patient={patient}")
    assert f"(coefficients: those of patient {patient})" in capsys.readouterr().out
    assert 0 <= c_index <= 1
    export.export(one, tmp_path / "one")
    again = saved_model.load_model(tmp_path / "one")
    slides = slides_of(table, split.test[1:2])
    expected = predict.predict(full, features_of(home), slides)
    np.testing.assert_allclose(
        predict.predict(again, features_of(home), slides).survival, expected.survival, rtol=1e-5
    )
    assert again.metadata["bins"] == full.metadata["bins"]
    assert [name for name, _ in again.metadata["static"]["coefficients"]] == [
        "target",
        "sim_b",
        "sim_c",
    ]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("median", "--static is mean, or patient=ID; found 'median'"),
        ("patient=nobody", r"--static patient=nobody: no such patient; .*patients\.csv has SIM-A"),
    ],
)
def test_choices_that_cannot_be_made(home, choice, message):
    path = home / "w" / "fold_0"
    with pytest.raises(ValueError, match=message):
        export.make_static(saved_model.load_model(path / "model"), path, choice)


def test_models_outside_of_a_run(home, tmp_path, capsys):
    path = home / "pool" / "sim_b-fold_0"
    member = saved_model.load_model(path)
    assert export.make_static(member, path, "mean") == (member, None)
    assert "is the same for all patients already" in capsys.readouterr().out
    merged = saved_model.load_model(home / "w" / "fold_0" / "model")
    saved_model.save_model(tmp_path / "alone", merged)
    with pytest.raises(ValueError, match="expected the directory of a finished fold of a run"):
        export.make_static(merged, tmp_path / "alone", "mean")


def test_a_folder_for_the_hub(home, tmp_path):
    words = ["--checkpoint", home / "w" / "fold_1", "--to", "hf", tmp_path / "hub"]
    done = run("export", *words)
    assert done.returncode == 0, done.stderr
    assert "its license is yours to choose" in done.stdout
    summary = json.loads((home / "w" / "summary.json").read_text())["c_index"]
    text = (tmp_path / "hub" / "README.md").read_text()
    for k, value in enumerate(summary["folds"]):
        assert f"| {k}{' (this model)' if k == 1 else ''} | {value:.4f} |" in text
    assert f"| mean (sd) | {summary['mean']:.4f} ({summary['sd']:.4f}) |" in text
    for member in ("sim_a-fold_1", "sim_b-fold_0", "sim_c-fold_0"):
        assert f"\n- {member}\n" in text.split("---\n", 2)[1]
    done = run("export", *words[:-1])
    assert (done.returncode, done.stderr) == (1, "error: expected --out FILE, or --to hf DIR\n")
    with pytest.raises(ValueError, match="w: expected a new or empty folder"):
        model_card.check_folder(home / "w")


def test_the_card_of_a_static_model_has_its_own_c_index(home):
    path = home / "w" / "fold_0"
    one, c_index = export.make_static(saved_model.load_model(path / "model"), path, "mean")
    origin = export.origin_of(one, path, c_index)
    assert (origin.name, origin.c_index) == ("steph-static-sim_a-fold_0", {0: c_index})
    text = model_card.card(one, origin)
    assert "| coefficients of the sources | fixed, of a steph model: mean of " in text


def test_the_card_of_a_pool_member(home):
    path = home / "pool" / "sim_b-fold_0"
    member = saved_model.load_model(path)
    assert export.origin_of(member, path).c_index == {}
    settings = {"dataset": "b", "fold": 0, "test_c_index": 0.7}
    known = dataclasses.replace(member, metadata=settings)
    assert export.origin_of(known, path) == model_card.Origin("sim_b-fold_0", "abmil", {0: 0.7})


def test_a_run_predicts_by_all_its_folds(home, tmp_path):
    features = home / "data" / "features" / "sim_a"
    flags = ["--features", features, "--table", home / "data" / "sim_a" / "sim_a_survival.csv"]
    done = run("predict", "--checkpoint", home / "w", *flags, "--out", tmp_path / "w.csv")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "w.csv", dtype={"patient_id": str})
    risks = ["risk_fold_0", "risk_fold_1"]
    assert [*table] == ["patient_id", *risks, "mean_rank", "models_above_cut", "group"]
    slides = read_slides(home / "data" / "sim_a" / "sim_a_survival.csv")
    above = np.zeros(len(table))
    for k, name in enumerate(risks):
        model = saved_model.load_model(home / "w" / f"fold_{k}" / "model")
        alone = predict.predict(model, features_of(home), slides)
        assert table["patient_id"].tolist() == alone.patients
        np.testing.assert_allclose(table[name], alone.risk, rtol=1e-6)
        record = json.loads((home / "w" / f"fold_{k}" / "metrics.json").read_text())
        above += table[name] > record["risk_cut"]
    assert (table["models_above_cut"] == above).all()
    assert set(table["group"]) == {"high", "low"}
    assert ((table["group"] == "high") == (above >= 1)).all()


def test_a_run_is_no_single_model(home, tmp_path):
    models = [saved_model.load_model(home / "w" / f"fold_{k}" / "model") for k in (0, 1)]
    with pytest.raises(ValueError, match=r"w: --merge_weights are those of one model; name a fold"):
        predict.expect_merge_weights(home / "w", models)
    done = run("export", "--checkpoint", home / "w", "--out", tmp_path / "x.pth")
    assert done.returncode == 1
    assert f"a run has a model for each fold; name one: {home / 'w'}/fold_0, " in done.stderr
    shutil.copytree(home / "w", tmp_path / "begun", ignore=shutil.ignore_patterns("metrics.json"))
    with pytest.raises(ValueError, match="begun: no fold is finished yet"):
        predict.model_directories(tmp_path / "begun")
