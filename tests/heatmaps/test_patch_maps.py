"""Attention and contributions of patches against docs/method.md, written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import slow_twin

from steph_jax.heatmaps import patch_maps, patches
from steph_jax.methods.abmil import AbmilModel
from steph_jax.methods.base import LoadedModel
from steph_jax.methods.steph import StephModel
from steph_jax.models import abmil
from steph_jax.models.abmil import Architecture
from steph_jax.models.steph import Options
from steph_jax.survival.objectives import HAZARD, INCIDENCE, LOG_RISK, TIME

#: Patches of a chunk, fewer than a bag has.
CHUNK = 16


def chunks(bag):
    """The bag in chunks, as `patches.chunks_of` reads it from files; the last one has padding."""

    def read():
        for start in range(0, len(bag), CHUNK):
            part = bag[start : start + CHUNK]
            padded = np.full((CHUNK, bag.shape[1]), 1e9, np.float32)
            padded[: len(part)] = part
            yield padded, np.arange(CHUNK) < len(part)

    return read


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def linear(layer, x):
    return x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)


def risk_of(logits):
    """Equations 6 and 7."""
    return -np.cumprod(1 - sigmoid(logits)).sum()


def numeric_slope(logits, step=1e-5):
    """The derivative of the risk by every output, from differences."""
    return np.array(
        [
            (risk_of(logits + step * one) - risk_of(logits - step * one)) / (2 * step)
            for one in np.eye(len(logits))
        ]
    )


def by_hand(theta, bag, pooling="gated"):
    """(attention [N], risk of the patient, r_n [N]) of one ABMIL, in float64."""
    h = np.maximum(linear(theta["feat_proj"]["layers_0"], bag.astype(np.float64)), 0)
    if pooling == "mean":
        attention = np.full(len(bag), 1 / len(bag))
    else:
        net = theta["attention_net"]
        a = np.tanh(linear(net["attention_a"], h))
        if pooling == "gated":
            a = a * sigmoid(linear(net["attention_b"], h))
        scores = np.exp(linear(net["attention_c"], a)[:, 0])
        attention = scores / scores.sum()
    logits = linear(theta["pred_head"], attention @ h)
    alone = linear(theta["pred_head"], h)
    risk = risk_of(logits)
    return attention, risk, risk + (alone - logits) @ numeric_slope(logits)


def assert_same_maps(seen, theta, bag, pooling="gated"):
    attention, risk, patch_risk = by_hand(theta, bag, pooling)
    np.testing.assert_allclose(seen.attention, attention, rtol=1e-4)
    assert seen.risk == pytest.approx(risk, rel=1e-5)
    np.testing.assert_allclose(seen.patch_risk, patch_risk, rtol=1e-4)
    # Contributions add up to the risk less the reference, whatever that is.
    for reference in (0.0, -2.5):
        assert seen.contribution(reference).sum() == pytest.approx(seen.risk - reference, abs=1e-9)
    assert seen.attention.sum() == pytest.approx(1)


@pytest.mark.parametrize("pooling", ["gated", "plain", "mean"])
def test_one_model(pooling):
    architecture = Architecture(24, 16, 8, 4, pooling)
    theta = abmil.init(jax.random.key(3), architecture)
    bag = slow_twin.bags()[0][2]
    loaded = LoadedModel(AbmilModel(architecture), theta, {})
    (outputs,) = patches.patch_outputs([loaded], chunks(bag))
    assert_same_maps(patch_maps.patch_map(outputs, HAZARD), theta, bag, pooling)


@pytest.mark.parametrize(
    "options",
    [
        Options(top_k=2),
        Options(top_k=2, mixing="fnn", base="target", weight_output="softplus"),
        Options(top_k=0, merged="all", retrained="none", mixing="param"),
        Options(top_k=2, merged="pred_head", retrained="none"),
    ],
    ids=["paper", "fnn", "all", "head"],
)
def test_weights_of_the_merged_model_are_those_of_the_bag(options):
    """Two bags have two models; each is merged by hand from the weights that its bag gets."""
    trainable, stored, frozen = slow_twin.steph_trees(options)
    loaded = LoadedModel(
        StephModel(slow_twin.DIMS, slow_twin.NUM_SOURCES, options), trainable, frozen
    )
    thetas = []
    for bag in (slow_twin.bags()[0][2], slow_twin.bags()[0][3]):
        w, ratios = slow_twin.source_weights(trainable, options, bag)
        chosen = slow_twin.selected(options, w)
        theta = slow_twin.merged_model(stored, options, w, ratios, chosen)
        theta |= {name: trainable[name] for name in ("pred_head",) if name in trainable}
        (outputs,) = patches.patch_outputs([loaded], chunks(bag))
        assert_same_maps(patch_maps.patch_map(outputs, HAZARD), theta, bag)
        thetas.append(theta)
    leaves = zip(*map(jax.tree.leaves, thetas), strict=True)
    assert any(not np.allclose(one, other) for one, other in leaves)


def test_several_models_see_the_same_bag():
    bag = slow_twin.bags()[0][2]
    stored = slow_twin.models()
    loaded = [
        LoadedModel(AbmilModel(slow_twin.DIMS), stored[name], {}) for name in ("null", "target")
    ]
    both = patches.patch_outputs(loaded, chunks(bag))
    for name, outputs in zip(("null", "target"), both, strict=True):
        assert_same_maps(patch_maps.patch_map(outputs, HAZARD), stored[name], bag)


@pytest.mark.parametrize("output", [HAZARD, INCIDENCE, LOG_RISK, TIME], ids=lambda o: o.name)
def test_patch_risk_is_what_more_attention_would_do(output):
    """d risk / d a_n = alpha_n (r_n - risk): by automatic differentiation through the softmax."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=30).astype(np.float32)
    logits = rng.normal(size=(30, 5 if output.per_bin else 1)).astype(np.float32)

    def risk(scores):
        return output.risk((jax.nn.softmax(scores) @ jnp.asarray(logits))[None])[0]

    seen = patch_maps.patch_map(patches.PatchOutputs(scores, logits), output)
    slope = jax.grad(risk)(jnp.asarray(scores))
    np.testing.assert_allclose(
        seen.attention * (seen.patch_risk - seen.risk), slope, rtol=1e-4, atol=1e-7
    )
    assert seen.risk == pytest.approx(float(risk(jnp.asarray(scores))), rel=1e-5)


def test_of_a_linear_risk_a_patch_has_the_risk_it_would_have_alone():
    rng = np.random.default_rng(1)
    scores, logits = rng.normal(size=9), rng.normal(size=(9, 1))
    seen = patch_maps.patch_map(patches.PatchOutputs(scores, logits), LOG_RISK)
    np.testing.assert_allclose(seen.patch_risk, logits[:, 0], rtol=1e-6)


def test_percentiles_are_those_of_scipy():
    values = np.array([3.0, 1.0, 2.0, 2.0, 5.0, -1.0])
    expected = [scipy.stats.percentileofscore(values, value, kind="mean") for value in values]
    np.testing.assert_allclose(patch_maps.percentiles(values), expected)


def test_large_scores_overflow_nothing():
    np.testing.assert_allclose(patch_maps.softmax(np.array([1e4, 1e4, -1e4])), [0.5, 0.5, 0.0])
