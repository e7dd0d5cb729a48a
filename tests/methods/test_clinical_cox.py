"""`clinical_cox`: against lifelines on columns made by pandas, and everything that reads it."""

import dataclasses
import json
import pathlib
import shutil
import types

import lifelines
import numpy as np
import pandas as pd
import pools
import pytest

from steph_jax import compare, evaluate, predict, train
from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.pool import Pool
from steph_jax.data.clinical import ClinicalTable
from steph_jax.data.features.open import open_features
from steph_jax.data.tables import read_slides
from steph_jax.formats import hub_folder, model_card, stablehlo
from steph_jax.formats.model_card import Origin
from steph_jax.heatmaps import patches
from steph_jax.methods.base import PatientColumns
from steph_jax.methods.registry import find_method
from steph_jax.survival import metrics
from steph_jax.training import experiment, inputs
from steph_jax.training.config import Config, stored_config

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Cohorts of `pools`; the patients of sim_a have an age that goes with their times, or none."""
    home = pools.make(tmp_path_factory.mktemp("home"))
    path = home / "data/sim_a/sim_a_survival.csv"
    table = pd.read_csv(path)
    patients = sorted(set(table["patient_id"]))
    time = table.groupby("patient_id")["t"].first()
    age = {p: "" if i % 7 == 3 else 80 - time[p] / 100 for i, p in enumerate(patients)}
    sex = {p: "fm"[i % 2] for i, p in enumerate(patients)}
    table.assign(
        age=table["patient_id"].map(age), sex=table["patient_id"].map(sex), empty=""
    ).to_csv(path, index=False)
    return home


@pytest.fixture(scope="module")
def trained(home, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    train.train(config_of(home), workdir)
    return workdir


def config_of(home, columns=("age", "sex"), **more):
    section = {"clinical_cox": {"columns": list(columns)}}
    return pools.config(home) | {"method": "clinical_cox", "folds": [0]} | section | more


def test_coefficients_equal_lifelines_on_columns_made_by_pandas(home):
    rng = np.random.default_rng(3)
    number = 160
    frame = pd.DataFrame({"age": rng.normal(60, 12, number).round(1)})
    frame["stage"] = rng.choice(["I", "II", "III"], number, p=[0.2, 0.5, 0.3])
    death = rng.exponential(900 * np.exp(-(frame["age"] - 60) / 15 - (frame["stage"] == "III")))
    censored = rng.uniform(100, 3000, number)
    time, event = np.minimum(death, censored), death <= censored
    frame.loc[rng.choice(number, 20, replace=False), "age"] = np.nan
    frame.loc[rng.choice(number, 25, replace=False), "stage"] = np.nan

    patients = [f"p{i}" for i in range(number)]
    cells = {
        name: {p: str(cell) for p, cell in zip(patients, frame[name], strict=True) if cell == cell}
        for name in frame
    }
    own = PatientColumns(ClinicalTable(pathlib.Path("t.csv"), cells), patients, time, event)
    record = config_of(home, frame.columns, linear={"penalties": [2.0], "inner_repeats": 1})
    spec = Config.from_dict(record).fold_spec(0, 1)
    fit = find_method("clinical_cox").fit
    model = fit(spec, Pool(home / "pool"), types.SimpleNamespace(clinical=lambda: own))

    dummies = pd.get_dummies(frame["stage"].fillna("missing")).drop(columns="II").astype(float)
    x = pd.concat([frame[["age"]].fillna(frame["age"].mean()), dummies], axis=1)
    x = (x - x.mean()) / x.std(ddof=0)
    # lifelines' penalty is that of the mean likelihood, of columns with a deviation (n - 1) of 1.
    penalty = 2.0 * 4 / number / x.std(ddof=1).to_numpy() ** 2
    expected = lifelines.CoxPHFitter(penalizer=penalty).fit(x.assign(t=time, e=event), "t", "e")
    assert list(x) == ["age", "I", "III", "missing"]
    actual = model.params["trainable"]["coefficients"]
    np.testing.assert_allclose(actual, expected.params_.to_numpy(), atol=2e-4)
    assert (model.metadata["penalty"], model.metadata["fitted_parameters"]) == (2.0, 4)
    assert [record["missing"] for record in model.metadata["clinical"]] == [20, 25]


def test_a_fold_is_evaluated_and_predicted_from_what_it_left(home, trained):
    fold = trained / "fold_0"
    written = json.loads((fold / "metrics.json").read_text())
    # Age goes with time but for the patients without one.
    assert written["test"]["c_index"] > 0.7
    table = pd.read_csv(fold / "predictions_test.csv")
    assert table.filter(like="surv_").shape[1] == 32
    patients = pd.read_csv(fold / "patients.csv")
    train_part = patients[patients["part"] == "train"]
    age = train_part["clinical:age"]
    model = saved_model.load_model(fold / "model")
    coding = model.metadata["clinical"][0]
    assert (coding["missing"], coding["mean"]) == (age.isna().sum(), pytest.approx(age.mean()))
    tested = patients[patients["part"] == "test"].set_index("patient_id")["clinical:age"]
    tested = tested.fillna(age.mean())[table["patient_id"]]
    c_index = metrics.concordance_index(table["t"], table["e"], tested)
    assert c_index == pytest.approx(written["test"]["c_index"], abs=0.2)  # sex has a part too

    before = (fold / "predictions_test.csv").read_text()
    evaluate.evaluate_fold(fold, stored_config(trained))
    assert (fold / "predictions_test.csv").read_text() == before

    path = home / "data/sim_a/sim_a_survival.csv"
    slides = read_slides(path)
    source = open_features(home / "data/features/sim_a")
    opened = predict.Patients.open(source, {p: slides[p] for p in table["patient_id"]}, 3)
    columns = predict.read_clinical([model], path, "patient_id")
    predicted = dataclasses.replace(opened, clinical=columns).predict(model)
    np.testing.assert_allclose(predicted.risk, table["risk"], rtol=1e-5)
    np.testing.assert_allclose(predicted.survival, table.filter(like="surv_"), rtol=1e-5)


def test_it_is_compared_like_any_other(home, tmp_path):
    result = compare.compare(config_of(home), ["clinical_cox"], [42], tmp_path, "command")
    assert np.isfinite(result.c_index["clinical_cox"]).all()
    table = pd.read_csv(tmp_path / "compare_table.csv").set_index("method")
    assert table.loc["clinical_cox", "flops_per_slide"] == 2 * 2  # age, sex


def test_what_needs_slides_is_refused(trained, tmp_path):
    model = saved_model.load_model(trained / "fold_0" / "model")
    with pytest.raises(ValueError, match=r"kind clinical_cox reads clinical columns and no slides"):
        patches.merged_model(model)
    with pytest.raises(ValueError, match=r"clinical columns of a table \(age, sex\).*--table"):
        stablehlo.write(model, tmp_path / "m.stablehlo")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"reads the clinical columns age, sex; give a --table"):
        predict.read_clinical([model], None, "patient_id")
    assert predict.read_clinical([], None, "patient_id") is None


def test_columns_that_changed_since_the_first_fold_are_refused(home, trained, tmp_path):
    shutil.copytree(home / "data", tmp_path / "data")
    path = tmp_path / "data/sim_a/sim_a_survival.csv"
    table = pd.read_csv(path)
    patient = table["patient_id"][0]
    table.loc[table["patient_id"] == patient, "sex"] = "x"
    table.to_csv(path, index=False)
    config = config_of(home)
    config["data"] = config["data"] | {"root": str(tmp_path / "data")}
    config = Config.from_dict(config)
    cohort = experiment.read_cohort(config)
    stored = inputs.read(trained)
    now = stored | {"clinical": inputs.clinical_digests(cohort.table)}
    with pytest.raises(ValueError, match=rf"changed .*: the clinical columns of {patient}\. Put"):
        inputs.expect_same(stored, now, trained)


def test_a_folder_for_a_hub_says_what_is_read_and_is_read_back(trained, tmp_path):
    model = saved_model.load_model(trained / "fold_0" / "model")
    model_card.write(model, tmp_path / "hub", Origin("clinical", "clinical_cox", {}))
    text = (tmp_path / "hub/README.md").read_text()
    assert "A survival model for clinical columns (age, sex): cells of a patient in, a risk" in text
    assert "| encoder of the bag | none: no slide is read |" in text
    assert "--features SLIDES --table TABLE --out risk.csv" in text
    again = hub_folder.read(tmp_path / "hub")
    assert again.metadata["clinical"] == model.metadata["clinical"]
    coefficients = model.params["trainable"]["coefficients"]
    np.testing.assert_array_equal(again.params["trainable"]["coefficients"], coefficients)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("age", "stage"), r"sim_a_survival.csv: expected the columns .*; missing stage; found"),
        (("t",), r"clinical_cox.columns: t is the outcome itself"),
        (("empty",), r"column 'empty': expected values of the patients .*; leave it out of clin"),
        (("pathology_id",), r"column 'pathology_id': expected one value for all rows|at most 12"),
    ],
)
def test_columns_that_cannot_be_used_are_one_line(home, columns, message):
    with pytest.raises(ValueError, match=message) as error:
        experiment.read_cohort(Config.from_dict(config_of(home, columns)))
    assert "\n" not in str(error.value)


def test_columns_are_named_once(home):
    with pytest.raises(ValueError, match=r"clinical_cox.columns are different columns; found a, a"):
        Config.from_dict(config_of(home, ("a", "a")))
    config = Config.from_dict(config_of(home, ()))
    with pytest.raises(ValueError, match=r"name them by --config.clinical_cox.columns=\"\('age'"):
        find_method("clinical_cox").start(config.fold_spec(0, 1), Pool(home / "pool"))


def test_a_damaged_model_is_named(trained):
    model = saved_model.load_model(trained / "fold_0" / "model")
    model.params["frozen"]["mean"] = model.params["frozen"]["mean"][:1]
    with pytest.raises(ValueError, match=r"expected frozen.mean of shape \(2,\), found \(1,\)"):
        find_method("clinical_cox").restore(model, None)
