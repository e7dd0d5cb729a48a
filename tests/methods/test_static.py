"""One ABMIL in the place of a model that merges for every patient."""

import jax
import numpy as np
import pytest
from merged_models import SMALL, roupkt_model, rule_model, steph_with, tree

from steph_jax import predict
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.features.open import open_features
from steph_jax.methods import static

PER_PATIENT = {
    "steph": lambda: steph_with(weight_output="softplus"),
    "onto the target, clamped": lambda: steph_with(
        weight_output="softplus", base="target", clamp=True, top_k=0
    ),
    "all merged, head too": lambda: steph_with(
        weight_output="sigmoid", merged="all", retrained="none"
    ),
    "head alone": lambda: steph_with(weight_output="sigmoid", merged="pred_head", retrained="none"),
    "dynamic": lambda: rule_model("dynamic"),
}


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Features of three patients whose coefficients differ."""
    folder = tmp_path_factory.mktemp("slides")
    rng = np.random.default_rng(1)
    for i, name in enumerate("abc"):
        features = (rng.standard_normal((5 + i, 12)) + 2 * i).astype(np.float32)
        np.save(folder / f"{name}.npy", features)
    return open_features(folder)


def predicted(model, source):
    return predict.predict(model, source, {name: (name,) for name in "abc"})


def model_of(case):
    model = PER_PATIENT[case]()
    if model.metadata.get("options", {}).get("retrained") == "none":
        del model.params["trainable"]["pred_head"]
    return model


@pytest.mark.parametrize("case", PER_PATIENT)
def test_the_coefficients_of_a_patient_give_the_full_model_of_that_patient(slides, case):
    model = model_of(case)
    full = predicted(model, slides)
    coefficients = static.patient_coefficients(model, full.aux)
    assert np.ptp(coefficients, axis=0).max() > 1e-4
    for i in range(3):
        one = predicted(static.static_model(model, coefficients[i], "a patient"), slides)
        np.testing.assert_allclose(one.outputs[i], full.outputs[i], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", PER_PATIENT)
def test_mean_coefficients_give_the_mean_of_the_patients_parameters(slides, case):
    model = model_of(case)
    coefficients = static.patient_coefficients(model, predicted(model, slides).aux)
    each = [static.static_model(model, row, "a patient").params for row in coefficients]
    mean = static.static_model(model, coefficients.mean(axis=0), "all of them")
    assert mean.metadata["static"]["origin"] == "all of them"
    expected = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *each)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), mean.params, expected
    )


@pytest.mark.parametrize("kind", ["learned", "fix"])
def test_models_with_the_same_coefficients_for_all_become_one_abmil(slides, kind):
    model = rule_model(kind)
    one = static.static_model(model, static.fixed_coefficients(model), "the same for all")
    assert one.kind == "abmil"
    assert one.metadata["dataset"] == "x"
    names, weights = zip(*one.metadata["static"]["coefficients"], strict=True)
    assert names == ("a", "b", "c")
    expected = [0.25, 0.5, 0.75] if kind == "fix" else [0.1, 0.2, 0.3]
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    np.testing.assert_allclose(
        predicted(one, slides).risk, predicted(model, slides).risk, rtol=1e-5
    )


def test_models_that_merge_nothing_are_refused():
    static.expect_static(SavedModel("abmil", SMALL, {}, tree(0)))
    with pytest.raises(ValueError, match=r"kind 'roupkt' does not merge parameters.*steph, dyn"):
        static.expect_static(roupkt_model())
