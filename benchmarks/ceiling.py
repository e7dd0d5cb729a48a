"""How fast the machine multiplies matrices: what the speed of a step is held against."""

import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from workload import Sizes

#: Seconds of each product at least, in a measurement.
LEAST = 0.1


class Ceiling:
    """The best of a projection, the product of its weight gradient, and a large square one.

    Operands have the given dtype, sums are float32; float32 products are whole ones (no TF32), as
    in `steph_jax.models.layers.matmul`.
    """

    def __init__(self, dtype: str, sizes: Sizes) -> None:
        n, d, e = sizes.product, sizes.feature_dim, sizes.embed_dim
        precision = lax.Precision.HIGHEST if dtype == "float32" else None

        def product(a: jax.Array, b: jax.Array) -> jax.Array:
            return jnp.matmul(a, b, precision=precision, preferred_element_type=jnp.float32)

        shapes = (((n, d), (d, e)), ((d, n), (n, e)), ((n, n), (n, n)))
        run = jax.jit(product)
        self._products: list[tuple[Callable[[], jax.Array], float, int]] = []
        for numbers, (left, right) in enumerate(shapes):
            keys = jax.random.split(jax.random.key(numbers))
            a = jax.random.normal(keys[0], left, jnp.float32).astype(dtype)
            b = jax.random.normal(keys[1], right, jnp.float32).astype(dtype)
            once = lambda a=a, b=b: run(a, b)  # noqa: E731
            jax.block_until_ready(once())
            took = _seconds(once, 1)
            work = 2.0 * left[0] * left[1] * right[1]
            self._products.append((once, work, math.ceil(LEAST / took)))

    def measure(self) -> float:
        """GFLOP/s of the fastest of the three."""
        return max(work * times / _seconds(f, times) for f, work, times in self._products) / 1e9


def _seconds(once: Callable[[], jax.Array], times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        last = once()
    jax.block_until_ready(last)
    return time.perf_counter() - began
