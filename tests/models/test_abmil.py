"""ABMIL against its equations in NumPy, and what must not matter to it."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steph_jax.models import abmil
from steph_jax.models.abmil import Abmil, Architecture
from steph_jax.models.layers import TRANSPOSED_ROWS, dropout, matmul, random_words
from steph_jax.models.pooling import POOLINGS, add_chunks, chunk_state, empty_state, finalize

DIMS = Architecture(feature_dim=12, embed_dim=8, attention_dim=5, num_bins=4)
VARIANTS = {
    "gated": DIMS,
    "plain": dataclasses.replace(DIMS, pooling="plain"),
    "mean": dataclasses.replace(DIMS, pooling="mean"),
    "max": dataclasses.replace(DIMS, pooling="max"),
    "three_layers": dataclasses.replace(DIMS, num_layers=3),
}


@pytest.fixture(params=VARIANTS)
def architecture(request):
    return VARIANTS[request.param]


def features(num_patches=7, seed=0):
    return np.random.default_rng(seed).normal(size=(num_patches, 12)).astype(np.float32)


def linear(layer, x):
    return x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])


def written_out(architecture, theta, x):
    """(logits, attention) of a bag, by the equations."""
    h = x
    for i in range(architecture.num_layers):
        h = np.maximum(linear(theta["feat_proj"][f"layers_{i}"], h), 0)
    scores = np.zeros(len(x))
    if architecture.has_attention:
        net = theta["attention_net"]
        a = np.tanh(linear(net["attention_a"], h))
        if architecture.pooling == "gated":
            a = a / (1 + np.exp(-linear(net["attention_b"], h)))
        scores = linear(net["attention_c"], a)[:, 0]
    attention = np.exp(scores) / np.exp(scores).sum()
    z = h.max(0) if architecture.pooling == "max" else attention @ h
    return linear(theta["pred_head"], z), attention


def run(architecture, theta, x, mask=None):
    mask = jnp.ones(len(x), bool) if mask is None else jnp.asarray(mask)
    return Abmil(architecture).apply({"params": theta}, jnp.asarray(x), mask)


def test_equations(architecture):
    theta = abmil.init(jax.random.key(1), architecture)
    logits, attention = run(architecture, theta, features())
    expected_logits, expected_attention = written_out(architecture, theta, features())
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(attention, expected_attention, rtol=1e-4)


def test_padding_changes_nothing(architecture):
    theta = abmil.init(jax.random.key(1), architecture)
    mask = np.arange(11) < 7
    padded = np.where(mask[:, None], features(11), 1e4).astype(np.float32)

    def loss(theta, x, mask):
        return jnp.sum(run(architecture, theta, x, mask)[0] ** 2)

    logits, attention = run(architecture, theta, padded, mask)
    expected, expected_attention = run(architecture, theta, padded[:7])
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(attention[:7], expected_attention, rtol=1e-5)
    np.testing.assert_array_equal(attention[7:], 0)
    gradient = jax.grad(loss)(theta, padded, mask)
    without = jax.grad(loss)(theta, padded[:7], mask[:7])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), gradient, without)


def test_the_order_of_patches_changes_nothing(architecture):
    theta = abmil.init(jax.random.key(1), architecture)
    order = np.array([3, 0, 6, 2, 5, 1, 4])
    logits, attention = run(architecture, theta, features())
    shuffled, shuffled_attention = run(architecture, theta, features()[order])
    np.testing.assert_allclose(shuffled, logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(shuffled_attention, np.asarray(attention)[order], rtol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_online_softmax_equals_softmax(pooling):
    rng = np.random.default_rng(2)
    h = rng.normal(size=(9, 4)).astype(np.float32)
    scores = np.array([900, -900, 0, 890, 899, 3, 901, -5, 880], np.float32)
    scores = jnp.asarray(scores) if pooling in ("gated", "plain") else None
    mask = jnp.arange(9) < 8
    whole = chunk_state(pooling, jnp.asarray(h), scores, mask)
    expected = finalize(pooling, whole)
    bags = empty_state(pooling, (2,), 4, jnp.float32)
    for chunk in (slice(6, 9), slice(0, 3), slice(8, 9), slice(3, 6)):
        part = None if scores is None else scores[chunk]
        state = chunk_state(pooling, jnp.asarray(h[chunk]), part, mask[chunk])
        one = jax.tree.map(lambda x: x[None], state)
        bags = add_chunks(pooling, bags, one, jnp.array([1]))
    z = finalize(pooling, bags)
    np.testing.assert_allclose(z[1], expected, rtol=1e-5)
    np.testing.assert_array_equal(z[0], 0)  # a slot without patches


def test_published_size():
    shapes = jax.eval_shape(lambda: abmil.init(jax.random.key(0), Architecture()))
    leaves = jax.tree.leaves(shapes)
    assert len(leaves) == 10
    assert sum(math.prod(x.shape) for x in leaves) == 1_197_729


def test_parameters_start_as_those_of_torch():
    theta = abmil.init(jax.random.key(0), Architecture(100, 64, 48, 16))
    fan_in = {"layers_0": 100, "attention_a": 64, "attention_b": 64, "attention_c": 48}
    layers = theta["feat_proj"] | theta["attention_net"]
    for name, bound in {name: n**-0.5 for name, n in fan_in.items()}.items():
        for x in map(np.asarray, layers[name].values()):
            assert 0 < np.abs(x).max() <= bound
            assert abs(x.mean()) < 4 * bound / (3 * x.size) ** 0.5
            if x.size > 40:
                assert np.abs(x).max() > 0.9 * bound
                assert abs(x.std() - bound / 3**0.5) < 2 * bound / x.size**0.5


@pytest.mark.parametrize("rate", [0.25, 0.3])
def test_dropout_zeroes_at_its_rate_and_scales_the_rest(rate):
    x = jnp.full((400, 100), 3.0)
    dropped = np.asarray(dropout(x, jax.random.key(0), rate))
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], 3.0 / (1 - rate), rtol=1e-6)
    assert abs(kept.mean() - (1 - rate)) < 4 * (rate * (1 - rate) / x.size) ** 0.5
    again = dropout(x, jax.random.key(0), rate)
    np.testing.assert_array_equal(again, dropped)
    assert (dropout(x, jax.random.key(1), rate) != dropped).any()


def test_dropout_bits_are_uniform():
    words = np.stack([random_words(jax.random.key(i), (256, 384)) for i in range(4)])
    bits = np.unpackbits(words.view(np.uint8)[..., None], axis=-1).reshape(*words.shape, 32)
    for axis, name in enumerate(("key", "row", "column", "bit")):
        others = tuple({0, 1, 2, 3} - {axis})
        share = bits.mean(axis=others)
        assert abs(share - 0.5).max() < 5 * 0.5 * (share.size / bits.size) ** 0.5, f"each {name}"
    keep = (words >= 2**30).astype(float) - 0.75
    for one, other in (
        (keep[0], keep[1]),
        (keep[:, 1:], keep[:, :-1]),
        (keep[:, :, 1:], keep[:, :, :-1]),
        (keep[:, :, 4:], keep[:, :, :-4]),
    ):
        assert abs((one * other).mean()) < 5 * 0.1875 / one.size**0.5, "neighbours"
    assert len(np.unique(words)) > 0.999 * words.size


def test_no_dropout_without_key_or_rate():
    x = jnp.ones((3, 4))
    assert dropout(x, None, 0.25) is x
    assert dropout(x, jax.random.key(0), 0.0) is x


def test_dropout_falls_on_both_branches_of_attention_apart():
    architecture = dataclasses.replace(DIMS, attention_dim=1)
    theta = abmil.init(jax.random.key(0), architecture)
    net = {name: jax.tree.map(jnp.zeros_like, x) for name, x in theta["attention_net"].items()}
    net["attention_a"]["bias"] = jnp.ones(1)
    net["attention_c"]["kernel"] = jnp.ones((1, 1))
    theta = theta | {"attention_net": net}
    x = jnp.asarray(features(4000))

    def patches(key):
        mask = jnp.ones(len(x), bool)
        return Abmil(architecture).apply({"params": theta}, x, mask, key, method="patches")

    h, scores = patches(jax.random.key(5))
    without, constant = patches(None)
    np.testing.assert_array_equal(h, without)  # one layer of projection has no dropout
    scores, both = np.asarray(scores), 0.75**2
    np.testing.assert_allclose(scores[scores != 0], np.asarray(constant)[0] / both, rtol=1e-5)
    assert abs((scores != 0).mean() - both) < 4 * (both * (1 - both) / 4000) ** 0.5


def test_dropout_follows_every_layer_of_the_projection_but_the_last():
    architecture = dataclasses.replace(DIMS, num_layers=2, pooling="mean")
    theta = abmil.init(jax.random.key(0), architecture)
    ones = jax.tree.map(jnp.ones_like, theta["feat_proj"])
    x = jnp.ones((500, 12))
    h, _ = Abmil(architecture).apply(
        {"params": theta | {"feat_proj": ones}},
        x,
        jnp.ones(len(x), bool),
        jax.random.key(5),
        method="patches",
    )
    # 13 from each of the 8 units that are kept, scaled; nothing is lost after the sum.
    kept = (np.asarray(h)[:, 0] - 1) * 0.75 / 13
    np.testing.assert_allclose(kept, np.round(kept), atol=1e-4)
    assert len(np.unique(np.round(kept))) > 3
    np.testing.assert_allclose(h, np.broadcast_to(np.asarray(h)[:, :1], h.shape), rtol=1e-6)


def test_every_bag_has_the_mask_of_its_own_key():
    keys = jax.random.split(jax.random.key(3), 4)
    x = jnp.ones((4, 30, 20))
    together = dropout(x, keys, 0.25, site=1)
    for key, row, actual in zip(keys, x, together, strict=True):
        np.testing.assert_array_equal(actual, dropout(row, key, 0.25, site=1))
    assert len({np.asarray(row).tobytes() for row in together}) == 4
    assert not np.array_equal(together, dropout(x, keys, 0.25, site=0))


@pytest.mark.parametrize("kernels", ["shared", "one per bag"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("patches", [7, TRANSPOSED_ROWS])
@pytest.mark.parametrize(("d", "e"), [(12, 5), (5, 12), (12, 1)])
def test_gradients_of_products(kernels, dtype, patches, d, e):
    bags = 3
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((bags, patches, d)), rng.standard_normal((bags, patches, e))
    kernel = rng.standard_normal((d, e) if kernels == "shared" else (bags, d, e))
    x, y, kernel = (jnp.asarray(a, jnp.float32) for a in (x, y, kernel))

    def loss(x, kernel):
        product = partial(matmul, compute_dtype=dtype)
        actual = product(x, kernel) if kernels == "shared" else jax.vmap(product)(x, kernel)
        return jnp.sum(actual * y)

    actual = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, kernel)
    # By hand, in float64, from the operands as they are rounded.
    x, y, kernel = (np.asarray(a.astype(dtype), np.float64) for a in (x, y, kernel))
    if kernels == "shared":
        expected = np.einsum("bne,de->bnd", y, kernel), np.einsum("bnd,bne->de", x, y)
    else:
        expected = np.einsum("bne,bde->bnd", y, kernel), np.einsum("bnd,bne->bde", x, y)
    for mine, other in zip(actual, expected, strict=True):
        assert mine.dtype == jnp.float32
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6 * np.sqrt(bags * patches))


def test_products_of_bfloat16_come_back_in_float32():
    x, kernel = features(), features(12, seed=1)
    actual = matmul(jnp.asarray(x), jnp.asarray(kernel), jnp.bfloat16)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, x @ kernel, atol=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooling": "sum"}, "pooling is one of gated, plain, mean, max, not 'sum'"),
        ({"attention_dim": 0}, "attention_dim is at least 1"),
        ({"dropout": 1.0}, r"a rate in \[0, 1\), not 1.0"),
        ({"num_layers": 0}, "num_layers is at least 1, not 0"),
        ({"embed_dim": 0}, "embed_dim is at least 1, not 0"),
    ],
)
def test_impossible_architectures_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DIMS, **change)
