"""One fold's training: AdamW, the schedule, and epochs that can be resumed."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from steph_jax.data.batches import Batch
from steph_jax.engine.bag_model import BagModel, LossFunction
from steph_jax.engine.loader import Prefetcher
from steph_jax.engine.step import Outputs, gradients
from steph_jax.models.abmil import Params


class State(NamedTuple):
    """What training changes.

    Attributes:
        trainable: parameters.
        optimizer: optax's state.
        step: updates so far.
    """

    trainable: Params
    optimizer: Any
    step: jax.Array


class TrainCheckpoint(NamedTuple):
    """What is stored after every epoch.

    Attributes:
        state: after the epoch.
        best: trainable parameters of the best epoch so far; () where none is selected.
    """

    state: State
    best: Any


class Epoch(NamedTuple):
    """One epoch of training.

    Attributes:
        batches: in order, without their patches.
        outputs: of the training passes over them, dropout on.
        seconds: wall time.
        seconds_waiting: the part of it spent waiting for data.
    """

    batches: list[Batch]
    outputs: list[Outputs]
    seconds: float
    seconds_waiting: float


def learning_rates(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Linear from 0 to `peak` over the warm-up, then half a cosine to 0; one value per update."""
    if total_steps <= warmup_steps:
        return optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, total_steps)


def adamw(schedule: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """AdamW (betas 0.9, 0.999; eps 1e-8) whose decay leaves biases and other vectors alone."""
    return optax.adamw(
        schedule,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=weight_decay,
        mask=lambda params: jax.tree.map(lambda x: x.ndim >= 2, params),
    )


@partial(jax.jit, static_argnums=1)
def initial_state(trainable: Params, optimizer: optax.GradientTransformation) -> State:
    """The state before the first update."""
    trainable = jax.tree.map(jnp.copy, trainable)
    return State(trainable, optimizer.init(trainable), jnp.zeros((), jnp.int32))


def copy_of(trainable: Params) -> Params:
    """A copy of the parameters; the buffers of a `State` are reused by the next update."""
    return jax.tree.map(jnp.copy, trainable)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def update(optimizer: optax.GradientTransformation, state: State, gradient: Params) -> State:
    """One step of the optimizer."""
    # optax counts steps in int32 and raises floats to that power, which strict promotion forbids.
    with jax.numpy_dtype_promotion("standard"):
        updates, inner = optimizer.update(gradient, state.optimizer, state.trainable)
    return State(optax.apply_updates(state.trainable, updates), inner, state.step + 1)


def train_epoch(
    model: BagModel,
    loss: LossFunction,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    state: State,
    frozen: Params,
    batches: Prefetcher,
    key: jax.Array,
    step: int,
    progress: Callable[[Iterator[Batch]], Iterator[Batch]] = iter,
) -> tuple[State, Epoch]:
    """One epoch.

    Args:
        model: what is computed of every bag.
        loss: of a batch.
        mesh: devices that share every batch.
        optimizer: made by `adamw`.
        state: before the epoch; its buffers are reused.
        frozen: parameters that are not trained.
        batches: of this epoch.
        key: of the fold; the dropout of update i comes from fold_in(key, i), so that an
            interrupted run goes on with the same numbers.
        step: updates before this epoch.
        progress: wraps the iteration.

    Returns:
        the state after the epoch, and the epoch's batches and outputs.
    """
    began = time.perf_counter()
    passed: list[Batch] = []
    outputs: list[Outputs] = []
    for batch in progress(iter(batches)):
        dropout = jax.random.fold_in(key, step + len(passed))
        gradient, out = gradients(model, loss, mesh, state.trainable, frozen, batch, dropout)
        state = update(optimizer, state, gradient)
        passed.append(batch._replace(groups=()))
        outputs.append(out)
        # One step may be under way while the next is prepared; more would only hold memory.
        if len(outputs) > 1:
            jax.block_until_ready(outputs[-2].loss)
    jax.block_until_ready(state)
    return state, Epoch(passed, outputs, time.perf_counter() - began, batches.seconds_waiting)
