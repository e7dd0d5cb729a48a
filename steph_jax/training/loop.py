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

from steph_jax import hosts
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data import batches
from steph_jax.data.cohort import Fold
from steph_jax.engine.placement import fetch, replicate
from steph_jax.evaluation.evaluator import Evaluator, loss_function
from steph_jax.methods.base import Method
from steph_jax.models.abmil import Params
from steph_jax.trackers.track import Track
from steph_jax.training import resume
from steph_jax.training.config import Config
from steph_jax.training.epoch import (
    Epoch,
    TrainCheckpoint,
    adamw,
    copy_of,
    initial_state,
    learning_rates,
    train_epoch,
)
from steph_jax.training.experiment import Experiment
from steph_jax.training.history import epoch_line, epoch_row, has_collapsed


class CollapsedWeightsError(Exception):
    """The weights of all sources are 0, or next to it, for all patients (`history.has_collapsed`).

    Attributes:
        seconds: duration of the epochs until then.
    """

    def __init__(self, history: list[dict[str, float]]) -> None:
        super().__init__("the weights of all sources fell to 0")
        self.seconds = sum(row["seconds"] for row in history)


class DivergedError(ValueError):
    """The loss is not finite."""


class TrainResult(NamedTuple):
    """A trained model, and how it was trained.

    Attributes:
        start: the model before training.
        trainable: the parameters of the last epoch, or of the best by `config.validation`.
        history: a row per epoch; none for a method that is not trained.
        evaluate: runs the method on patients of the cohort.
        collapsed_seconds: duration of the epochs of earlier starts, whose weights collapsed.
        fit_seconds: duration of `Method.fit`.
    """

    start: SavedModel
    trainable: Params
    history: list[dict[str, float]]
    evaluate: Evaluator
    collapsed_seconds: float = 0.0
    fit_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class TrainingJob:
    """A model to be trained, and its patients.

    Attributes:
        method: of the model.
        model: what training starts from; its settings hold "bins" and "objective".
        patients: numbers of the training patients.
        split: its test patients, if any, are evaluated after an epoch, and its validation patients
            may select one.
        directory: of the states of training.
        label: in the log.
        ends_on_collapse: whether `history.has_collapsed` ends training.
        track: trackers that log its epochs; none by default.
    """

    method: Method
    model: SavedModel
    patients: np.ndarray
    split: Fold
    directory: pathlib.Path
    label: str
    ends_on_collapse: bool = False
    track: Track = dataclasses.field(default_factory=Track)


def train_model(run: Experiment, job: TrainingJob) -> TrainResult:
    """Trains a model from its last finished epoch; a method without training is only loaded.

    Args:
        run: config and data.
        job: the model and its patients.

    Raises:
        CollapsedWeightsError: the weights of its sources collapsed, where that ends training.
        DivergedError: the loss is not finite.
    """
    evaluate = Evaluator.load(
        job.model, run.loader, run.cohort.table, run.config.precision.operands, run.represent
    )
    trainable: Params = evaluate.predict.trainable
    history: list[dict[str, float]] = []
    if job.method.trains:
        trainable, history = fit(run, job, evaluate, trainable)
    return TrainResult(job.model, trainable, history, evaluate)


def fit(
    run: Experiment, job: TrainingJob, evaluate: Evaluator, trainable: Params
) -> tuple[Params, list[dict[str, float]]]:
    """The epochs of a training, after those that an earlier process finished.

    Args:
        run: config, and whether an epoch is traced.
        job: the model and its patients.
        evaluate: the compiled model on the bags of the cohort.
        trainable: parameters of the model.

    Raises:
        CollapsedWeightsError, DivergedError: as `train_model` does.

    Returns:
        the parameters of the last epoch, or of the best by `config.validation`; and the history.
    """
    config, loader = run.config, run.loader
    steps, last = len(job.patients) // config.batch_size, config.epochs
    schedule = learning_rates(config.learning_rate, config.warmup_epochs * steps, last * steps)
    optimizer, rate_at = adamw(schedule, config.weight_decay), jax.jit(schedule)
    early_stopping = config.validation
    state = replicate(loader.mesh, initial_state(trainable, optimizer))
    initial = TrainCheckpoint(state, copy_of(trainable) if early_stopping.is_on else ())
    start = _fingerprint(job, evaluate)
    key = jax.random.fold_in(jax.random.key(config.seed), 2)

    def order_of(epoch: int) -> list[list[int]]:
        return list(batches.epoch_order(job.patients, config.batch_size, config.seed, epoch))

    store = resume.EpochStore(job.directory / "checkpoints")
    begun, (state, best), history = store.restore(initial, start)
    job.track.log(job.directory.name, history)
    if begun:
        _end_if_collapsed(job, history)
        logging.info("%s: going on after epoch %d", job.label, begun)
    for epoch in range(begun, last):
        if early_stopping.is_over(history):
            logging.info("%s: no better epoch in the last %d", job.label, early_stopping.patience)
            break
        parts = _evaluated_after(config, job.split, epoch)
        order, following = order_of(epoch), order_of(epoch + 1) if epoch + 1 < last else []
        evaluated = chain(*(loader.partition(rows.tolist()) for rows in parts.values()))
        loader.announce([*order, *evaluated, *following])
        epoch_label = f"{job.label} epoch {epoch + 1}/{last}"
        # The first epoch of a process compiles; the second shows what the others are like.
        with traced(run.profile if epoch == min(begun + 1, last - 1) else None):
            state, epoch_result = train_epoch(
                evaluate.predict.model,
                loss_function(evaluate.objective),
                loader.mesh,
                optimizer,
                state,
                evaluate.predict.frozen,
                loader.batches(order, evaluate.labels),
                key,
                epoch * steps,
                partial(progress_bar, total=steps, label=epoch_label),
            )
        _check_finite(epoch_result, epoch_label, config.learning_rate)
        row = {"epoch": epoch + 1, "learning_rate": float(rate_at((epoch + 1) * steps - 1))}
        row |= epoch_row(epoch_result, evaluate, job.model.metadata.get("sources", []))
        for part, rows in parts.items():
            scores = evaluate(rows, state.trainable).scores
            row |= {f"{part}_{name}": value for name, value in scores.items()}
        history.append(hosts.agreed(row))
        logging.info("%s: %s", epoch_label, epoch_line(history[-1]))
        if early_stopping.is_on and early_stopping.best_epoch(history) == epoch + 1:
            best = copy_of(state.trainable)
        store.save(epoch + 1, TrainCheckpoint(state, best), history, start)
        job.track.log(job.directory.name, history)
        _end_if_collapsed(job, history)
    return (best if early_stopping.is_on else state.trainable), history


def _fingerprint(job: TrainingJob, evaluate: Evaluator) -> str:
    """A digest of everything that the epochs of a training start from."""
    rows, table = job.patients, evaluate.table
    return resume.fingerprint(
        job.model,
        {
            "patients": np.array([table.patients[i] for i in rows], np.str_),
            "num_patches": evaluate.predict.loader.bags.num_patches[rows],
            "time": table.time[rows],
            "event": table.event[rows],
        },
    )


def _evaluated_after(config: Config, split: Fold, epoch: int) -> dict[str, np.ndarray]:
    """The patients on whom a model is evaluated after an epoch (from 0), by part of the split."""
    every = config.eval_every
    due = every > 0 and ((epoch + 1) % every == 0 or epoch + 1 == config.epochs)
    parts = {"test": split.test} if due and len(split.test) else {}
    if config.validation.is_on:
        parts["validation"] = split.validation
    return parts


def _end_if_collapsed(job: TrainingJob, history: list[dict[str, float]]) -> None:
    if job.ends_on_collapse and has_collapsed(history):
        raise CollapsedWeightsError(history)


def _check_finite(epoch_result: Epoch, epoch_label: str, learning_rate: float) -> None:
    """Raises DivergedError where a loss of an epoch is not finite."""
    if not np.isfinite(fetch([out.loss for out in epoch_result.outputs])).all():
        raise DivergedError(
            f"{epoch_label}: the loss is not a finite number any more, training has diverged; "
            f"lower --config.learning_rate ({learning_rate:g})"
        )


@contextlib.contextmanager
def traced(profile: pathlib.Path | None) -> Iterator[None]:
    """Writes a JAX trace of the block to a directory, unless there is one already."""
    if profile is None or profile.exists():
        yield
        return
    with jax.profiler.trace(profile):
        yield
    logging.info("trace for TensorBoard, XProf or Perfetto: %s", profile)


def progress_bar(iterator: Iterator[Any], total: int, label: str) -> Iterator[Any]:
    """A progress bar on a terminal; nothing in a log, where every epoch has its line."""
    return iter(
        tqdm(iterator, total=total, desc=label, unit="step", disable=not sys.stderr.isatty())
    )
