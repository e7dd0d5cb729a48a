"""ROUPKT: a routed mixture of representations that frozen models transfer (arXiv 2508.13482).

Equations 35 to 38 of docs/method.md:

    z_s    = the embedding of the bag by source s, frozen                         [E]
    q      = W_r z_r, with z_r the embedding of the bag by the router, an ABMIL   [S]
    p      = softmax(q)
    mixed  = sum_{s in K} p_s expert_s(z_s),  K = the k sources with the largest p  [E]
    logits = W_p mixed + b_p                                                        [T]

expert_s is Linear(E, E) and relu, or the identity. The weights p_s are not renormalized over K. Two
penalties keep the router from settling on one expert and from growing without bound:

    balance = p at its largest entry,   z = logsumexp(q)^2
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from steph_jax.models import abmil, task_vectors
from steph_jax.models.abmil import Architecture, Params
from steph_jax.models.layers import Linear

EXPERTS = ("relu", "identity")


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of ROUPKT; the defaults are the paper's.

    Attributes:
        top_k: k, how many experts are applied; 0 applies all.
        expert: "relu" (Linear and relu) or "identity".
        include_target: whether the target's own model is one of the sources.
        balance_weight: of the balance penalty in the loss.
        z_weight: of the z penalty in the loss.
    """

    top_k: int = 5
    expert: str = "relu"
    include_target: bool = True
    balance_weight: float = 0.01
    z_weight: float = 0.01

    def __post_init__(self) -> None:
        if self.expert not in EXPERTS:
            raise ValueError(f"roupkt.expert is one of {', '.join(EXPERTS)}, not {self.expert!r}")
        if self.top_k < 0:
            raise ValueError(f"roupkt.top_k is a number of experts or 0 for all, not {self.top_k}")

    def check_sources(self, num_sources: int) -> None:
        """Raises ValueError where these options do not fit a number of sources."""
        if num_sources < 1:
            raise ValueError("no source model is left to transfer from; name some in `sources`")
        if self.top_k > num_sources:
            raise ValueError(
                f"roupkt.top_k = {self.top_k} is larger than the number of experts, {num_sources}; "
                "lower it, or 0 for all of them"
            )


class Routing(NamedTuple):
    """Outputs of the router for B bags.

    Attributes:
        probabilities: p [B, S].
        selected: [B, S] True for the k experts that are applied.
        balance: [B] p at its largest entry.
        z: [B] logsumexp(q)^2.
    """

    probabilities: Float[Array, "B S"]
    selected: Bool[Array, "B S"]
    balance: Float[Array, " B"]
    z: Float[Array, " B"]


def route(q: Float[Array, "B S"], top_k: int) -> Routing:
    """The routing of bags from the router's outputs q [B, S]; ties go to the lowest index."""
    p = jax.nn.softmax(q, axis=-1)
    selected = task_vectors.select_top_k(p, top_k)
    return Routing(p, selected, jnp.max(p, axis=-1), jax.nn.logsumexp(q, axis=-1) ** 2)


def linear(params: Params, x: Float[Array, "*rows K"]) -> Float[Array, "*rows M"]:
    """x W + b."""
    return cast(Array, Linear(params["bias"].shape[0]).apply({"params": params}, x))


def mixture(experts: Params, z: Float[Array, "B S E"], routing: Routing) -> Float[Array, "B E"]:
    """sum_{s in K} p_s expert_s(z_s).

    Args:
        experts: {"expert_0": {"kernel" [E, E], "bias" [E]}, ...}, or {} for the identity.
        z: [B, S, E] representations of the bags.
        routing: of the bags.

    Returns:
        [B, E].
    """
    if experts:
        trees = [experts[f"expert_{s}"] for s in range(z.shape[1])]
        outputs = [linear(tree, z[:, s]) for s, tree in enumerate(trees)]
        z = jax.nn.relu(jnp.stack(outputs, axis=1))
    weights = jnp.where(routing.selected, routing.probabilities, jnp.zeros((), z.dtype))
    return jnp.sum(weights[:, :, None] * z, axis=1)


@partial(jax.jit, static_argnums=(1, 2, 3, 4))  # as `abmil.init`
def init(
    key: Key[Array, ""], architecture: Architecture, num_sources: int, num_outputs: int, expert: str
) -> Params:
    """Random float32 parameters of torch's default start.

    Args:
        key: random key.
        architecture: of the router, and of the models that represent bags.
        num_sources: S.
        num_outputs: T, outputs of pred_head.
        expert: as in `Options`.

    Returns:
        {"router": feat_proj and attention_net of an ABMIL, "gate": {"kernel" [E, S]},
        "experts": see `mixture`, "pred_head"}.
    """
    keys = iter(jax.random.split(key, 3 + num_sources))
    size = architecture.embed_dim

    def new_linear(outputs: int) -> dict[str, Any]:
        return Linear(outputs).init(next(keys), jnp.zeros((1, size), jnp.float32))["params"]

    router = abmil.init(next(keys), dataclasses.replace(architecture, num_bins=1))
    trainable: Params = {
        "router": task_vectors.parts_of(router, "mil_encoder"),
        "gate": {"kernel": new_linear(num_sources)["kernel"]},
        "pred_head": new_linear(num_outputs),
    }
    if expert == "relu":
        trainable["experts"] = {f"expert_{s}": new_linear(size) for s in range(num_sources)}
    return trainable
