"""The losses against the published program, against slow formulas and against cases by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steph_jax.models import steph
from steph_jax.survival import losses, objectives
from steph_jax.survival.objectives import LOSSES, Labels, Objective

CLIP = 1e-7

# Jitted, since a compilation for each operation of each test would take minutes.
nll, incidence_nll = (
    jax.jit(f, static_argnames="alpha") for f in (losses.nll, losses.incidence_nll)
)
earth_mover = jax.jit(losses.earth_mover, static_argnames="scale")
reconstruction = jax.jit(losses.reconstruction, static_argnames="alpha")
cox, ranking = jax.jit(losses.cox), jax.jit(losses.ranking)


@functools.partial(jax.jit, static_argnums=0)
def value_and_slope(objective, outputs, labels, mask=None):
    """The objective of a batch and its gradient in the outputs."""
    return jax.value_and_grad(objective)(outputs, labels, mask)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Every test that asks for it runs in float32, and in float64 with 64-bit types enabled."""
    with jax.enable_x64(request.param == "float64"):
        yield jnp.dtype(request.param)


@pytest.fixture(scope="session")
def record(parity):
    with np.load(parity / "losses.npz") as arrays:
        return dict(arrays)


def close(value, expected, tolerance):
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(np.asarray(value), expected, rtol=0, atol=tolerance * scale)


def patients(dtype, num=9, bins=5, seed=0):
    rng = np.random.default_rng(seed)
    return (
        jnp.asarray(rng.normal(size=(num, bins)), dtype),
        Labels(
            time_bin=jnp.asarray(rng.integers(0, bins, num), jnp.int32),
            time=jnp.asarray(rng.integers(1, 6, num), dtype),
            event=jnp.asarray(rng.random(num) < 0.6),
        ),
    )


# The published program


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_likelihoods_match_the_published_program(record, dtype, alpha):
    logits = jnp.asarray(record["logits"], dtype)
    y, e = jnp.asarray(record["bin"], jnp.int32), jnp.asarray(record["event"], jnp.int32)
    close(nll(logits, y, e, alpha=alpha).mean(), record[f"nll_{alpha}"], 1e-6)
    incidence = incidence_nll(logits, y, e, alpha=alpha).mean()
    close(incidence, record[f"incidence_nll_{alpha}"], 1e-5)


def test_other_losses_match_the_published_program(record, dtype):
    e = jnp.asarray(record["event"], bool)
    days, tied = jnp.asarray(record["days"], dtype), jnp.asarray(record["tied_time"], dtype)
    close(cox(jnp.asarray(record["log_risk"], dtype), days, e), record["cox"], 1e-5)
    predicted = jnp.asarray(record["predicted_time"], dtype)
    close(ranking(predicted, tied, e), record["rank"], 1e-5)
    recon = reconstruction(predicted, tied, e, alpha=0.3)
    close(recon.mean(), record["recon"], 1e-5)


def test_earth_mover_matches_the_published_program(record, dtype):
    y, e = jnp.asarray(record["bin"], jnp.int32), jnp.asarray(record["event"], bool)
    emd = earth_mover(jnp.asarray(record["logits"], dtype), y, e)
    close(emd.mean(), record["emd"], 1e-5)
    small = earth_mover(
        jnp.asarray(record["emd4_logits"], dtype),
        jnp.asarray(record["emd4_bin"], jnp.int32),
        jnp.asarray(record["emd4_event"], bool),
        scale=1.0,
    )
    close(small, record["emd4_scale1"], 1e-5)


# Slow formulas, written from section 3 of docs/method.md patient by patient


def slow_nll(logits, y, e, alpha):
    hazard = [1 / (1 + math.exp(-x)) for x in logits]
    survival = [math.prod(1 - h for h in hazard[: t + 1]) for t in range(len(hazard))]
    before = survival[y - 1] if y else 1.0
    uncensored = -e * (math.log(max(before, CLIP)) + math.log(max(hazard[y], CLIP)))
    censored = -(1 - e) * math.log(max(survival[y], CLIP))
    return (1 - alpha) * (uncensored + censored) + alpha * uncensored


def slow_incidence_nll(logits, y, e, alpha):
    p = [math.exp(x) / sum(map(math.exp, logits)) for x in logits]
    uncensored = -e * math.log(max(p[y], CLIP))
    censored = -(1 - e) * math.log(max(sum(p[y + 1 :]), CLIP))
    return (1 - alpha) * (uncensored + censored) + alpha * uncensored


def slow_cox(x, time, event):
    x = [min(value, 10.0) for value in x]
    terms = []
    for i in range(len(x)):
        at_risk = sum(math.exp(x[j]) for j in range(len(x)) if time[j] >= time[i])
        terms.append(-event[i] * (x[i] - math.log(at_risk)))
    return sum(terms) / len(x)


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def slow_earth_mover(logits, y, e, s):
    p = softmax(np.asarray(logits))
    g = np.zeros(len(p))
    g[y] = 1
    if not e:
        g[y:] = 1
    prediction = softmax(e * p + (1 - e) * ((1 - g) * p + s * g))
    gap = np.cumsum(prediction) - np.cumsum(softmax(s * (2 * g - 1)))
    return float((gap**2).sum())


def slow_ranking(p, time, event):
    pairs = [
        max(0.0, 1 + p[i] - p[j])
        for i in range(len(p))
        for j in range(len(p))
        if event[i] and time[i] < time[j]
    ]
    return sum(pairs) / len(pairs)


def slow_reconstruction(p, t, e, a):
    o, c = e * abs(p - t), (1 - e) * max(0.0, 1 - (p - t))
    return (1 - a) * (o + c) + a * o


@pytest.mark.parametrize(
    ("fast", "slow", "options"),
    [
        (nll, slow_nll, {"alpha": 0.3}),
        (incidence_nll, slow_incidence_nll, {"alpha": 0.3}),
        (earth_mover, slow_earth_mover, {"scale": 2.0}),
    ],
)
def test_losses_over_bins_equal_the_slow_formula(dtype, fast, slow, options):
    logits, labels = patients(dtype, num=40, bins=4)
    expected = [
        slow(x.tolist(), int(y), int(e), *options.values())
        for x, y, e in zip(
            np.asarray(logits, np.float64), *map(np.asarray, labels[::2]), strict=True
        )
    ]
    value = fast(logits, labels.time_bin, labels.event, **options)
    assert value.dtype == dtype
    np.testing.assert_allclose(value, expected, rtol=1e-5 if dtype == jnp.float32 else 1e-12)


def test_losses_over_pairs_equal_the_slow_formula(dtype):
    outputs, labels = patients(dtype, num=12, seed=3)
    output = outputs[:, 0] * 8  # some beyond the cap of the Cox loss
    x, t, e = (np.asarray(a, np.float64).tolist() for a in (output, labels.time, labels.event))
    assert max(x) > 10
    rtol = 1e-5 if dtype == jnp.float32 else 1e-12
    value = cox(output, labels.time, labels.event)
    np.testing.assert_allclose(value, slow_cox(x, t, e), rtol=rtol)
    value = ranking(output, labels.time, labels.event)
    np.testing.assert_allclose(value, slow_ranking(x, t, e), rtol=rtol)
    value = reconstruction(output, labels.time, labels.event, alpha=0.2)
    expected = [slow_reconstruction(*patient, 0.2) for patient in zip(x, t, e, strict=True)]
    np.testing.assert_allclose(value, expected, rtol=rtol)


# Cases by hand


def test_one_bin_hazard_of_a_half_is_log_two():
    logits, y = jnp.zeros((2, 3), jnp.float32), jnp.asarray([0, 0])
    value = nll(logits, y, jnp.asarray([1, 0]), alpha=0.0)
    np.testing.assert_allclose(value, [math.log(2), math.log(2)], rtol=1e-6)
    # alpha takes its share from the censored patient only
    value = nll(logits, y, jnp.asarray([1, 0]), alpha=0.25)
    np.testing.assert_allclose(value, [math.log(2), 0.75 * math.log(2)], rtol=1e-6)


def test_cox_of_equal_risks_counts_those_at_risk():
    time, event = jnp.asarray([1.0, 2.0, 3.0]), jnp.asarray([True, True, False])
    value = cox(jnp.zeros(3), time, event)
    np.testing.assert_allclose(value, (math.log(3) + math.log(2)) / 3, rtol=1e-6)


def test_pair_losses_without_pairs_are_zero():
    time, none = jnp.asarray([1.0, 2.0]), jnp.zeros(2, bool)
    assert cox(jnp.asarray([3.0, 4.0]), time, none) == 0
    assert ranking(jnp.asarray([3.0, 4.0]), time, none) == 0


def test_survival_and_risk_by_hand():
    curve = losses.survival_from_hazards(jnp.asarray([[0.5, 0.5], [0.0, 1.0]]))
    np.testing.assert_array_equal(curve, [[0.5, 0.25], [1.0, 0.0]])
    np.testing.assert_array_equal(
        losses.risk_from_survival(jnp.asarray([[0.5, 0.25], [1.0, 0.0]])), [-0.75, -1.0]
    )
    curve = losses.survival_from_incidence(jnp.asarray([[0.25, 0.5, 0.25]]))
    np.testing.assert_array_equal(curve, [[0.75, 0.25, 0.0]])


def test_regularizers_by_hand(dtype):
    w = jnp.asarray([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]], dtype)
    selected = jnp.asarray([[False, True, True], [True, True, False]])
    expected = [math.log(1 + math.e + math.e**2) ** 2 + 1.5, math.log(3) ** 2]
    np.testing.assert_allclose(steph.merge_regularizer(w, selected), expected, rtol=1e-6)
    without_selection = [math.log(1 + math.e + math.e**2) ** 2, math.log(3) ** 2]
    np.testing.assert_allclose(steph.merge_regularizer(w, None), without_selection, rtol=1e-6)
    ratios = jnp.asarray([[0.9, 0.5, 1.0], [0.2, 0.4, 1.0]], dtype)
    np.testing.assert_allclose(steph.mix_regularizer(ratios, selected), [0.625, 0.1], rtol=1e-6)


def test_regularizers_are_those_of_the_published_steph(parity, dtype):
    with np.load(parity / "steph_tcga_gbmlgg.npz") as arrays:
        w, ratios = jnp.asarray(arrays["w"], dtype), jnp.asarray(arrays["lambda"], dtype)
        top_k, merge, mix = int(arrays["top_k"]), arrays["merge"], arrays["mix"]
    rank = np.argsort(np.argsort(-np.asarray(w), axis=1, kind="stable"), axis=1)
    selected = jnp.asarray(rank < top_k)
    close(steph.merge_regularizer(w, selected).mean(), merge, 1e-5)
    close(steph.mix_regularizer(ratios, selected).mean(), mix, 1e-5)


# Numerics


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [0.0, 30.0, 1e4, 1e30])
def test_values_and_gradients_are_finite(dtype, name, size):
    _, labels = patients(dtype, num=8, bins=4)
    objective = Objective(((name, 1.0),))
    signs = jnp.asarray(np.random.default_rng(1).choice([-1.0, 1.0], (8, 4)), dtype)
    outputs = size * signs[:, : objective.output.num_outputs(4)]
    for y in (labels.time_bin, jnp.zeros_like(labels.time_bin), jnp.full_like(labels.time_bin, 3)):
        value, slope = value_and_slope(objective, outputs, labels._replace(time_bin=y))
        assert jnp.isfinite(value)
        assert jnp.isfinite(slope).all()


def test_logarithms_are_clipped_where_the_published_ones_are(dtype):
    logits = jnp.asarray([[100.0, -100.0], [100.0, -100.0]], dtype)
    value = nll(logits, jnp.asarray([1, 1]), jnp.asarray([1, 0]), alpha=0.0)
    # hazards 1 and 0: S_0 = 0 and hazard_1 = 0 are clipped, each on its own; S_1 = 0 is
    np.testing.assert_allclose(value, [-2 * math.log(CLIP), -math.log(CLIP)], rtol=1e-6)
    value = incidence_nll(logits, jnp.asarray([1, 1]), jnp.asarray([1, 0]), alpha=0.0)
    np.testing.assert_allclose(value, [-math.log(CLIP), -math.log(CLIP)], rtol=1e-6)


def test_gradients_agree_with_differences():
    with jax.enable_x64(True):
        outputs, labels = patients(jnp.float64, num=7, bins=4, seed=5)
        for name in LOSSES:
            objective = Objective(((name, 1.0),), alpha=0.3, scale=1.5)
            point = outputs[:, : objective.output.num_outputs(4)]
            slope = value_and_slope(objective, point, labels)[1]
            step = 1e-6 * jnp.asarray(np.random.default_rng(2).normal(size=point.shape))
            above, below = (
                value_and_slope(objective, moved, labels)[0]
                for moved in (point + step, point - step)
            )
            change = above - below
            np.testing.assert_allclose(change, 2 * jnp.sum(slope * step), rtol=1e-5, atol=1e-13)


# Slots of a batch without a patient


@pytest.mark.parametrize("garbage", [0.0, 1e30, math.nan])
@pytest.mark.parametrize("name", LOSSES)
def test_padding_has_no_effect(dtype, name, garbage):
    outputs, labels = patients(dtype)
    objective = Objective(((name, 1.0),), alpha=0.3)
    outputs = outputs[:, : objective.output.num_outputs(5)]
    padded = jnp.concatenate([jnp.full_like(outputs[:3], garbage), outputs])
    padded_labels = Labels(
        time_bin=jnp.concatenate([jnp.asarray([0, 4, 99], jnp.int32), labels.time_bin]),
        time=jnp.concatenate([jnp.asarray([0.0, 1e9, math.nan], dtype), labels.time]),
        event=jnp.concatenate([jnp.asarray([True, False, True]), labels.event]),
    )
    mask = jnp.asarray([False] * 3 + [True] * len(outputs))
    value, slope = value_and_slope(objective, outputs, labels)
    padded_value, padded_slope = value_and_slope(objective, padded, padded_labels, mask)
    np.testing.assert_allclose(padded_value, value, rtol=1e-6)
    np.testing.assert_allclose(padded_slope[3:], slope, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(padded_slope[:3], jnp.zeros_like(padded_slope[:3]))


@pytest.mark.parametrize("name", LOSSES)
def test_empty_batch_has_zero_loss(name):
    outputs, labels = patients(jnp.float32)
    objective = Objective(((name, 1.0),))
    outputs = outputs[:, : objective.output.num_outputs(5)]
    nobody = jnp.zeros(len(outputs), bool)
    value, slope = value_and_slope(objective, outputs, labels, nobody)
    assert value == 0
    assert not slope.any()


@pytest.mark.parametrize("name", ["nll", "incidence_nll", "emd", "recon"])
def test_loss_of_a_patient_is_independent_of_the_batch(name):
    outputs, labels = patients(jnp.float32)
    objective = Objective(((name, 1.0),))
    outputs = outputs[:, : objective.output.num_outputs(5)]
    alone = [
        value_and_slope(objective, outputs[i : i + 1], Labels(*(a[i : i + 1] for a in labels)))[0]
        for i in range(len(outputs))
    ]
    np.testing.assert_allclose(
        np.mean(alone), value_and_slope(objective, outputs, labels)[0], rtol=1e-6
    )


# Objectives


def test_every_risk_is_higher_for_a_shorter_life():
    """Logits or outputs that say "early death" give the higher risk under every loss."""
    early, late = [4.0, 0.0, -4.0], [-4.0, 0.0, 4.0]
    for name in ("nll", "incidence_nll", "emd"):
        risk = LOSSES[name].output.risk(jnp.asarray([early, late]))
        assert risk[0] > risk[1]
    assert jnp.diff(LOSSES["cox"].output.risk(jnp.asarray([[1.0], [2.0]])))[0] > 0
    for name in ("rank", "recon"):
        assert jnp.diff(LOSSES[name].output.risk(jnp.asarray([[1.0], [2.0]])))[0] < 0


@pytest.mark.parametrize("name", ["nll", "incidence_nll", "emd"])
def test_curves_fall_from_one_to_zero(name):
    output = LOSSES[name].output
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(20, 6)), jnp.float32)
    assert output.survival is not None
    curve = output.survival(logits)
    assert curve.shape == logits.shape
    assert ((curve >= 0) & (curve <= 1)).all()
    assert (jnp.diff(curve, axis=1) <= 0).all()
    np.testing.assert_allclose(output.risk(logits), -curve.sum(axis=1), rtol=1e-6)


def test_losses_without_a_survival_curve():
    assert [name for name in LOSSES if LOSSES[name].output.survival is None] == [
        "cox",
        "rank",
        "recon",
    ]
    assert {name: loss.output.num_outputs(32) for name, loss in LOSSES.items()} == {
        "nll": 32,
        "incidence_nll": 32,
        "cox": 1,
        "emd": 32,
        "rank": 1,
        "recon": 1,
    }


def test_a_weighted_sum_is_the_sum():
    outputs, labels = patients(jnp.float32)
    both = Objective((("incidence_nll", 0.25), ("emd", 2.0)), alpha=0.1, scale=3.0)
    values = both.values(outputs, labels)
    assert list(values) == ["incidence_nll", "emd"]
    likelihood = incidence_nll(outputs, labels.time_bin, labels.event, alpha=0.1).mean()
    distance = earth_mover(outputs, labels.time_bin, labels.event, scale=3.0).mean()
    np.testing.assert_allclose(both(outputs, labels), 0.25 * likelihood + 2 * distance, rtol=1e-6)
    assert both.output is objectives.INCIDENCE


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (
            (("nll", 1.0), ("emd", 1.0)),
            r"read the model's outputs the same way; found nll \(hazard\)",
        ),
        ((("cox", 1.0), ("rank", 1.0)), r"cox \(log_risk\), rank \(time\)"),
        ((("coxx", 1.0),), r"losses are nll, .*, recon; found 'coxx'"),
        ((), "found none"),
        ((("nll", 1.0), ("nll", 2.0)), "named once"),
        ((("nll", -1.0),), "at least 0"),
        ((("nll", math.nan),), "finite"),
    ],
)
def test_invalid_sums_of_losses_are_refused(terms, message):
    with pytest.raises(ValueError, match=message):
        Objective(terms)


def test_an_alpha_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"alpha is in \[0, 1\], not 1\.5"):
        Objective(alpha=1.5)


@pytest.mark.usefixtures("unchecked_shapes")
def test_columns_are_not_broadcast_against_rows():
    outputs, labels = patients(jnp.float32)
    with pytest.raises(ValueError, match=r"labels and mask \[B\]; found outputs \(9, 1\)"):
        cox(outputs[:, :1], labels.time, labels.event)
    with pytest.raises(ValueError, match=r"outputs \[B, T\].*\(9, 1\)"):
        nll(outputs, labels.time_bin, labels.event[:, None])
    with pytest.raises(ValueError, match=r"one output per patient, \[B, 1\]; found \(9, 5\)"):
        Objective((("cox", 1.0),))(outputs, labels)
