"""Embeddings by frozen encoders: what they are, and how often patches are read for them."""

import jax
import numpy as np
import pytest

from steph_jax.data.bags import InMemoryBags
from steph_jax.data.chunks import GroupShapes
from steph_jax.engine import frozen_encoders
from steph_jax.engine.frozen_encoders import Representations
from steph_jax.engine.loader import DeviceLoader
from steph_jax.engine.placement import device_mesh
from steph_jax.models import abmil
from steph_jax.models.abmil import Architecture

ARCHITECTURE = Architecture(feature_dim=6, embed_dim=5, attention_dim=4, num_bins=3)
NUM_PATCHES = (9, 1, 0, 40, 23)
GROUP_SHAPES = GroupShapes(((2, 16), (3, 5)))


class CountedBags(InMemoryBags):
    """Bags that count the patches that are read."""

    patches_read = 0

    def read(self, index, start, out):
        self.patches_read += len(out)
        super().read(index, start, out)


def bags():
    rng = np.random.default_rng(0)
    made = [rng.normal(size=(n, 6)).astype(np.float32) for n in NUM_PATCHES]
    return made, CountedBags.of(made, 6, np.dtype(np.float32))


def models(*seeds):
    return [abmil.init(jax.random.key(seed), ARCHITECTURE) for seed in seeds]


def pooled(theta, x):
    """z of one bag by the equations of ABMIL, in float64."""
    layers = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), theta)
    net = layers["attention_net"]

    def linear(layer, x):
        return x @ layer["kernel"] + layer["bias"]

    h = np.maximum(linear(layers["feat_proj"]["layers_0"], x), 0)
    gate = 1 / (1 + np.exp(-linear(net["attention_b"], h)))
    a = linear(net["attention_c"], np.tanh(linear(net["attention_a"], h)) * gate)[:, 0]
    weights = np.exp(a) / np.exp(a).sum()
    return weights @ h


@pytest.mark.parametrize("num_devices", [1, 2])
def test_embeddings_are_those_of_every_encoder(num_devices):
    arrays, store = bags()
    loader = DeviceLoader(store, GROUP_SHAPES, device_mesh(jax.devices()[:num_devices]), 2)
    encoders = models(1, 2, 3)
    z = Representations(loader)(ARCHITECTURE, encoders)
    assert z.shape == (5, 3, 5)
    for bag, x in enumerate(arrays):
        for s, theta in enumerate(encoders):
            expected = pooled(theta, x) if len(x) else np.zeros(5)
            np.testing.assert_allclose(z[bag, s], expected, rtol=1e-5, atol=1e-6)


def test_patches_are_read_once_for_all_new_encoders():
    _, store = bags()
    loader = DeviceLoader(store, GROUP_SHAPES, device_mesh(jax.devices()[:1]), 2)
    represent = Representations(loader)
    first, second, third = models(1, 2, 3)
    z = represent(ARCHITECTURE, [first, second])
    assert store.patches_read == sum(NUM_PATCHES)
    np.testing.assert_array_equal(represent(ARCHITECTURE, [second, first]), z[:, ::-1])
    assert store.patches_read == sum(NUM_PATCHES)
    np.testing.assert_array_equal(represent(ARCHITECTURE, [first, third])[:, 0], z[:, 0])
    assert store.patches_read == 2 * sum(NUM_PATCHES)


def test_bags_larger_than_device_memory_allows_are_encoded_too(monkeypatch):
    _, store = bags()
    loader = DeviceLoader(store, GROUP_SHAPES, device_mesh(jax.devices()[:1]), 4)
    encoders = models(1, 2)
    expected = Representations(loader)(ARCHITECTURE, encoders)
    monkeypatch.setattr(frozen_encoders, "MAX_BATCH_BYTES", 20 * 6 * 4)
    np.testing.assert_allclose(
        Representations(loader)(ARCHITECTURE, encoders), expected, rtol=1e-5, atol=1e-6
    )
