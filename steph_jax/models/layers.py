"""Building blocks of the models: matrix products in their types, dropout, linear layers."""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, UInt32

#: Rows from which the gradient of a kernel is worth transposes of its operands on a CPU.
TRANSPOSED_ROWS = 512


def matmul(
    x: Float[Array, "*rows K"], kernel: Float[ArrayLike, "K M"], compute_dtype: Any = None
) -> Float[Array, "*rows M"]:
    """`x @ kernel`, of shapes [..., K] and [K, M], in the kernel's own type.

    Args:
        x: left operand.
        kernel: right operand.
        compute_dtype: operands are rounded to it, those of the backward pass too; None for the
            kernel's type. Sums are accumulated in the kernel's type.
    """
    kernel = jnp.asarray(kernel)  # stored models hold numpy arrays
    return _product(x, kernel, kernel.dtype if compute_dtype is None else compute_dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(
    x: Float[Array, "*rows K"], kernel: Float[Array, "K M"], dtype: Any
) -> Float[Array, "*rows M"]:
    return _contract(x, kernel, (x.ndim - 1, 0), dtype, kernel.dtype)


def _contract(
    left: jax.Array, right: jax.Array, axes: tuple[int, int], dtype: Any, sums: Any
) -> jax.Array:
    # Without it a GPU would quietly round float32 operands to ten bits of mantissa (TF32).
    precision = lax.Precision.HIGHEST if dtype == jnp.float32 else None
    return lax.dot_general(
        left.astype(dtype),
        right.astype(dtype),
        (((axes[0],), (axes[1],)), ((), ())),
        precision=precision,
        preferred_element_type=sums,
    )


def _product_forward(x: Any, kernel: Any, dtype: Any) -> tuple[jax.Array, Any]:
    # Where features are not differentiated, their kernel need not be kept, and the reverse.
    residuals = kernel.value if x.perturbed else None, x.value if kernel.perturbed else None
    y = _contract(x.value, kernel.value, (x.value.ndim - 1, 0), dtype, kernel.value.dtype)
    return y, residuals


def _product_backward(dtype: Any, residuals: Any, cotangent: Any) -> tuple[Any, Any]:
    kernel, x = residuals
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        return None, None
    x_bar = kernel_bar = None
    if kernel is not None:
        x_bar = _contract(cotangent, kernel, (cotangent.ndim - 1, 1), dtype, cotangent.dtype)
    if x is not None:
        # As matrices: a kernel that leading axes share has one product, not one for each of them.
        rows = x.reshape(-1, x.shape[-1]), cotangent.reshape(-1, cotangent.shape[-1])
        kernel_bar = _kernel_gradient(*rows, dtype)
    return x_bar, kernel_bar


_product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)


def _kernel_gradient(
    x: Float[Array, "N K"], y: Float[Array, "N M"], dtype: Any
) -> Float[Array, "K M"]:
    """x^T y of matrices [N, K] and [N, M], operands rounded to a type, sums in that of y."""
    (rows, width_x), width_y = x.shape, y.shape[1]
    pays = rows >= TRANSPOSED_ROWS and 1 < width_y <= width_x
    if not pays or jax.default_backend() != "cpu":
        return _contract(x, y, (0, 0), dtype, y.dtype)
    # XLA's products of a transposed operand take up to 1.2 times as long on a CPU. To transpose the
    # smaller operand and the result costs less; the barriers keep XLA from folding the transposes
    # back into the product. Where x is the smaller one, to transpose it costs what it saves.
    transposed = _contract(lax.optimization_barrier(y.T), x, (1, 0), dtype, y.dtype)
    return lax.optimization_barrier(transposed).T


def dropout(
    x: Float[Array, "*shape"], keys: Key[Array, "..."] | None, rate: float, site: int = 0
) -> Float[Array, "*shape"]:
    """Zeroes entries of `x` with probability `rate` and scales the rest by 1 / (1 - rate).

    Random words are hashes of the place of an entry under its key (`random_words`): they cost a few
    integer operations within the loop that applies them, where `jax.random` writes and reads
    arrays, a fifth of a training step on a CPU.

    Args:
        x: [..., rows, columns], or any shape for a single key.
        keys: one random key, or one for each of the leading entries of `x` ([G] for [G, N, A]); of
            bags or chunks, whose masks then depend on nothing else in the batch. None: `x` as it
            is.
        rate: in [0, 1).
        site: which of the dropouts of a model that share their keys this is.
    """
    if keys is None or rate == 0.0:
        return x
    words = random_words(keys, x.shape[keys.ndim :], site)
    keep = words >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros((), x.dtype))


def random_words(
    keys: Key[Array, "..."], shape: tuple[int, ...], site: int = 0
) -> UInt32[Array, "..."]:
    """Random uint32 [*keys.shape, *shape]: an entry's number, mixed with a 64-bit seed of its key.

    Mixed by the finalizer of MurmurHash3 (Appleby), in which every bit of the input reaches every
    bit of the output; the second half of the seed comes in half way, so that two keys share no run
    of words. Enough for dropout masks; not for what needs more than 2^32 entries a key.
    """

    def seed_of(key: Key[Array, ""]) -> UInt32[Array, " 2"]:
        return jax.random.bits(jax.random.fold_in(key, site), (2,), jnp.uint32)

    for _ in range(keys.ndim):
        seed_of = jax.vmap(seed_of)
    seed = seed_of(keys).reshape(*keys.shape, *(1 for _ in shape), 2)
    number = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        number += lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= shape[axis]
    x = jnp.expand_dims(number, tuple(range(keys.ndim))) + seed[..., 0]
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x ^= seed[..., 1]
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def uniform_fan_in(
    key: Key[Array, ""], shape: tuple[int, ...], fan_in: int, dtype: Any
) -> Float[Array, "..."]:
    """torch's default start of a linear layer: uniform in +-1/sqrt(fan_in)."""
    bound = 1.0 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Linear(nn.Module):
    """`x W + b`, started as torch starts its linear layers (weights and bias alike).

    Attributes:
        features: size of the output.
        compute_dtype: of the operands of the matrix product (None: as they come). Products are
            accumulated, and returned, in the parameters' own type.
    """

    features: int
    compute_dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*rows K"]) -> Float[Array, "*rows M"]:
        fan_in = x.shape[-1]
        kernel = self.param(
            "kernel", lambda k: uniform_fan_in(k, (fan_in, self.features), fan_in, jnp.float32)
        )
        bias = self.param(
            "bias", lambda k: uniform_fan_in(k, (self.features,), fan_in, jnp.float32)
        )
        return matmul(x, kernel, self.compute_dtype) + jnp.broadcast_to(
            bias, (*x.shape[:-1], self.features)
        )
