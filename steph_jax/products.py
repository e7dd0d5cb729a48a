"""Matrix products as the models make them: their types, and what their gradients cost."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

#: Rows from which the gradient of a kernel is worth transposes of its operands on a CPU.
TRANSPOSED_ROWS = 512


def matmul(x: jax.Array, kernel: jax.Array, compute_dtype: Any = None) -> jax.Array:
    """`x @ kernel`, of shapes [..., K] and [K, M], in the kernel's own type.

    Args:
        x: left operand.
        kernel: right operand.
        compute_dtype: operands are rounded to it, those of the backward pass too; None for the
            kernel's type. Sums are accumulated in the kernel's type.
    """
    return _product(x, kernel, kernel.dtype if compute_dtype is None else compute_dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, kernel: jax.Array, dtype: Any) -> jax.Array:
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
    kept = kernel.value if x.perturbed else None, x.value if kernel.perturbed else None
    y = _contract(x.value, kernel.value, (x.value.ndim - 1, 0), dtype, kernel.value.dtype)
    return y, kept


def _product_backward(dtype: Any, kept: Any, cotangent: Any) -> tuple[Any, Any]:
    kernel, x = kept
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


def _kernel_gradient(x: jax.Array, y: jax.Array, dtype: Any) -> jax.Array:
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
