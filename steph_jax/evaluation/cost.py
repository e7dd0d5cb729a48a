"""What a stored model costs per slide: floating-point operations and seconds.

Operations are those of matrix products, two for a multiplication and an addition, counted from the
shapes of the arrays that `engine.step.forward` multiplies. For a slide of N patches that comes to

    ABMIL    N (2 D E + 2 * 2 E A + 2 A + 2 E) + 2 E T          (one 2 E A without the gate)
    STEPH    ABMIL + 2 N D H + (2 H H + 2 H S) * 2 + 2 (S + 2) P
             H = 512 of the hypernetworks, P parameters of the encoder; the last term is the merged
             model of the slide; T only where the head is not merged too
    ROUPKT   ABMIL as router, with 2 E S for the gate in place of the head, and S ABMIL encoders
             that represent the slide, + 2 S E E of the experts + 2 E T

Element-wise functions are left out: for the sizes of the paper they are less than a hundredth.
Models that are merged once for all slides (`fix`, `average`, `learned`) cost what an ABMIL does.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.bags import ConcatBags, InMemoryBags
from steph_jax.data.batches import Batch, BatchBags, ChunkGroup
from steph_jax.engine.bag_model import BagMeans, BagModel
from steph_jax.engine.frozen_encoders import FrozenEncoder, Representations
from steph_jax.engine.loader import DeviceLoader
from steph_jax.engine.placement import device_mesh
from steph_jax.engine.step import forward
from steph_jax.evaluation.evaluator import Predictor
from steph_jax.methods.registry import find_method
from steph_jax.models.abmil import Architecture, Params

#: Times that a measurement is repeated, after once to compile.
REPEATS = 3


def flops_per_slide(model: SavedModel, num_patches: int) -> int:
    """Floating-point operations of matrix products for one slide, from patches to logits.

    Args:
        model: of any kind.
        num_patches: N.
    """
    for_sources = 0

    def represent(architecture: Architecture, models: Sequence[Params]) -> np.ndarray:
        nonlocal for_sources
        for source in models:
            for_sources += _flops_of_slide(FrozenEncoder(architecture), {}, source, num_patches, {})
        return np.zeros((1, len(models), architecture.embed_dim), np.float32)

    method = find_method(model.kind)
    labels = method.patient_inputs(model, represent, no_predictors(model, 1))
    bag_model, trainable, frozen = method.restore(model, None)
    flops = _flops_of_slide(bag_model, trainable, frozen, num_patches, labels)
    if not bag_model.embed_parts:
        # What does not look at the slide is merged once for all of them.
        merge = partial(bag_model.merge, bags=BagMeans({}, 1, None))
        flops -= _flops(merge, trainable, frozen)
    return for_sources + flops


def no_predictors(model: SavedModel, number: int) -> np.ndarray:
    """[number, K] zeros in the place of the clinical predictors of a model; K may be 0."""
    codings = find_method(model.kind).codings(model)
    return np.zeros((number, sum(coding.width for coding in codings)), np.float32)


def _flops_of_slide(
    model: BagModel, trainable: Params, frozen: Params, num_patches: int, labels: Params
) -> int:
    """Operations of `step.forward` for one slide, in one chunk."""

    def logits(trainable: Params, frozen: Params, features: jax.Array, labels: Params) -> jax.Array:
        one, zero = np.full(1, num_patches, np.int32), np.zeros(1, np.int32)
        batch = Batch(BatchBags(zero, zero, one, labels), [ChunkGroup(features, one, zero, zero)])
        return forward(model, mesh, trainable, frozen, batch).logits

    mesh = device_mesh(jax.local_devices()[:1])
    shape = (1, num_patches, model.architecture.feature_dim)
    features = jax.ShapeDtypeStruct(shape, jnp.float32)
    return _flops(logits, trainable, frozen, features, labels)


def _flops(function: Any, *arguments: Any) -> int:
    """Operations of the matrix products of a function."""
    return _in_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _in_jaxpr(jaxpr: Jaxpr) -> int:
    """Operations of the matrix products of a traced function, those it calls included."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            operand, product = (
                cast(jax.core.ShapedArray, variable.aval).shape
                for variable in (equation.invars[0], equation.outvars[0])
            )
            total += 2 * math.prod(product) * math.prod(operand[axis] for axis in contracted)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                total += times * _in_jaxpr(value.jaxpr if isinstance(value, ClosedJaxpr) else value)
    return total


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, Jaxpr | ClosedJaxpr)


def seconds_per_slide(
    model: SavedModel,
    num_patches: int,
    batch_size: int,
    compute_dtype: Any = None,
) -> float:
    """Wall time per slide, from features in memory to logits on the host, compiled before.

    Slides of random features go through the model as one batch, everything that the method needs
    of a new slide included (ROUPKT: what all its sources make of it). Median of `REPEATS`.

    Args:
        model: of any kind.
        num_patches: N of every slide.
        batch_size: slides in the batch.
        compute_dtype: of products over patches; None for float32.
    """
    size = model.architecture.feature_dim
    dtype = np.dtype(np.float32 if compute_dtype is None else compute_dtype)
    features = np.random.default_rng(0).standard_normal((num_patches, size), np.float32)
    slide = InMemoryBags.of([features.astype(dtype)], size, dtype)
    bags = ConcatBags([slide] * batch_size)
    loader = DeviceLoader.open(bags, batch_size)
    predictors = no_predictors(model, batch_size)
    predictor = Predictor.load(model, loader, compute_dtype, None, predictors)

    def once() -> float:
        began = time.perf_counter()
        inputs = find_method(model.kind).patient_inputs(
            model, Representations(loader, compute_dtype), predictors
        )
        dataclasses.replace(predictor, labels=inputs)(range(batch_size))
        return time.perf_counter() - began

    once()
    return statistics.median(once() for _ in range(REPEATS)) / batch_size
