"""One model and the patients it is trained on: how it starts, and its epochs."""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data import batches
from steph_jax.data.cohort import Fold
from steph_jax.engine.step import program_of
from steph_jax.evaluation import evaluator
from steph_jax.methods.base import Recipe
from steph_jax.models.abmil import Params
from steph_jax.survival.time_bins import TimeBins
from steph_jax.training import resume
from steph_jax.training.config import Config
from steph_jax.training.epoch import (
    Epoch,
    Kept,
    adamw,
    copied,
    initial_state,
    learning_rates,
    train_epoch,
)
from steph_jax.training.experiment import Experiment
from steph_jax.training.history import is_dead, line_of, row_of


class DeadStartError(Exception):
    """Slides get no source, and nothing, or little, can raise the weights of any.

    Attributes:
        seconds: that its epochs took.
    """

    def __init__(self, history: list[dict[str, float]]) -> None:
        super().__init__("the weights of all sources fell to 0")
        self.seconds = sum(row["seconds"] for row in history)


class DivergedError(ValueError):
    """The loss is no number any more."""


class Trained(NamedTuple):
    """What training leaves.

    Attributes:
        start: the model before it.
        trainable: the parameters of the last epoch, or of the best by `config.validation`.
        history: a row per epoch; none for a method that is not trained.
        evaluate: runs the method on patients of the cohort.
        dead_seconds: that the epochs of starts took that died before this one.
    """

    start: SavedModel
    trainable: Params
    history: list[dict[str, float]]
    evaluate: evaluator.Evaluator
    dead_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Task:
    """A model that is to be trained, and on whom.

    Attributes:
        method: of the model.
        model: what training starts from; its settings hold "bins" and "objective".
        patients: numbers of those that are trained on.
        split: whose test patients are watched, if it has any, and whose validation patients may
            select an epoch.
        directory: where the states of training are kept.
        label: in the log.
        stops_dead: whether weights of sources that died end training (`epoch_rows.is_dead`).
    """

    method: Recipe
    model: SavedModel
    patients: np.ndarray
    split: Fold
    directory: pathlib.Path
    label: str
    stops_dead: bool = False


def train_model(run: Experiment, task: Task) -> Trained:
    """Trains a model, from its last finished epoch; a method without training is only made ready.

    Args:
        run: settings and data.
        task: the model, and on whom it is trained.

    Raises:
        DeadStartError: the weights of its sources died, where that ends training.
        DivergedError: the loss is not finite.
    """
    config, table, model = run.config, run.cohort.table, task.model
    objective = saved_model.stored_objective(model)
    bins = TimeBins.from_json(model.settings["bins"])
    ready = task.method.restore(model, config.precision.operands)
    labels = evaluator.cohort_labels(table, bins) | task.method.patient_inputs(model, run.represent)
    loss = evaluator.loss_function(objective)
    program = program_of(ready.method, loss, run.feed.mesh, run.feed.num_slots)
    frozen = program.replicate(ready.frozen)
    evaluate = evaluator.Evaluator(program, frozen, run.feed, labels, table, objective)
    trainable: Params = program.replicate(ready.trainable)
    history: list[dict[str, float]] = []
    if task.method.trains:
        trainable, history = fit(run, task, evaluate, trainable)
    return Trained(model, trainable, history, evaluate)


def fit(
    run: Experiment, task: Task, evaluate: evaluator.Evaluator, trainable: Params
) -> tuple[Params, list[dict[str, float]]]:
    """The epochs of a training, after those that an earlier process finished.

    Args:
        run: settings, and whether an epoch is to be traced.
        task: the model, and on whom it is trained.
        evaluate: the compiled method, and all it reads.
        trainable: parameters of the model.

    Raises:
        DeadStartError, DivergedError: as `train_model` does.

    Returns:
        the parameters of the last epoch, or of the best by `config.validation`; and the history.
    """
    config, program, feed = run.config, evaluate.program, evaluate.feed
    steps, last = len(task.patients) // config.batch_size, config.epochs
    schedule = learning_rates(config.learning_rate, config.warmup_epochs * steps, last * steps)
    optimizer = adamw(schedule, config.weight_decay)
    selection = config.validation
    state = program.replicate(initial_state(trainable, optimizer))
    kept = Kept(state, copied(trainable) if selection.is_on else ())
    start = _fingerprint(task, evaluate)
    key = jax.random.fold_in(jax.random.key(config.seed), 2)

    def order_of(epoch: int) -> list[list[int]]:
        return list(batches.epoch_order(task.patients, config.batch_size, config.seed, epoch))

    store = resume.EpochStore(task.directory / "checkpoints")
    begun, (state, best), history = store.restore(kept, start)
    if begun:
        _end_if_dead(task, history)
        logging.info("%s: going on after epoch %d", task.label, begun)
    for epoch in range(begun, last):
        if selection.is_over(history):
            logging.info("%s: no better epoch in the last %d", task.label, selection.patience)
            break
        watched = _watched(config, task.split, epoch)
        order, following = order_of(epoch), order_of(epoch + 1) if epoch + 1 < last else []
        feed.expect([*chain(*order), *chain(*watched.values()), *chain(*following)])
        named = f"{task.label} epoch {epoch + 1}/{last}"
        # The first epoch of a process compiles; the second shows what the others are like.
        with traced(run.profile if epoch == min(begun + 1, last - 1) else None):
            state, passed = train_epoch(
                program,
                optimizer,
                state,
                evaluate.frozen,
                feed.ahead(order, evaluate.labels),
                key,
                epoch * steps,
                partial(bar, total=steps, label=named),
            )
        _expect_finite(passed, named, config.learning_rate)
        row = {"epoch": epoch + 1, "learning_rate": float(schedule((epoch + 1) * steps - 1))}
        row |= row_of(passed, evaluate, task.model.settings.get("sources", []))
        for part, rows in watched.items():
            scores = evaluate(state.trainable, rows).scores
            row |= {f"{part}_{name}": value for name, value in scores.items()}
        history.append(row)
        logging.info("%s: %s", named, line_of(row))
        if selection.is_on and selection.best_epoch(history) == epoch + 1:
            best = copied(state.trainable)
        store.save(epoch + 1, Kept(state, best), history, start)
        _end_if_dead(task, history)
    return (best if selection.is_on else state.trainable), history


def _fingerprint(task: Task, evaluate: evaluator.Evaluator) -> str:
    """A digest of all that the epochs of a training begin from."""
    rows, table = task.patients, evaluate.table
    return resume.fingerprint(
        task.model,
        {
            "patients": np.array([table.patients[i] for i in rows], np.str_),
            "num_patches": evaluate.feed.bags.num_patches[rows],
            "time": table.time[rows],
            "event": table.event[rows],
        },
    )


def _watched(config: Config, split: Fold, epoch: int) -> dict[str, np.ndarray]:
    """The patients that a model is evaluated on after an epoch (from 0), by part of the split."""
    every = config.eval_every
    due = every > 0 and ((epoch + 1) % every == 0 or epoch + 1 == config.epochs)
    watched = {"test": split.test} if due and len(split.test) else {}
    if config.validation.is_on:
        watched["validation"] = split.validation
    return watched


def _end_if_dead(task: Task, history: list[dict[str, float]]) -> None:
    if task.stops_dead and is_dead(history):
        raise DeadStartError(history)


def _expect_finite(passed: Epoch, named: str, learning_rate: float) -> None:
    """Raises DivergedError where a loss of an epoch is not finite."""
    if not np.isfinite(jax.device_get([out.loss for out in passed.outputs])).all():
        raise DivergedError(
            f"{named}: the loss is not a finite number any more, training has diverged; lower "
            f"--config.learning_rate ({learning_rate:g})"
        )


@contextlib.contextmanager
def traced(profile: pathlib.Path | None) -> Iterator[None]:
    """Leaves a trace of what happens within in a directory, unless there is one already."""
    if profile is None or profile.exists():
        yield
        return
    with jax.profiler.trace(profile):
        yield
    logging.info("trace for TensorBoard, XProf or Perfetto: %s", profile)


def bar(iterator: Iterator[Any], total: int, label: str) -> Iterator[Any]:
    """A progress bar on a terminal; nothing in a log, where every epoch has its line."""
    return iter(
        tqdm(iterator, total=total, desc=label, unit="step", disable=not sys.stderr.isatty())
    )
