"""Tree arithmetic of task vectors against loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from steph_jax.models import task_vectors


def tree(seed, lead=()):
    rng = np.random.default_rng(seed)

    def make(*shape):
        return jnp.asarray(rng.normal(size=(*lead, *shape)), jnp.float32)

    return {
        "feat_proj": {"layers_0": {"kernel": make(5, 3), "bias": make(3)}},
        "attention_net": {"attention_c": {"kernel": make(3, 1), "bias": make(1)}},
        "pred_head": {"kernel": make(3, 2), "bias": make(2)},
    }


def test_task_vector_is_the_difference():
    tau = task_vectors.task_vector(tree(1), tree(0))
    expected = tree(1)["pred_head"]["kernel"] - tree(0)["pred_head"]["kernel"]
    np.testing.assert_array_equal(tau["pred_head"]["kernel"], expected)


@pytest.mark.parametrize("num_bags", [None, 3])
def test_weighted_sum_equals_a_loop(num_bags):
    trees = [tree(seed) for seed in range(4)]
    shape = (4,) if num_bags is None else (num_bags, 4)
    c = np.random.default_rng(9).normal(size=shape).astype(np.float32)
    actual = task_vectors.weighted_sum(task_vectors.stack(trees), jnp.asarray(c))
    for part, layer in (("attention_net", "attention_c"), ("feat_proj", "layers_0")):
        for name in ("kernel", "bias"):
            leaves = [np.asarray(t[part][layer][name]) for t in trees]
            rows = [sum(x * y for x, y in zip(r, leaves, strict=True)) for r in c.reshape(-1, 4)]
            expected = np.reshape(rows, (*shape[:-1], *leaves[0].shape))
            np.testing.assert_allclose(actual[part][layer][name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("weights", "top_k", "expected"),
    [
        ([0.1, 0.5, 0.3, 0.4], 2, [1, 3]),
        ([0.0, 0.0, 0.0, 0.0], 2, [0, 1]),
        ([0.2, 0.7, 0.2, 0.2], 3, [0, 1, 2]),
        ([0.1, 0.5, 0.3, 0.4], 0, [0, 1, 2, 3]),
        ([0.1, 0.5, 0.3, 0.4], 4, [0, 1, 2, 3]),
    ],
)
def test_top_k_selection_with_ties(weights, top_k, expected):
    batch = jnp.asarray([weights, weights], jnp.float32)
    for selected in task_vectors.select_top_k(batch, top_k):
        assert np.flatnonzero(selected).tolist() == expected


@pytest.mark.parametrize("top_k", [5, -1])
def test_top_k_beyond_the_sources_is_refused(top_k):
    with pytest.raises(ValueError, match=f"top_k = {top_k} sources cannot be kept of 4"):
        task_vectors.select_top_k(jnp.zeros(4), top_k)


def test_mixup_coefficients():
    w = jnp.array([[0.5, 2.0, 1.0]])
    ratios = jnp.array([[0.25, 0.5, 1.0]])
    selected = jnp.array([[True, True, False]])
    target_shares, c = task_vectors.mixup_coefficients(w, ratios, selected)
    np.testing.assert_allclose(target_shares, [[0.5 * 0.25, 2.0 * 0.5, 0.0]])
    np.testing.assert_allclose(c, [[0.5 * 0.75, 2.0 * 0.5, 0.0]])


def test_parts():
    names = {merged: set(task_vectors.parts_of(tree(0), merged)) for merged in task_vectors.PARTS}
    assert names["mil_encoder"] == {"feat_proj", "attention_net"}
    assert names["pred_head"] == {"pred_head"}
    assert names["all"] == names["mil_encoder"] | names["pred_head"]
    without_attention = {"feat_proj": {}, "pred_head": {}}
    assert set(task_vectors.parts_of(without_attention, "mil_encoder")) == {"feat_proj"}


def test_cosines_of_whole_vectors():
    trees = [tree(0), tree(1), task_vectors.task_vector(tree(0), tree(0))]
    actual = task_vectors.cosine_matrix(task_vectors.stack(trees))
    flat = [np.concatenate([np.ravel(x) for x in _leaves(t)]) for t in trees]
    cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    np.testing.assert_allclose(actual, [[1, cosine, 0], [cosine, 1, 0], [0, 0, 0]], atol=1e-6)
    assert task_vectors.count_parameters(tree(0)) == len(flat[0])


def _leaves(theta):
    for leaf in theta.values():
        yield from _leaves(leaf) if isinstance(leaf, dict) else [np.asarray(leaf)]
