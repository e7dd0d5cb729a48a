"""The cancer-specific model: one ABMIL, every tensor trained (SPEC 1)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from steph_jax.abmil import Abmil, Architecture, Params
from steph_jax.program import Headed, Merged


@dataclasses.dataclass(frozen=True)
class AbmilMethod:
    """ABMIL as a `program.Method`: one encoder for all bags.

    Attributes:
        architecture: dimensions and variant.
        compute_dtype: of products over patches; None for float32.
    """

    architecture: Architecture
    compute_dtype: Any = None
    encoder_per_bag = False
    embed_parts: tuple[str, ...] = ()
    embed_dims: Any = dataclasses.field(default_factory=dict)

    def embed(self, trainable: Params, features: jax.Array) -> dict[str, jax.Array]:
        return {}

    def merge(
        self,
        trainable: Params,
        frozen: Params,
        means: dict[str, jax.Array],
        num_bags: int,
        keys: jax.Array | None,
    ) -> Merged:
        head = trainable["pred_head"]
        encoder = {name: tree for name, tree in trainable.items() if name != "pred_head"}
        return Merged(encoder, {}, jnp.zeros(num_bags, head["bias"].dtype), {})

    def head(
        self,
        trainable: Params,
        frozen: Params,
        merged_head: Params,
        z: jax.Array,
        labels: dict[str, jax.Array],
    ) -> Headed:
        logits = apply_head(self.architecture, trainable["pred_head"], z)
        return Headed(logits, jnp.zeros(len(z), z.dtype), {})


def apply_head(architecture: Architecture, head: Params, z: jax.Array) -> jax.Array:
    """Logits [..., T] of pooled embeddings [..., E] by one pred_head."""
    return Abmil(architecture).apply({"params": {"pred_head": head}}, z, method="head")
