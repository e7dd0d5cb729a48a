"""Embeddings z [n, S, E] of bags by S frozen ABMIL models, each computed once.

Every model goes through `step.forward`, on the same batches as the others.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steph_jax.engine.bag_model import (
    BagMeans,
    HeadOutputs,
    MergedModels,
    PooledBags,
    SharedEncoder,
)
from steph_jax.engine.loader import MAX_BATCH_BYTES, DeviceLoader
from steph_jax.engine.placement import fetch, replicate
from steph_jax.engine.step import evaluate
from steph_jax.models import task_vectors
from steph_jax.models.abmil import Architecture, Params


@dataclasses.dataclass(frozen=True)
class FrozenEncoder(SharedEncoder):
    """The encoder of an ABMIL as a `BagModel` without a head: its outputs are z [B, E].

    Its frozen tree holds feat_proj and attention_net; its trainable tree is empty.

    Attributes:
        architecture: dimensions and variant.
        compute_dtype: of products over patches; None for float32.
    """

    architecture: Architecture
    compute_dtype: Any = None

    def merge(self, trainable: Params, frozen: Params, bags: BagMeans) -> MergedModels:
        return MergedModels({}, {}, jnp.zeros(bags.num_bags, jnp.float32), {})

    def encoder(self, frozen: Params, merged: Params) -> Params:
        return frozen

    def head(self, trainable: Params, frozen: Params, bags: PooledBags) -> HeadOutputs:
        return HeadOutputs(bags.z, jnp.zeros(len(bags.z), jnp.float32), {})


class Representations:
    """Embeddings of the bags of a cohort by models that are not trained.

    They are stored under a digest of the model's parameters, so that the folds of a run share them.

    Args:
        loader: of the bags.
        compute_dtype: of products over patches; None for float32.
    """

    def __init__(self, loader: DeviceLoader, compute_dtype: Any = None) -> None:
        self._loader = loader
        self._compute_dtype = compute_dtype
        self._computed: dict[str, np.ndarray] = {}

    def __call__(self, architecture: Architecture, models: Sequence[Params]) -> np.ndarray:
        """z [n, S, E] of all bags of the cohort, in its order; zeros for bags without patches.

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
        """z [S, n, E] of all bags; only bags above `MAX_BATCH_BYTES` are read more than once."""
        loader, mesh = self._loader, self._loader.mesh
        model = FrozenEncoder(architecture, self._compute_dtype)
        encoders = replicate(mesh, list(encoders))
        filled = np.flatnonzero(loader.bags.num_patches).tolist()
        z = np.zeros((len(encoders), loader.num_bags, architecture.embed_dim), np.float32)
        for batch in loader.batches(loader.partition(filled, MAX_BATCH_BYTES), {}, MAX_BATCH_BYTES):
            index = np.asarray(batch.bags.index)
            outputs = [evaluate(model, mesh, {}, encoder, batch).logits for encoder in encoders]
            z[:, index[index >= 0]] = np.stack(fetch(outputs))[:, index >= 0]
        return z


def _digest(architecture: Architecture, encoder: Params) -> str:
    """Names an encoder by its parameters."""
    digest = hashlib.sha256(repr(architecture).encode())
    for leaf in jax.tree.leaves(encoder):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
