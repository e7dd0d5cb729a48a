"""Slides as many frozen ABMIL models see them: embeddings z [n, S, E], computed once and kept.

All models run in one pass over the patches, in the same groups of pieces as training
(`data.batches`), so that slides of any length are read piece by piece.
"""

import functools
import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from steph_jax.data.batches import Group
from steph_jax.engine.loader import HELD_BYTES, Feed
from steph_jax.engine.step import AXIS
from steph_jax.models import task_vectors
from steph_jax.models.abmil import Abmil, Architecture, Params
from steph_jax.models.pooling import Summary, empty_summary, join, pooled, summarize


class Representations:
    """Embeddings of the bags of a store by models that are not trained.

    What a model made of the bags is kept, by the model's parameters, so that the folds of a run
    share what their sources say.

    Args:
        feed: of the bags.
        compute_dtype: of products over patches; None for float32.
    """

    def __init__(self, feed: Feed, compute_dtype: Any = None) -> None:
        self._feed = feed
        self._compute_dtype = compute_dtype
        self._kept: dict[str, np.ndarray] = {}

    def __call__(self, architecture: Architecture, models: Sequence[Params]) -> np.ndarray:
        """z [n, S, E] of all bags of the store, in its order; zeros for bags without patches.

        Args:
            architecture: of the models.
            models: S ABMIL trees; their pred_head, if any, is not used.
        """
        encoders = [task_vectors.parts_of(model, "mil_encoder") for model in models]
        names = [_digest(architecture, encoder) for encoder in encoders]
        missing = {n: e for n, e in zip(names, encoders, strict=True) if n not in self._kept}
        if missing:
            new = self._encode(architecture, task_vectors.stack(list(missing.values())))
            self._kept |= {name: new[:, i] for i, name in enumerate(missing)}
        return np.stack([self._kept[name] for name in names], axis=1)

    def _encode(self, architecture: Architecture, encoders: Params) -> np.ndarray:
        """z of all bags by encoders with leaves [S, ...], in one pass."""
        num_models = len(jax.tree.leaves(encoders)[0])
        feed, mesh = self._feed, self._feed.mesh
        split = NamedSharding(mesh, P(AXIS))
        attend, finish = _compiled(architecture, self._compute_dtype, mesh)
        filled = np.flatnonzero(feed.bags.num_patches).tolist()
        z = np.zeros((feed.num_bags, num_models, architecture.embed_dim), np.float32)
        for batch in feed.ahead(feed.chunks(filled), {}, HELD_BYTES):
            bags = jax.device_put(
                _empty(architecture, num_models, feed.num_slots * mesh.size), split
            )
            for group in batch.groups:
                bags = attend(encoders, bags, group)
            index = np.asarray(batch.slots.index)
            z[index[index >= 0]] = np.asarray(finish(bags))[index >= 0]
        return z


@functools.lru_cache(maxsize=8)
def _compiled(architecture: Architecture, compute_dtype: Any, mesh: Mesh) -> tuple[Any, Any]:
    """`_attend` on every device's share of a group, and what makes z of summaries [B, S, ...]."""
    attend = jax.jit(
        jax.shard_map(
            partial(_attend, Abmil(architecture, compute_dtype)),
            mesh=mesh,
            in_specs=(P(), P(AXIS), P(AXIS)),
            out_specs=P(AXIS),
            check_vma=False,
        ),
        donate_argnums=1,
    )
    return attend, jax.jit(jax.vmap(partial(pooled, architecture.pooling)))


def _empty(architecture: Architecture, num_models: int, num_bags: int) -> Summary:
    """Summaries [B, S, ...] of bags of which nothing was seen yet."""
    empty = empty_summary(
        architecture.pooling, num_bags * num_models, architecture.embed_dim, jnp.float32
    )
    return jax.tree.map(lambda x: x.reshape(num_bags, num_models, *x.shape[1:]), empty)


def _attend(model: Abmil, encoders: Params, bags: Summary, group: Group) -> Summary:
    """Joins what each encoder sees in the pieces of a group to the summaries [B, S, ...]."""
    pooling = model.architecture.pooling

    def piece(encoder: Params, features: jax.Array, length: jax.Array) -> Summary:
        mask = jnp.arange(features.shape[0], dtype=jnp.int32) < length
        h, scores = cast(
            tuple[jax.Array, jax.Array | None],
            model.apply({"params": encoder}, features, None, mask, method="instances"),
        )
        return summarize(pooling, h, scores, mask)

    def of_model(one: tuple[Params, Summary]) -> Summary:
        encoder, bags = one
        pieces = jax.vmap(partial(piece, encoder))(group.features, group.length)
        return join(pooling, bags, pieces, group.owner)

    # One model after the other, for the patches of a group times all models would fill the memory.
    by_model = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), bags)
    joined = jax.lax.map(of_model, (encoders, by_model))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), joined)


def _digest(architecture: Architecture, encoder: Params) -> str:
    """Names an encoder by its parameters."""
    digest = hashlib.sha256(repr(architecture).encode())
    for leaf in jax.tree.leaves(encoder):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
