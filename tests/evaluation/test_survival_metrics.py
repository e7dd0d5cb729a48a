"""Numbers of folds besides the C-index, on real patients and where they cannot be computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_bags
from sksurv.metrics import concordance_index_ipcw
from sksurv.util import Surv

from steph_jax.checkpoints import torch_names
from steph_jax.data.columns import Columns
from steph_jax.data.splits import read_split, split_path
from steph_jax.data.tables import read_table, table_path
from steph_jax.evaluation import survival_metrics
from steph_jax.evaluation.survival_metrics import FoldPredictions, Labels
from steph_jax.models.abmil import Abmil
from steph_jax.survival import censoring, metrics
from steph_jax.survival.calibration import Calibration

EDGES = np.arange(33) * 365.0
#: Of the base models, means over five folds at tau = 5 years, by an independent program:
#: Harrell's C, Uno's C, AUC at 1, 3 and 5 years. It takes G(t) where we take G(t-), and has an AUC
#: where four patients died.
REFERENCE = {
    "tcga_kirc": (0.6540, 0.6522, (0.686, 0.643, 0.672)),
    "tcga_gbmlgg": (0.7268, 0.7100, (0.804, 0.763, 0.773)),
}


def predictions_of(shared, cohort):
    """The test patients of five folds, by the base model of each."""
    root = shared / "tcga_rna"
    table = read_table(table_path(root, cohort), Columns())
    store = reference_bags.bags(shared, cohort, table.patients, np.float32)
    features = jnp.asarray(read_all(store, len(table.patients)))
    folds = []
    for number in range(5):
        split = read_split(split_path(root, cohort, number))
        state = reference_bags.abmil_state(shared / "parity", cohort, number)
        architecture, params = torch_names.abmil_from_torch(state)
        model = Abmil(architecture)
        mask = jnp.ones(features.shape[1], bool)

        def logits(bag, model=model, params=params, mask=mask):
            return model.apply({"params": params}, bag, mask)[0]

        hazards = jax.nn.sigmoid(jax.lax.map(jax.jit(logits), features))
        curves = np.cumprod(1.0 - np.asarray(hazards, np.float64), axis=1)
        risk = -curves.sum(axis=1)
        train, test = table.rows(split.train), table.rows(split.test)
        folds.append(
            FoldPredictions(
                Labels(table.time[train], table.event[train]),
                Labels(table.time[test], table.event[test]),
                risk[test],
                float(np.median(risk[train])),
                float(np.std(risk[train], ddof=1)),
                curves[test],
                EDGES,
            )
        )
    return Labels(table.time, table.event), folds


def read_all(store, number):
    out = np.empty((number, reference_bags.NUM_PATHWAYS, reference_bags.FEATURE_DIM), np.float32)
    for index in range(number):
        store.read(index, 0, out[index])
    return out


@pytest.mark.parametrize("cohort", REFERENCE)
def test_numbers_of_real_cohorts(shared, cohort):
    whole, folds = predictions_of(shared, cohort)
    c_index, uno, auc = REFERENCE[cohort]
    tau = survival_metrics.horizon(whole)
    assert tau == 1825.0
    actual = [survival_metrics.fold_metrics(fold, tau) for fold in folds]
    harrell = [metrics.concordance_index(*fold.test, fold.risk) for fold in folds]
    assert np.mean(harrell) == pytest.approx(c_index, abs=2e-4)
    assert np.mean([f["uno"] for f in actual]) == pytest.approx(uno, abs=4e-3)
    for year, expected in zip(("3", "5"), auc[1:], strict=True):
        assert np.mean([f["auc"][year] for f in actual]) == pytest.approx(expected, abs=2e-2)
    four_deaths = {"auc 1": "4 patients died by then, 5 are needed"}
    assert [f["missing"] for f in actual] == [
        four_deaths if cohort == "tcga_kirc" else {},
        *[{}] * 4,
    ]
    for fold, numbers in zip(folds, actual, strict=True):
        y_train, y = (Surv.from_arrays(part.event, part.time) for part in (fold.train, fold.test))
        reference = concordance_index_ipcw(y_train, y, fold.risk, tau=tau, tied_tol=1e-8)[0]
        assert numbers["uno"] == pytest.approx(reference, abs=3e-3)


def test_integrated_brier_scores_of_a_real_cohort(shared):
    """From half a year to five years: 0.1418, and 0.1433 of Kaplan-Meier, by the same program."""
    _, folds = predictions_of(shared, "tcga_kirc")
    grid = np.linspace(182.5, 1825.0, 100)
    model, null = [], []
    for fold in folds:
        curve = censoring.censoring_curve(*fold.train)
        km = np.tile(censoring.kaplan_meier_at(*fold.train, grid), (len(fold.risk), 1))
        for scores, survival in ((model, fold.survival_at(grid)), (null, km)):
            brier = censoring.brier_scores(curve, *fold.test, survival, grid)
            scores.append(censoring.integrated(brier, grid))
    assert np.mean(model) == pytest.approx(0.1418, abs=1e-4)
    assert np.mean(null) == pytest.approx(0.1433, abs=1e-4)
    actual = [survival_metrics.fold_metrics(fold, 1825.0) for fold in folds]
    assert np.mean([f["ipa"] for f in actual]) == pytest.approx(0.011, abs=0.02)


def test_calibration_of_a_real_cohort(shared):
    """Slope 0.52 [0.26, 0.79] at 3 years, mean S(5 y) 0.603 against 0.671, by the same program."""
    _, folds = predictions_of(shared, "tcga_kirc")
    actual = survival_metrics.pooled_calibration(folds, 3)
    assert isinstance(actual, Calibration)
    assert actual.slope.value == pytest.approx(0.52, abs=6e-3)
    np.testing.assert_allclose(actual.slope.interval, [0.26, 0.79], atol=6e-3)
    actual = survival_metrics.pooled_calibration(folds, 5)
    assert actual.in_the_large == pytest.approx(0.603 - 0.671, abs=5e-3)
    ratios = survival_metrics.hazard_ratios(folds)
    low, high = ratios["groups"]["ci95"]
    assert low < ratios["groups"]["value"] < high
    assert ratios["groups"]["value"] > 1.0


def fold_of(num_patients=60, seed=0, curves=True, follow_up=4000.0):
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=2 * num_patients)
    death = rng.exponential(1500 * np.exp(-risk))
    censored = rng.uniform(100, follow_up, 2 * num_patients)
    time, event = np.minimum(death, censored), death <= censored
    edges = np.arange(33) * 365.0
    survival = np.exp(-np.exp(risk)[:, None] * edges[1:] / 1500) if curves else None
    half = slice(None, num_patients), slice(num_patients, None)
    return FoldPredictions(
        Labels(time[half[0]], event[half[0]]),
        Labels(time[half[1]], event[half[1]]),
        risk[half[1]],
        float(np.median(risk[half[0]])),
        float(np.std(risk[half[0]], ddof=1)),
        None if survival is None else survival[half[1]],
        edges,
    )


def test_a_loss_without_curves_has_no_probabilities():
    actual = survival_metrics.fold_metrics(fold_of(curves=False), 1825.0)
    assert actual["uno"] is not None
    assert actual["ibs"] is None
    assert actual["missing"]["ibs"] == "this loss gives no survival curves"
    pooled = survival_metrics.pooled_calibration([fold_of(curves=False)], 1)
    assert pooled.reason == "this loss gives no survival curves"


def test_a_horizon_beyond_follow_up_is_missing():
    fold = fold_of(follow_up=900.0)
    tau = survival_metrics.horizon(fold.train)
    assert tau < 900.0
    actual = survival_metrics.fold_metrics(fold, tau)
    assert actual["auc"]["1"] is not None
    assert actual["auc"]["3"] is None
    assert actual["missing"]["auc 5"].startswith("beyond ")
    assert list(actual["brier"]) == ["1"]


def test_a_fold_without_events_has_numbers_or_reasons():
    fold = fold_of()
    nobody = fold.__class__(
        fold.train,
        Labels(fold.test.time, np.zeros(60, bool)),
        fold.risk,
        fold.cut,
        fold.risk_sd,
        fold.survival,
        fold.edges,
    )
    actual = survival_metrics.fold_metrics(nobody, 1825.0)
    assert actual["uno"] is None
    assert "no pair" in actual["missing"]["uno"]
    assert actual["ibs"]["model"] > 0
    ratios = survival_metrics.hazard_ratios([nobody])
    assert ratios["groups"] is None
    assert ratios["missing"]["groups"] == {0: "no event was seen"}


def test_equal_risks_have_no_hazard_ratio():
    fold = fold_of()
    same = fold.__class__(fold.train, fold.test, np.zeros(60), 0.0, 0.0, fold.survival, fold.edges)
    ratios = survival_metrics.hazard_ratios([same])
    assert ratios["per_sd"] is None
    assert ratios["missing"]["per_sd"] == {0: "the predictor is the same for all patients"}
