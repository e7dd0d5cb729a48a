"""Preparing task vectors before they are merged: TIES, Iso-C and Iso-CTS.

Equations 16 to 22 of docs/method.md.

Nothing is merged here: each source's task vector tau_s is changed together with the target's,
tau_t, and the sum of `task_vectors.weighted_sum` takes the result in its place.
A target that is one of the sources is paired with itself, as any other: matrices (with TIES, all
tensors) of every pair have the size of a sum of two task vectors, its own being about 2 tau_t.
All functions are pure and work on the tensors that are merged, as trees (`task_vectors.parts_of`).
Kernels are [inputs, outputs] here and [outputs, inputs] in the papers; "left" and "right"
singular vectors below are those of the papers.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from steph_jax.models.abmil import Params
from steph_jax.models.layers import matmul

#: tau_t and tau_s as [outputs, inputs] -> a matrix of that shape.
MatrixPreparation = Callable[[Array, Array], Array]

#: Share of the entries of a task vector that survives TIES.
TIES_KEPT = 0.2
#: Share of the singular directions that Iso-CTS takes from the sum of the two task vectors.
ISO_CTS_COMMON = 0.8


def ties(target: Params, source: Params) -> Params:
    """TIES: trim, elect signs, add what agrees (Yadav et al. 2023).

    With the tensors of each vector flattened to d entries: an entry is kept if its magnitude is at
    least the (d - floor(0.2 d))-th smallest of its vector, else it is 0. The sign of a coordinate
    is that of the sum of the two; where they sum to 0, it is the sign of the sum of all these
    signs. The result is the sum of the entries that have the sign of their coordinate.

    Args:
        target: tau_t, the merged tensors.
        source: tau_s, of the same structure.

    Returns:
        a tree of the same structure.
    """
    flat_target, unflatten = ravel_pytree(target)
    flat_source, _ = ravel_pytree(source)
    entries = jnp.stack([_trimmed(flat_target), _trimmed(flat_source)])
    sign = jnp.sign(jnp.sum(entries, axis=0))
    majority = jnp.sign(jnp.sum(sign.astype(jnp.int32))).astype(sign.dtype)
    elected = jnp.where(sign == 0, majority, sign)
    agrees = jnp.sign(entries) == elected[None]
    summed: Params = unflatten(jnp.sum(jnp.where(agrees, entries, 0), axis=0))
    return summed


def _trimmed(flat: Float[Array, " d"]) -> Float[Array, " d"]:
    """A vector [d] with all but its largest entries set to 0; those as large as the least stay."""
    magnitude = jnp.abs(flat)
    rank = flat.size - int(flat.size * TIES_KEPT)
    return jnp.where(magnitude >= jnp.sort(magnitude)[rank - 1], flat, 0)


def iso_c(target: Params, source: Params) -> Params:
    """Iso-C: the sum of both task vectors with equal singular values (Marczak et al. 2025).

        U S V^T = tau_t + tau_s,  result = U mean(S) V^T

    One-dimensional tensors: (tau_t + tau_s) / 2.

    Args:
        target: tau_t, the merged tensors.
        source: tau_s, of the same structure.

    Returns:
        a tree of the same structure.
    """
    return jax.tree.map(partial(_matrices_or_mean, _iso_c), target, source)


def iso_cts(target: Params, source: Params) -> Params:
    """Iso-CTS: directions common to both tasks and directions of each, made equal.

    For a matrix with r = min(shape): the c leading singular triplets of tau_t + tau_s, and of each
    tau, less its projection on the common left vectors, U_c U_c^T tau, the m leading triplets of
    the rest, m = round((r - int(0.8 r)) / 2) with halves to even and c = r - 2 m. U and V, stacked
    over all r triplets, are orthogonalized (their polar factors), and every singular value becomes
    the mean of the stacked ones (Marczak et al. 2025).

    One-dimensional tensors: (tau_t + tau_s) / 2.

    Args:
        target: tau_t, the merged tensors.
        source: tau_s, of the same structure.

    Returns:
        a tree of the same structure.
    """
    return jax.tree.map(partial(_matrices_or_mean, _iso_cts), target, source)


class _Triplets(NamedTuple):
    """Singular triplets of a matrix [a, b]: left [a, k], values [k], right [k, b]."""

    left: Float[Array, "a k"]
    values: Float[Array, " k"]
    right: Float[Array, "k b"]


def _triplets(matrix: Float[Array, "a b"], count: int) -> _Triplets:
    """The `count` leading ones.

    By QR iterations: the default, divide and conquer, now and then finds none in float32 where many
    singular values are alike, as those of stacked singular vectors are, and returns NaN.
    """
    left, values, right = lax.linalg.svd(
        matrix, full_matrices=False, algorithm=lax.linalg.SvdAlgorithm.QR
    )
    return _Triplets(left[:, :count], values[:count], right[:count])


def _matrices_or_mean(
    preparation: MatrixPreparation, tau_t: Float[Array, "*shape"], tau_s: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """A preparation of matrices [outputs, inputs] on two kernels; the mean of two other tensors."""
    return preparation(tau_t.T, tau_s.T).T if tau_t.ndim == 2 else (tau_t + tau_s) / 2


def _iso_c(tau_t: Float[Array, "a b"], tau_s: Float[Array, "a b"]) -> Float[Array, "a b"]:
    both = _triplets(tau_t + tau_s, min(tau_t.shape))
    return jnp.mean(both.values) * matmul(both.left, both.right)


def _iso_cts(tau_t: Float[Array, "a b"], tau_s: Float[Array, "a b"]) -> Float[Array, "a b"]:
    rank = min(tau_t.shape)
    specific = round((rank - int(ISO_CTS_COMMON * rank)) / 2)
    common = _triplets(tau_t + tau_s, rank - 2 * specific)
    parts = [common]
    for tau in (tau_t, tau_s):
        explained = matmul(common.left, matmul(common.left.T, tau))
        parts.append(_triplets(tau - explained, specific))
    left = jnp.concatenate([part.left for part in parts], axis=1)
    values = jnp.concatenate([part.values for part in parts])
    right = jnp.concatenate([part.right for part in parts])
    return jnp.mean(values) * matmul(_polar_factor(left), _polar_factor(right))


def _polar_factor(matrix: Float[Array, "a b"]) -> Float[Array, "a b"]:
    """The closest matrix with orthonormal rows or columns: U V^T of its singular vectors.

    Directions without any strength have no singular vectors of their own and are left out. There
    are some where both task vectors are the same, since each gives the same directions then.
    """
    both = _triplets(matrix, min(matrix.shape))
    least = max(matrix.shape) * jnp.finfo(matrix.dtype).eps * both.values[0]
    mask = (both.values > least).astype(matrix.dtype)
    return matmul(both.left * mask[None], both.right)


#: By name, besides "none": (tau_t, tau_s) -> what takes the place of tau_s, trees of the merged
#: tensors.
#: One source at a time, traced by JAX, without random numbers; `methods.sources.gather` applies it
#: once for a fold, before training.
PREPARATIONS = {"ties": ties, "iso_c": iso_c, "iso_cts": iso_cts}
KINDS = ("none", *PREPARATIONS)


def prepare(kind: str, target: Params, sources: Params) -> Params:
    """The sources' task vectors, each prepared together with the target's.

    Args:
        kind: one of `KINDS`; "none" changes nothing.
        target: tau_t, the merged tensors.
        sources: tau_s, leaves [S, ...].

    Returns:
        leaves [S, ...] to be merged in the place of `sources`.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"task vectors are prepared by one of {', '.join(KINDS)}; found {kind!r}")
    return sources if kind == "none" else _each_source(kind, target, sources)


@partial(jax.jit, static_argnums=0)
def _each_source(kind: str, target: Params, sources: Params) -> Params:
    prepared: Params = lax.map(partial(PREPARATIONS[kind], target), sources)
    return prepared
