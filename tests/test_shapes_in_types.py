"""Shapes in the types of models and survival are checked while the tests run."""

import jax.numpy as jnp
import jaxtyping
import pytest

from steph_jax.models import steph, task_vectors
from steph_jax.survival import losses


def test_other_shape_is_an_error():
    with pytest.raises(jaxtyping.TypeCheckError, match="mixup_coefficients"):
        task_vectors.mixup_coefficients(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones((2, 4), bool))


def test_other_dtype_is_an_error():
    with pytest.raises(jaxtyping.TypeCheckError, match="mean"):
        losses.mean(jnp.ones(3, jnp.int32))


def test_types_without_arrays_are_left_to_messages_of_the_code():
    assert steph.Options(fixed_mixing=[0.5]).fixed_mixing == (0.5,)
