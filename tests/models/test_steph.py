"""The merged model of STEPH where it must equal a model that is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slow_twin

from steph_jax.models import steph, task_vectors
from steph_jax.models.steph import Options, SourceWeights


@pytest.fixture(scope="module")
def stored():
    return slow_twin.models()


def merged(stored, weights, ratios, selected, options):
    """theta(X) of one bag."""
    base = stored["null" if options.base == "null" else "target"]
    stack = steph.merge_stack(
        base, stored["target_task_vector"], stored["task_vectors"], options.merged
    )
    sources = SourceWeights(
        jnp.asarray([weights], jnp.float32),
        jnp.asarray([ratios], jnp.float32),
        jnp.asarray([selected], bool),
    )
    theta = task_vectors.weighted_sum(stack, steph.coefficients(sources, options))
    return jax.tree.map(lambda x: x[0], theta)


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), actual, expected)


@pytest.mark.parametrize("base", ["null", "target"])
@pytest.mark.parametrize("part", ["mil_encoder", "pred_head", "all"])
def test_weights_of_zero_give_the_base(stored, base, part):
    options = Options(base=base, merged=part)
    actual = merged(stored, [0] * 4, [0.5] * 4, [True] * 4, options)
    assert_same(actual, task_vectors.parts_of(stored[base], part))


def test_one_weight_of_one_without_mixing_gives_that_source(stored):
    actual = merged(stored, [0, 0, 1, 0], [0.0] * 4, [True] * 4, Options())
    source = jax.tree.map(lambda null, tau: null + tau[2], stored["null"], stored["task_vectors"])
    assert_same(actual, task_vectors.parts_of(source, "mil_encoder"))


def test_a_ratio_of_one_gives_the_target(stored):
    actual = merged(stored, [0, 1, 0, 0], [1.0] * 4, [True] * 4, Options())
    assert_same(actual, task_vectors.parts_of(stored["target"], "mil_encoder"))


def test_sources_that_are_not_selected_add_nothing(stored):
    actual = merged(stored, [5, 1, 7, 9], [0.0] * 4, [False, True, False, False], Options())
    alone = merged(stored, [0, 1, 0, 0], [0.0] * 4, [True] * 4, Options())
    assert_same(actual, alone)


def test_clamp_applies_to_the_sum():
    w = jnp.array([[0.5, 3.0, 2.0, 1.5]])
    options = Options(top_k=2, clamp=True)
    sources = steph.select(w, jnp.full(4, 0.25), options)
    np.testing.assert_array_equal(sources.weights, w)
    # All three above 1 are 1 in the sum; the order they had decides.
    np.testing.assert_array_equal(sources.selected, [[False, True, True, False]])
    np.testing.assert_allclose(
        steph.coefficients(sources, options), [[1, 0.5, 0, 0.75, 0.75, 0]], atol=1e-6
    )
    free = steph.coefficients(sources, Options(top_k=2))
    np.testing.assert_allclose(free, [[1, 1.25, 0, 2.25, 1.5, 0]], atol=1e-6)


def test_clamped_ratios_are_summed():
    # A learned ratio can leave [0, 1]: 1 / (1 + r) with r of either sign.
    sources = steph.select(jnp.ones((1, 3)), jnp.array([-0.5, 2.0, 0.25]), Options(top_k=0))
    clamped = steph.coefficients(sources, Options(top_k=0, mixing="param", clamp=True))
    np.testing.assert_allclose(clamped, [[1, 1.25, 1, 0, 0.75]], atol=1e-6)
    free = steph.coefficients(sources, Options(top_k=0, mixing="param"))
    np.testing.assert_allclose(free, [[1, 1.75, 1.5, -1, 0.75]], atol=1e-6)


def test_options_round_trip_through_their_json_form():
    options = Options(top_k=0, mixing="fix", fixed_mixing=(0.5, 0.25), merged="all")
    assert Options(**steph.as_dict(options)) == options


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight_output", "tanh"),
        ("mixing_output", "sigmoid"),
        ("mixing", "no"),
        ("base", "source"),
        ("merged", "some"),
        ("retrained", "all"),
        ("head_init", "old"),
    ],
)
def test_unknown_options_are_refused(name, value):
    with pytest.raises(ValueError, match=f"steph.{name} is one of .*, not '{value}'"):
        Options(**{name: value})


def test_options_that_do_not_fit_the_sources_are_refused():
    with pytest.raises(ValueError, match="not -1"):
        Options(top_k=-1)
    with pytest.raises(ValueError, match="top_k = 5 is larger than the number of sources, 4"):
        Options(top_k=5).check_sources(4)
    with pytest.raises(ValueError, match="no source model is left"):
        Options(top_k=0).check_sources(0)
    with pytest.raises(ValueError, match="one lambda per source: expected 4, found 2"):
        Options(top_k=2, mixing="fix", fixed_mixing=(0.5, 0.5)).check_sources(4)
