"""Slides as many frozen ABMIL models see them: embeddings z [n, S, E], computed once and kept.

Every model goes through `step.forward`, on the same batches as the others.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steph_jax.engine.loader import HELD_BYTES, Feed
from steph_jax.engine.method import BagMeans, HeadOutputs, MergedModels, PooledBags
from steph_jax.engine.step import evaluate, replicate
from steph_jax.models import task_vectors
from steph_jax.models.abmil import Architecture, Params


@dataclasses.dataclass(frozen=True)
class FrozenEncoder:
    """The encoder of an ABMIL as a `BagModel` without a head: its outputs are z [B, E].

    Its frozen tree holds feat_proj and attention_net; its trainable tree is empty.

    Attributes:
        architecture: dimensions and variant.
        compute_dtype: of products over patches; None for float32.
    """

    architecture: Architecture
    compute_dtype: Any = None

    @property
    def encoder_per_bag(self) -> bool:
        return False

    @property
    def embed_parts(self) -> tuple[str, ...]:
        return ()

    @property
    def embed_dims(self) -> dict[str, int]:
        return {}

    def embed(self, trainable: Params, features: jax.Array) -> dict[str, jax.Array]:
        return {}

    def merge(self, trainable: Params, frozen: Params, bags: BagMeans) -> MergedModels:
        return MergedModels({}, {}, jnp.zeros(bags.num_bags, jnp.float32), {})

    def encoder(self, frozen: Params, merged: Params) -> Params:
        return frozen

    def head(self, trainable: Params, frozen: Params, bags: PooledBags) -> HeadOutputs:
        return HeadOutputs(bags.z, jnp.zeros(len(bags.z), jnp.float32), {})


class Representations:
    """Embeddings of the bags of a store by models that are not trained.

    What a model made of the bags is kept, by the model's parameters, so that the folds of a run
    share it.

    Args:
        feed: of the bags.
        compute_dtype: of products over patches; None for float32.
    """

    def __init__(self, feed: Feed, compute_dtype: Any = None) -> None:
        self._feed = feed
        self._compute_dtype = compute_dtype
        self._computed: dict[str, np.ndarray] = {}

    def __call__(self, architecture: Architecture, models: Sequence[Params]) -> np.ndarray:
        """z [n, S, E] of all bags of the store, in its order; zeros for bags without patches.

        Args:
            architecture: of the models.
            models: S ABMIL trees; their pred_head, if any, is not used.
        """
        encoders = [task_vectors.parts_of(model, "mil_encoder") for model in models]
        names = [_digest(architecture, encoder) for encoder in encoders]
        missing = {n: e for n, e in zip(names, encoders, strict=True) if n not in self._computed}
        if missing:
            new = self._encode(architecture, list(missing.values()))
            self._computed |= {name: new[i] for i, name in enumerate(missing)}
        return np.stack([self._computed[name] for name in names], axis=1)

    def _encode(self, architecture: Architecture, encoders: Sequence[Params]) -> np.ndarray:
        """z [S, n, E] of all bags; patches are read once, but for bags longer than `HELD_BYTES`."""
        feed, mesh = self._feed, self._feed.mesh
        model = FrozenEncoder(architecture, self._compute_dtype)
        encoders = replicate(mesh, list(encoders))
        filled = np.flatnonzero(feed.bags.num_patches).tolist()
        z = np.zeros((len(encoders), feed.num_bags, architecture.embed_dim), np.float32)
        for batch in feed.ahead(feed.chunks(filled, HELD_BYTES), {}, HELD_BYTES):
            index = np.asarray(batch.slots.index)
            outputs = [evaluate(model, mesh, {}, encoder, batch).logits for encoder in encoders]
            z[:, index[index >= 0]] = np.stack(outputs)[:, index >= 0]
        return z


def _digest(architecture: Architecture, encoder: Params) -> str:
    """Names an encoder by its parameters."""
    digest = hashlib.sha256(repr(architecture).encode())
    for leaf in jax.tree.leaves(encoder):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
