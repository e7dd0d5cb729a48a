"""Task vectors: what fine-tuning added to a common starting point, and sums of them.

tau = theta - theta_0 for parameters theta trained from theta_0 (equation 8 of docs/method.md). All
functions are pure tree operations. A *stack* of parameter trees is one tree whose leaves carry a
leading axis; a merged model is then one small product of coefficients and stack, leaf by leaf.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from steph_jax.models.abmil import Params
from steph_jax.models.layers import matmul

#: Parts of an ABMIL tree by the values of `steph.Options.merged`.
PARTS = {
    "mil_encoder": ("feat_proj", "attention_net"),
    "pred_head": ("pred_head",),
    "all": ("feat_proj", "attention_net", "pred_head"),
}


def task_vector(theta: Params, theta_0: Params) -> Params:
    """tau = theta - theta_0."""
    return jax.tree.map(lambda a, b: a - b, theta, theta_0)


def stack(trees: Sequence[Params]) -> Params:
    """One tree with leaves [len(trees), ...] from trees of the same structure."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def parts_of(theta: Params, merged: str) -> Params:
    """The part of an ABMIL tree that is merged: "mil_encoder", "pred_head" or "all"."""
    return {name: theta[name] for name in PARTS[merged] if name in theta}


def weighted_sum(stacked: Params, coefficients: Float[Array, "*bags S"]) -> Params:
    """sum_s c_s theta_s over a stack.

    Args:
        stacked: leaves [S, ...].
        coefficients: [S], or [B, S] for B sums at once.

    Returns:
        leaves [...], or [B, ...].
    """

    return jax.tree.map(lambda x: _weighted(coefficients, x), stacked)


@jax.custom_vjp
def _weighted(coefficients: Float[Array, "*bags S"], x: jax.Array) -> Float[Array, "..."]:
    flat = x.reshape(x.shape[0], -1)
    return matmul(coefficients, flat).reshape(*coefficients.shape[:-1], *x.shape[1:])


def _weighted_forward(coefficients: Any, x: Any) -> tuple[jax.Array, Any]:
    residuals = coefficients.value if x.perturbed else None, x.value
    flat = x.value.reshape(x.value.shape[0], -1)
    y = matmul(coefficients.value, flat)
    return y.reshape(*coefficients.value.shape[:-1], *x.value.shape[1:]), residuals


def _weighted_backward(residuals: Any, cotangent: Any) -> tuple[Any, Any]:
    # On a CPU a product with the stack on its left takes two thirds of the time of the other order,
    # which XLA would choose but for the barrier.
    coefficients, x = residuals
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        return None, None
    sums = cotangent.reshape(-1, x[0].size)
    by_source = matmul(x.reshape(x.shape[0], -1), sums.T)
    for_coefficients = jax.lax.optimization_barrier(by_source).T
    if cotangent.ndim == x.ndim - 1:
        for_coefficients = for_coefficients[0]
    if coefficients is None:
        return for_coefficients, None
    over = coefficients.reshape(-1, x.shape[0])
    return for_coefficients, matmul(over.T, sums).reshape(x.shape)


_weighted.defvjp(_weighted_forward, _weighted_backward, symbolic_zeros=True)


def select_top_k(weights: Float[Array, "*bags S"], top_k: int) -> Bool[Array, "*bags S"]:
    """The sources with the largest weights (STEPH, sparse aggregation); ties: lowest index.

    Args:
        weights: [..., S].
        top_k: how many to keep; 0 keeps all.

    Returns:
        [..., S] bool, with `top_k` True entries in each row. Not differentiated.
    """
    num_sources = weights.shape[-1]
    if not 0 <= top_k <= num_sources:
        raise ValueError(
            f"top_k = {top_k} sources cannot be kept of {num_sources}; 0 keeps all of them"
        )
    if top_k in (0, num_sources):
        return jnp.ones(weights.shape, bool)
    _, indices = jax.lax.top_k(jax.lax.stop_gradient(weights), top_k)
    return jnp.any(jax.nn.one_hot(indices, num_sources, dtype=jnp.int32) > 0, axis=-2)


def mixup_coefficients(
    weights: Float[Array, "*bags S"],
    ratios: Float[Array, "*bags S"],
    selected: Bool[Array, "*bags S"],
) -> tuple[Float[Array, "*bags S"], Float[Array, "*bags S"]]:
    """Coefficients of theta_0 + sum_{s in K} w_s [lambda_s tau_t + (1 - lambda_s) tau_s].

    Args:
        weights: w [..., S].
        ratios: lambda [..., S].
        selected: [..., S] True for the sources in K.

    Returns:
        [..., S] what each source adds to c_t, the coefficient of tau_t, which is their sum; and
        [..., S] the coefficients c of tau_s. Both are 0 outside of K.
    """
    weights_in_k = jnp.where(selected, weights, jnp.zeros((), weights.dtype))
    return weights_in_k * ratios, weights_in_k * (1 - ratios)


@jax.jit
def cosine_matrix(stacked: Params) -> Float[Array, "S S"]:
    """Cosine similarity [S, S] between the stacked task vectors, all tensors together.

    A vector of zeros has similarity 0 with everything.
    """
    flat = jnp.concatenate([x.reshape(x.shape[0], -1) for x in jax.tree.leaves(stacked)], axis=1)
    norm = jnp.linalg.norm(flat, axis=1, keepdims=True)
    unit = flat / jnp.where(norm > 0, norm, jnp.ones((), norm.dtype))
    return matmul(unit, unit.T)


def count_parameters(tree: Any) -> int:
    """Number of scalars in a tree."""
    return sum(int(x.size) for x in jax.tree.leaves(tree))
