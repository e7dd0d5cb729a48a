"""What models compute of every patch of one patient's bag, read chunk by chunk.

Pooling by attention is a weighted mean and the head is affine, so that the outputs of a patient are
the attention-weighted mean of the outputs that each patch would have by itself (equation 53 of
docs/method.md). Both are computed here; `patch_maps` makes attention and contributions of them.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.bags import OnDiskBags
from steph_jax.engine.bag_model import BagMeans, BagModel, PooledBags
from steph_jax.methods.abmil import AbmilModel
from steph_jax.methods.base import LoadedModel
from steph_jax.methods.registry import find_method
from steph_jax.models.abmil import Abmil, Params

#: Patches that are computed at once.
CHUNK = 1024

#: () -> (features [CHUNK, D], mask [CHUNK]) of the chunks of a bag, from its first patch.
Chunks = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]


class PatchOutputs(NamedTuple):
    """What a model computes of the N patches of a bag.

    Attributes:
        scores: [N] attention scores a_n before the softmax; zeros for mean pooling, which gives
            every patch the same weight.
        logits: [N, T] outputs l_n = W_p h_n + b_p of every patch by itself.
    """

    scores: np.ndarray
    logits: np.ndarray


def merged_model(model: SavedModel) -> LoadedModel:
    """A stored model in memory.

    Raises:
        ValueError: its outputs do not follow from one attention over patches.
    """
    method = find_method(model.kind)
    if method.inputs is not None:
        raise ValueError(
            f"a model of kind {model.kind} mixes what several frozen models make of a patient, and "
            "has no attention of its own; heatmaps are of models that merge parameters, and of "
            "single ones"
        )
    if method.codings(model):
        raise ValueError(
            f"a model of kind {model.kind} reads clinical columns and no slides, so it has no "
            "heatmap; use a model with attention (model.pooling=gated)"
        )
    loaded = method.restore(model, None)
    if not loaded.model.has_encoder:
        raise ValueError(
            f"a model of kind {model.kind} reads the mean and the standard deviation of all "
            "patches alone, and has no heatmap; use a model with attention (model.pooling=gated)"
        )
    if model.architecture.pooling == "max":
        raise ValueError(
            "max pooling gives patches no weights, so there is no heatmap; use a model with "
            "attention (model.pooling=gated)"
        )
    return loaded


def own_model(model: SavedModel) -> LoadedModel | None:
    """The target's own model, which a merged model holds; None where it holds none."""
    target = model.params.get("frozen", {}).get("target")
    return None if target is None else _single(model, target)


def source_models(model: SavedModel, names: Sequence[str]) -> list[LoadedModel]:
    """Models of single sources, theta_0 + tau_s as they are merged, of which the encoder counts.

    Args:
        model: the merged model.
        names: of sources; the target's own name is the target's own model.

    Raises:
        ValueError: the model holds no sources, or not these; lists those that it holds.
    """
    frozen, known = model.params.get("frozen", {}), model.metadata.get("sources", [])
    if "null" not in frozen or "task_vectors" not in frozen:
        raise ValueError(
            f"a model of kind {model.kind} does not hold the models of its sources; leave out "
            "--sources"
        )
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"--sources: the model has no source {', '.join(unknown)}; it has {', '.join(known)}"
        )
    return [_single(model, _source(frozen, known.index(name))) for name in names]


def _source(frozen: Params, number: int) -> Params:
    """theta_0 + tau_s."""
    return jax.tree.map(
        lambda base, taus: base + taus[number], frozen["null"], frozen["task_vectors"]
    )


def _single(model: SavedModel, theta: Params) -> LoadedModel:
    return LoadedModel(AbmilModel(model.architecture), theta, {})


def chunks_of(bags: OnDiskBags, index: int) -> Chunks:
    """The chunks of a bag, read from its files each time; the last is filled up with zeros."""

    def read() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        total = int(bags.num_patches[index])
        for start in range(0, total, CHUNK):
            count = min(CHUNK, total - start)
            features = np.zeros((CHUNK, bags.feature_dim), bags.dtype)
            bags.read(index, start, features[:count])
            yield features, np.arange(CHUNK) < count

    return read


def patch_outputs(models: Sequence[LoadedModel], chunks: Chunks) -> list[PatchOutputs]:
    """Attention scores and outputs of all patches of a bag by some models.

    Args:
        models: each sees the same chunks, which are read once, or twice where the parameters of a
            model follow from the bag.
        chunks: of a bag with one patch or more.
    """
    bound = [_bind(*loaded, chunks) for loaded in models]
    collected: list[list[Any]] = [[] for _ in models]
    for features, mask in chunks():
        x, on = jnp.asarray(features), jnp.asarray(mask)
        count = int(mask.sum())
        for (model, trainable, frozen), merged, parts in zip(models, bound, collected, strict=True):
            scores, logits = _patches(model, trainable, frozen, *merged, x, on)
            parts.append((np.asarray(scores)[:count], np.asarray(logits)[:count]))
    return [
        PatchOutputs(
            np.concatenate([scores for scores, _ in parts]),
            np.concatenate([logits for _, logits in parts]),
        )
        for parts in collected
    ]


def _bind(model: BagModel, trainable: Params, frozen: Params, chunks: Chunks) -> tuple[Any, Any]:
    """Encoder and head of the bag: of the only model, or merged from the mean embedding."""
    means: dict[str, Any] = {}
    if model.embed_parts:
        parts = {name: trainable[name] for name in model.embed_parts}
        num_patches = 0
        for features, mask in chunks():
            sums = _embed(model, parts, jnp.asarray(features), jnp.asarray(mask))
            means = jax.tree.map(jnp.add, means, sums) if means else sums
            num_patches += int(mask.sum())
        means = jax.tree.map(lambda total: total[None] / np.float32(num_patches), means)
    return _merge(model, trainable, frozen, means)


@partial(jax.jit, static_argnums=0)
def _embed(model: BagModel, parts: Params, features: jax.Array, mask: jax.Array) -> Any:
    embedded = model.embed(parts, features)
    return jax.tree.map(lambda x: jnp.sum(x, axis=0, where=mask[:, None]), embedded)


@partial(jax.jit, static_argnums=0)
def _merge(model: BagModel, trainable: Params, frozen: Params, means: Any) -> tuple[Any, Any]:
    merged = model.merge(trainable, frozen, BagMeans(means, 1, None))
    encoder = model.encoder(frozen, merged.encoder)
    if model.encoder_per_bag:
        encoder = jax.tree.map(lambda leaf: leaf[0], encoder)
    return encoder, merged.head


@partial(jax.jit, static_argnums=0)
def _patches(
    model: BagModel,
    trainable: Params,
    frozen: Params,
    encoder: Params,
    head: Any,
    features: jax.Array,
    mask: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    abmil = Abmil(model.architecture, model.compute_dtype)
    outputs = abmil.apply({"params": encoder}, features, mask, method="patches")
    h, scores = cast(tuple[jax.Array, jax.Array | None], outputs)

    def alone(z: jax.Array) -> jax.Array:
        return model.head(trainable, frozen, PooledBags(z[None], head, {})).logits[0]

    return jnp.zeros(len(h), h.dtype) if scores is None else scores, jax.vmap(alone)(h)
