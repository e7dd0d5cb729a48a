"""Every loss through a whole training: it is learned, and its outputs are read the right way.

Bags differ by their patients' log hazards alone, and patches are averaged: a model's outputs are a
line of NumPy.
"""

import json
import pathlib

import jax
import numpy as np
import pandas as pd
import pytest
import simulated

from steph_jax import evaluate, predict, train
from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel, stored_objective
from steph_jax.data.features.open import open_features
from steph_jax.evaluation import fold_results
from steph_jax.methods.base import as_numpy
from steph_jax.models import abmil
from steph_jax.models.abmil import Architecture
from steph_jax.survival import metrics
from steph_jax.survival.objectives import Objective, objective_record
from steph_jax.survival.time_bins import TimeBins, uniform_bins
from steph_jax.training import epoch, loop, resume
from steph_jax.training.config import stored_config

pytestmark = pytest.mark.usefixtures("no_pictures")

FEATURE_DIM, PATCHES, PATIENTS = 8, 4, 48
#: loss.terms and bins.kind: every loss, sums of two, every kind of bins.
CASES = {
    "nll": ([["nll", 1.0]], "quantile"),
    "incidence_nll": ([["incidence_nll", 1.0]], "sqrt_events"),
    "emd": ([["emd", 1.0]], "quantile"),
    "cox": ([["cox", 1.0]], "sqrt_events"),
    "rank": ([["rank", 1.0]], "uniform"),
    "recon": ([["recon", 1.0]], "uniform"),
    "incidence_nll + emd": ([["incidence_nll", 0.5], ["emd", 2.0]], "uniform"),
    "rank + recon": ([["rank", 1.0], ["recon", 0.2]], "quantile"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> pathlib.Path:
    """One cohort; the last quarter of it is the test part, a sixth is to validate on."""
    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    log_hazard = rng.standard_normal(PATIENTS)
    died = rng.exponential(1500 * np.exp(-2 * log_hazard))
    censored = rng.exponential(20000, PATIENTS)
    ids = [f"p{i}" for i in range(PATIENTS)]
    table = pd.DataFrame({"patient_id": ids, "pathology_id": ids, "project": "easy"})
    table["t"] = np.ceil(np.minimum(np.minimum(died, censored), 6000))
    table["e"] = (died <= np.minimum(censored, 6000)).astype(int)
    (home / "data" / "easy").mkdir(parents=True)
    table.to_csv(home / "data/easy/easy_survival.csv", index=False)
    for fold, columns in enumerate([("train", "train", "test"), ("validation", "train", "test")]):
        parts = {name: [] for name in dict.fromkeys(columns)}
        for name, some in zip(columns, np.split(np.array(ids), [8, 36]), strict=True):
            parts[name] += some.tolist()
        split = pd.DataFrame({name: pd.Series(some) for name, some in parts.items()})
        split.to_csv(home / f"data/easy/splits_{fold}.csv", index=False)
    folder = home / "data/features/easy"
    folder.mkdir(parents=True)
    for patient, value in zip(ids, log_hazard, strict=True):
        bag = 0.2 * rng.standard_normal((PATCHES, FEATURE_DIM))
        bag[:, :2] += value
        np.save(folder / f"{patient}.npy", bag.astype(np.float32))
    return home


def config(home, **overrides):
    values = {
        "dataset": "easy",
        "folds": (0,),
        "method": "abmil",
        "batch_size": 12,
        "model__feature_dim": FEATURE_DIM,
        "model__pooling": "mean",
    }
    return simulated.config(home, **(values | overrides))


def read_json(path):
    return json.loads(path.read_text())


def outputs_of(home, theta, patients):
    """The outputs of a model with one projection and mean pooling, in float64."""
    outputs = []
    for patient in patients:
        bag = np.load(home / f"data/features/easy/{patient}.npy").astype(np.float64)
        layer, head = theta["feat_proj"]["layers_0"], theta["pred_head"]
        z = np.maximum(bag @ layer["kernel"] + layer["bias"], 0).mean(axis=0)
        outputs.append(z @ head["kernel"] + head["bias"])
    return np.array(outputs)


def expected_curve(name, outputs, model):
    """The survival curve by docs/method.md, from a model's outputs; None where it gives none."""
    if name in ("rank", "recon"):
        return None
    if name == "nll":
        return np.cumprod(1 - 1 / (1 + np.exp(-outputs)), axis=1)
    if name == "cox":
        baseline = metrics.Baseline.from_json(model.metadata["baseline"])
        ends = np.asarray(model.metadata["bins"]["edges"][1:])
        return baseline.survival(np.minimum(outputs[:, 0], 10), ends)
    powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return 1 - np.cumsum(powers / powers.sum(axis=1, keepdims=True), axis=1)


def expected_risk(name, outputs, curve):
    """The risk by docs/method.md, higher = worse."""
    if name in ("rank", "recon"):
        return -outputs[:, 0]
    return np.minimum(outputs[:, 0], 10) if name == "cox" else -curve.sum(axis=1)


def check_predictions(table, name, outputs, model):
    """Holds a table of predictions against the outputs of the model."""
    curve = expected_curve(name, outputs, model)
    np.testing.assert_allclose(table["risk"], expected_risk(name, outputs, curve), rtol=1e-4)
    actual = table.filter(like="surv_").to_numpy()
    if curve is None:
        assert actual.shape[1] == 0
    else:
        np.testing.assert_allclose(actual, curve, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_a_training_with_every_loss(home, tmp_path, case):
    terms, bins = CASES[case]
    name = terms[0][0]
    record = config(home, epochs=10, learning_rate=3e-2, loss__terms=terms, bins__kind=bins)
    record["bins"]["number"] = 4 if bins == "quantile" else 16
    train.train(record, tmp_path)
    fold = tmp_path / "fold_0"
    history = pd.read_csv(fold / "history.csv")
    assert history["train_loss"].iloc[-1] < 0.9 * history["train_loss"].iloc[0]
    written = read_json(fold / "metrics.json")
    assert written["train"]["c_index"] > 0.75
    assert written["test"]["c_index"] > 0.75

    model = saved_model.load_model(fold / "model")
    table = pd.read_csv(fold / "predictions_test.csv")
    outputs = outputs_of(home, model.params, table["patient_id"])
    check_predictions(table, name, outputs, model)
    edges = model.metadata["bins"]["edges"]
    assert outputs.shape[1] == (1 if name in ("cox", "rank", "recon") else len(edges) - 1)
    if name == "recon":  # times are predicted in years
        years = table["t"] / 365.25
        assert np.mean(np.abs(outputs[:, 0] - years)) < 0.8 * np.mean(np.abs(years))

    # Bins are those of the training patients alone.
    patients, split = fold_results.read_patients(fold)
    events = patients.time[split.train][patients.event[split.train]]
    if bins == "quantile":
        np.testing.assert_allclose(edges[1:], np.quantile(events, np.arange(1, 5) / 4))
        everyone = patients.time[patients.event]
        assert not np.allclose(edges[1:], np.quantile(everyone, np.arange(1, 5) / 4))
    elif bins == "sqrt_events":
        number = int(np.ceil(np.sqrt(len(events))))
        np.testing.assert_allclose(edges, np.linspace(0, events.max(), number + 1))

    if name == "cox":  # the curves of new patients come from the stored baseline
        chosen = {patient: (patient,) for patient in table["patient_id"]}
        source = open_features(home / "data/features/easy")
        actual = predict.predict(model, source, chosen)
        np.testing.assert_allclose(actual.risk, table["risk"], rtol=1e-5)
        np.testing.assert_allclose(actual.survival, table.filter(like="surv_"), atol=1e-6)


def test_early_stopping_resumes_with_the_same_numbers(home, tmp_path, monkeypatch):
    record = config(home, folds=(1,), epochs=12, learning_rate=0.3, batch_size=7)
    record["validation"] = {"select": "loss", "patience": 2}
    train.train(record, tmp_path / "whole")
    whole = read_json(tmp_path / "whole/fold_1/metrics.json")
    assert whole["best_epoch"] + 2 == whole["epochs"] < 12, "training is to end early here"

    class Interrupted(Exception):
        pass

    real, passed = epoch.train_epoch, 0

    def interrupted(*args, **kwargs):
        nonlocal passed
        passed += 1
        if passed in (2, whole["epochs"] + 1):
            raise Interrupted
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "train_epoch", interrupted)
    for _ in range(2):
        with pytest.raises(Interrupted):
            train.train(record, tmp_path / "parts")
    train.train(record, tmp_path / "parts")
    assert passed == whole["epochs"] + 2, "each epoch ran once, but for the two interrupted ones"
    actual, reference = (
        resume.fingerprint(saved_model.load_model(tmp_path / run / "fold_1/model"))
        for run in ("whole", "parts")
    )
    assert actual == reference
    parts = read_json(tmp_path / "parts/fold_1/metrics.json")
    for entry in ("train", "test", "best_epoch", "epochs"):
        assert parts[entry] == whole[entry]


@pytest.mark.parametrize(
    ("loss", "num_bins"), [("cox", 1), ("rank", 1), ("incidence_nll", 5), ("imported", 32)]
)
def test_zero_shot_reads_a_model_by_its_own_loss_and_bins(home, tmp_path, loss, num_bins):
    """The run has other ones; they are not what the model was fitted with."""
    name = "nll" if loss == "imported" else loss
    objective = Objective(((name, 1.0),))
    bins = uniform_bins(5, 700.0).to_json()
    metadata = {"objective": objective_record(objective), "bins": bins}
    architecture = Architecture(FEATURE_DIM, 16, 8, num_bins, "mean")
    pool = Pool(tmp_path / "pool")
    for seed, member in enumerate(["null", "other-fold_0"]):
        params = as_numpy(abmil.init(jax.random.key(seed), architecture))
        pool.add(
            member,
            SavedModel("abmil", architecture, {} if loss == "imported" else metadata, params),
        )
    terms = [["incidence_nll", 1.0]] if loss == "imported" else [["nll", 1.0]]
    record = config(home, method="zero_shot", pool__root=str(pool.root), loss__terms=terms)
    train.train(record, tmp_path / "w")
    fold = tmp_path / "w/fold_0"
    model = saved_model.load_model(fold / "model")
    assert stored_objective(model) == objective
    own = uniform_bins(32, 365.0) if loss == "imported" else TimeBins.from_json(bins)
    assert TimeBins.from_json(model.metadata["bins"]) == own

    table = pd.read_csv(fold / "predictions_test.csv")
    outputs = outputs_of(home, pool.member("other", 0).params, table["patient_id"])
    check_predictions(table, name, outputs, model)
    before = (fold / "predictions_test.csv").read_bytes()
    scores = read_json(fold / "metrics.json")
    risk = table["risk"]
    assert scores["test"]["c_index"] == metrics.concordance_index(table["t"], table["e"], risk)
    evaluate.evaluate_fold(fold, stored_config(tmp_path / "w"))
    assert (fold / "predictions_test.csv").read_bytes() == before
    assert read_json(fold / "metrics.json") == scores
