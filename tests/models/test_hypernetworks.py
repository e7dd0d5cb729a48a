"""Weights and mixing ratios of the hypernetworks against their formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steph_jax.models import hypernetworks
from steph_jax.models.hypernetworks import HIDDEN_DIM, Hypernetworks

S, D = 3, 6
OUTPUTS = {
    "relu": lambda x: np.maximum(x, 0),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


def linear(layer, x):
    return x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])


def mlp(layers, g):
    return linear(layers["output"], np.maximum(linear(layers["hidden"], g), 0))


@pytest.mark.parametrize("mixing", ["nn", "fnn", "param", "fix"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_weights_and_ratios(mixing, output):
    fixed = (0.0, 0.5, 1.0) if mixing == "fix" else ()
    params = hypernetworks.init(jax.random.key(0), D, S, output, mixing, fixed)
    if mixing == "param":
        np.testing.assert_array_equal(params["mixing_ratio"], np.zeros(S))
        params["mixing_ratio"] = jnp.array([-0.5, 0.0, 3.0])
    patches = np.random.default_rng(0).normal(size=(5, D)).astype(np.float32)
    module = Hypernetworks(S, output, mixing, fixed)
    embedded = module.apply({"params": params}, jnp.asarray(patches), method="embed")
    assert set(embedded) == ({"weights", "mixing"} if mixing == "fnn" else {"weights"})
    means = {name: jnp.mean(x, axis=0) for name, x in embedded.items()}
    w, ratios = module.apply({"params": params}, means)

    g = np.maximum(linear(params["embedding"], patches), 0).mean(0)
    np.testing.assert_allclose(w, OUTPUTS[output](mlp(params["weights"], g)), rtol=1e-4, atol=1e-6)
    if mixing == "fix":
        expected = fixed
    elif mixing == "param":
        expected = [2.0, 1.0, 0.25]
    else:
        if mixing == "fnn":
            g = np.maximum(linear(params["mixing_embedding"], patches), 0).mean(0)
        expected = 1 / (1 + np.maximum(mlp(params["mixing"], g), 0))
        assert (ratios > 0).all()
        assert (ratios <= 1).all()
    np.testing.assert_allclose(ratios, expected, rtol=1e-4)


def test_the_projection_alone_embeds():
    params = hypernetworks.init(jax.random.key(0), D, S, mixing="param")
    module = Hypernetworks(S, mixing="param")
    alone = {"params": {"embedding": params["embedding"]}}
    assert module.apply(alone, jnp.ones((2, D)), method="embed")["weights"].shape == (2, HIDDEN_DIM)


def test_parameters_start_as_those_of_torch():
    params = hypernetworks.init(jax.random.key(1), D, S)
    assert set(params) == {"embedding", "weights", "mixing"}
    for layer, fan_in in (
        (params["embedding"], D),
        (params["weights"]["hidden"], HIDDEN_DIM),
        (params["mixing"]["hidden"], HIDDEN_DIM),
    ):
        bound = fan_in**-0.5
        for x in layer.values():
            x = np.asarray(x)
            assert 0.9 * bound < np.abs(x).max() <= bound
            # Standard deviation of a uniform variable, within its sampling error.
            assert abs(x.std() - bound / 3**0.5) < 2 * bound / x.size**0.5


def test_dropout_is_in_the_hidden_layer_and_needs_a_key():
    params = hypernetworks.init(jax.random.key(0), D, S, "softplus")
    module = Hypernetworks(S, "softplus")
    means = {"weights": jnp.ones(HIDDEN_DIM)}

    def run(seed):
        return np.asarray(module.apply({"params": params}, means, jax.random.key(seed))[0])

    off = module.apply({"params": params}, means)[0]
    np.testing.assert_array_equal(run(1), run(1))
    assert not np.allclose(run(1), run(2))
    assert not np.allclose(run(1), off)
