"""The engine: bags in chunks, in groups, on devices, against one bag at a time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slow_twin
from slow_twin import DIMS, EVENT, NUM_SOURCES, SIZES, TIME_BIN

from steph_jax.data.batches import make_batch
from steph_jax.data.chunks import GroupShapes
from steph_jax.engine.placement import device_mesh
from steph_jax.engine.step import evaluate, gradients
from steph_jax.methods.abmil import AbmilModel
from steph_jax.methods.steph import StephModel
from steph_jax.models import abmil
from steph_jax.models.steph import Options
from steph_jax.survival import losses

GROUP_SHAPES = GroupShapes(((2, 16), (3, 5)))
WEIGHTS = (0.03, 0.2)
ARCHITECTURES = {
    "gated": DIMS,
    "plain": dataclasses.replace(DIMS, pooling="plain"),
    "mean": dataclasses.replace(DIMS, pooling="mean"),
    "max": dataclasses.replace(DIMS, pooling="max"),
    "two_layers": dataclasses.replace(DIMS, num_layers=2),
}
OPTIONS = {
    "default": Options(top_k=2),
    "all": Options(top_k=0, weight_output="sigmoid", mixing="param"),
    "clamped": Options(top_k=3, weight_output="softplus", clamp=True, base="target"),
    "fnn": Options(top_k=2, mixing="fnn"),
    "soft_mixing": Options(top_k=2, mixing_output="softplus"),
    "fix": Options(top_k=2, mixing="fix", fixed_mixing=(0.1, 0.9, 0.5, 0.0)),
    "merge_all": Options(top_k=2, merged="all", retrained="none"),
    "merge_all_new_head": Options(top_k=2, merged="all"),
    "merge_head": Options(top_k=2, merged="pred_head", retrained="none"),
    "target_head": Options(top_k=2, retrained="none"),
}


def the_loss(logits, labels, mask):
    return losses.mean(losses.nll(logits, labels["time_bin"], labels["event"], mask=mask), mask)


def mesh_of(num_devices=1):
    return device_mesh(jax.devices()[:num_devices])


def trained(method, trainable, frozen, batch, key=None, num_devices=1):
    """Gradient and outputs."""
    return gradients(method, the_loss, mesh_of(num_devices), trainable, frozen, batch, key)


@functools.cache
def abmil_case(name):
    """Method, parameters and the twin's ((loss, logits), gradient)."""
    theta = abmil.init(jax.random.key(3), ARCHITECTURES[name])
    expected = slow_twin.base_model(theta, slow_twin.bags()[0], ARCHITECTURES[name])
    return AbmilModel(ARCHITECTURES[name]), theta, {}, expected


@functools.cache
def steph_case(name):
    options = OPTIONS[name]
    trainable, stored, frozen = slow_twin.steph_trees(options)
    expected = slow_twin.steph(trainable, stored, options, slow_twin.bags()[0], WEIGHTS)
    return StephModel(DIMS, NUM_SOURCES, options, *WEIGHTS), trainable, frozen, expected


def cases(*names):
    """Runs a test with the cases of some architectures and options, made as they are needed."""
    makers = [functools.partial(abmil_case if n in ARCHITECTURES else steph_case, n) for n in names]
    return pytest.mark.parametrize("case", makers, ids=names)


def a_batch(group_shapes=GROUP_SHAPES, chosen=range(4), num_devices=1, num_slots=4):
    store = slow_twin.bags()[1]
    labels = {"time_bin": TIME_BIN, "event": EVENT}
    return make_batch(store, group_shapes, list(chosen), labels, num_slots, num_devices)


def in_order(batch, values):
    """Rows of `values`, which are by slot, by the bag's place in the batch."""
    filled = np.flatnonzero(np.asarray(batch.bags.index) >= 0)
    order = filled[np.argsort(np.asarray(batch.bags.position)[filled])]
    return np.asarray(values)[order]


def assert_close(values, expected, tolerance=1e-5):
    """Leaf by leaf, relative to its largest entry, or to a hundredth of the largest of all."""
    assert jax.tree.structure(values) == jax.tree.structure(expected)
    largest = max(np.abs(np.asarray(x)).max() for x in jax.tree.leaves(expected))
    for (path, value), reference in zip(
        jax.tree_util.tree_leaves_with_path(values), jax.tree.leaves(expected), strict=True
    ):
        scale = max(np.abs(np.asarray(reference)).max(), 1e-2 * largest)
        error = np.abs(np.asarray(value) - np.asarray(reference)).max()
        assert error <= tolerance * scale, (jax.tree_util.keystr(path), error, scale)


def assert_equals_twin(case, group_shapes=GROUP_SHAPES, num_devices=1):
    method, trainable, frozen, ((loss, logits), gradient) = case
    batch = a_batch(group_shapes, num_devices=num_devices)
    computed, out = trained(method, trainable, frozen, batch, num_devices=num_devices)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(computed))
    assert_close(out.loss, loss)
    assert_close(in_order(batch, out.logits), logits)
    # attention_c's bias shifts all scores alike: its gradient is zero, and rounding on both sides.
    assert_close(_without_bias_c(computed), _without_bias_c(gradient))
    evaluated = evaluate(method, mesh_of(num_devices), trainable, frozen, batch)
    assert_close(in_order(batch, evaluated.logits), logits)


def _without_bias_c(tree):
    if "attention_net" not in tree:
        return tree
    attention = tree["attention_net"]
    assert np.abs(attention["attention_c"]["bias"]).max() < 1e-6
    rest = attention | {"attention_c": {"kernel": attention["attention_c"]["kernel"]}}
    return tree | {"attention_net": rest}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_abmil_equals_one_bag_at_a_time(name):
    assert_equals_twin(abmil_case(name))


@pytest.mark.parametrize("name", OPTIONS)
def test_steph_equals_one_bag_at_a_time(name):
    assert_equals_twin(steph_case(name))


@pytest.mark.parametrize(
    "shapes", [((4, 40),), ((1, 7),), ((1, 32), (2, 8), (3, 1))], ids=["whole", "cut", "three"]
)
def test_group_shapes_have_no_effect(shapes):
    assert_equals_twin(steph_case("default"), GroupShapes(shapes))
    assert_equals_twin(abmil_case("gated"), GroupShapes(shapes))


@cases("gated", "max", "default", "merge_head")
def test_two_devices_equal_one(case):
    assert len(jax.devices()) >= 2
    assert_equals_twin(case(), num_devices=2)


def test_dropout_is_the_same_on_two_devices_and_in_other_groups():
    method, trainable, frozen, _ = steph_case("default")
    key = jax.random.key(8)
    gradient, out = trained(method, trainable, frozen, a_batch(), key)
    same_chunks = GroupShapes(((1, 16), (4, 5)))
    for num_devices, group_shapes in ((1, same_chunks), (2, GROUP_SHAPES)):
        batch = a_batch(group_shapes, num_devices=num_devices)
        gradient_again, again = trained(method, trainable, frozen, batch, key, num_devices)
        assert_close(again.loss, out.loss)
        assert_close(in_order(batch, again.logits), np.asarray(out.logits))
        assert_close(gradient_again, gradient)


def test_dropout_follows_the_key():
    method, theta, frozen, ((_, plain), _) = abmil_case("gated")

    def run(key):
        gradient, out = trained(method, theta, frozen, a_batch(), key)
        return np.asarray(out.logits), gradient

    logits, gradient = run(jax.random.key(1))
    again, gradient_again = run(jax.random.key(1))
    np.testing.assert_array_equal(logits, again)
    jax.tree.map(np.testing.assert_array_equal, gradient, gradient_again)
    other, _ = run(jax.random.key(2))
    assert not np.allclose(logits, other)
    # A single patch is the whole softmax, whatever its score: dropout cannot show.
    single = SIZES.index(1)
    shown = [i for i in range(4) if i != single]
    assert not np.isclose(logits[shown], np.asarray(plain)[shown]).all(axis=1).any()
    np.testing.assert_allclose(logits[single], plain[single], rtol=1e-5)


@pytest.mark.parametrize("num_devices", [1, 2])
def test_a_bag_does_not_depend_on_its_batch(num_devices):
    method, trainable, frozen, ((_, logits), _) = steph_case("default")
    for chosen in ([2], [3, 0], [1, 3, 2]):
        batch = a_batch(chosen=chosen, num_devices=num_devices)
        out = evaluate(method, mesh_of(num_devices), trainable, frozen, batch)
        assert_close(in_order(batch, out.logits), np.asarray(logits)[chosen])
        assert np.isfinite(np.asarray(out.logits)).all()


def test_empty_slots_have_no_effect():
    method, theta, frozen, _ = abmil_case("gated")
    expected, out = trained(method, theta, frozen, a_batch(chosen=[2, 0], num_slots=2))
    wide, wide_out = trained(method, theta, frozen, a_batch(chosen=[2, 0]))
    assert_close(wide_out.loss, out.loss)
    assert_close(_without_bias_c(wide), _without_bias_c(expected))


@cases("gated", "max", "two_layers", "default")
def test_padding_has_no_effect(case):
    method, trainable, frozen, _ = case()
    (bag, *_), _ = slow_twin.bags()
    results = []
    for value in (0.0, 3e38):
        behind = np.full((40, DIMS.feature_dim), value, np.float32)
        behind[:, ::2] *= -1
        store = slow_twin.InMemoryBags.of([bag, behind], DIMS.feature_dim, behind.dtype)
        labels = {"time_bin": TIME_BIN[:2], "event": EVENT[:2]}
        batch = make_batch(store, GroupShapes(((1, 40),)), [0], labels, 4)
        assert np.abs(batch.groups[0].features[0, len(bag) :]).max() == np.float32(value)
        evaluated = evaluate(method, mesh_of(), trainable, frozen, batch).logits
        results.append((*trained(method, trainable, frozen, batch), evaluated))
    jax.tree.map(np.testing.assert_array_equal, results[1], results[0])


def test_order_of_patches_has_no_effect():
    method, trainable, frozen, ((_, logits), _) = steph_case("default")
    made, _ = slow_twin.bags()
    rng = np.random.default_rng(0)
    shuffled = slow_twin.InMemoryBags.of(
        [rng.permutation(bag) for bag in made], DIMS.feature_dim, np.dtype(np.float32)
    )
    batch = make_batch(shuffled, GROUP_SHAPES, range(4), {}, 4, 1)
    out = evaluate(method, mesh_of(), trainable, frozen, batch)
    assert_close(np.asarray(out.logits), logits)


@cases("gated", "default")
def test_products_in_bfloat16_are_accumulated_in_float32(case):
    method, trainable, frozen, ((loss, logits), gradient) = case()
    rounded = dataclasses.replace(method, compute_dtype=jnp.bfloat16)
    rounded_gradient, out = trained(rounded, trainable, frozen, a_batch())
    assert {x.dtype for x in jax.tree.leaves((rounded_gradient, out))} <= {
        np.dtype(np.float32),
        np.dtype(bool),
    }
    assert_close(out.loss, loss, 3e-2)
    assert_close(out.logits, logits, 3e-2)
    bfloat16, float32 = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
        for tree in (rounded_gradient, gradient)
    )
    assert np.linalg.norm(bfloat16 - float32) < 0.1 * np.linalg.norm(float32)
    # The operands were rounded: this is another number than float32's.
    assert not np.allclose(out.logits, logits, rtol=1e-6, atol=0)
