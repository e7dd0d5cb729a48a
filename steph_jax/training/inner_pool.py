"""The pool of an inner fold, whose model of the target was fitted without the held-out patients."""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable

from steph_jax import hosts
from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data.cohort import Fold
from steph_jax.engine.placement import fetch
from steph_jax.methods import abmil
from steph_jax.survival import objectives
from steph_jax.survival.time_bins import TimeBins, uniform_bins
from steph_jax.training.experiment import Experiment, time_bins
from steph_jax.training.inner_folds import InnerFold
from steph_jax.training.loop import TrainingJob, train_model


class InnerPool(Pool):
    """A pool with another model of the target.

    Args:
        root: of the pool.
        dataset: the target.
        refit: (the pool's model of the target) -> the one that replaces it.
    """

    def __init__(
        self, root: pathlib.Path, dataset: str, refit: Callable[[SavedModel], SavedModel]
    ) -> None:
        super().__init__(root)
        self._dataset = dataset
        self._refit = refit

    def member(self, dataset: str, fold: int) -> SavedModel:
        """See `Pool.member`."""
        model = super().member(dataset, fold)
        return self._refit(model) if dataset == self._dataset else model


def refitted_pool(
    run: Experiment, cut: InnerFold, directory: pathlib.Path, label: str
) -> InnerPool:
    """The pool with a model of the target that was fitted without the held-out patients.

    It is fitted when a method first reads it, from `_untrained`, and stored in the directory.

    Args:
        run: config and data.
        cut: the inner fold.
        directory: of the inner fold.
        label: in the log.
    """

    def refit(member: SavedModel) -> SavedModel:
        path, states = directory / "target", directory / "target_training"
        if not hosts.agreed(path.is_dir()):
            states.mkdir(parents=True, exist_ok=True)
            split = cut.split
            start = _untrained(run, member, split)
            job = TrainingJob(abmil.METHOD, start, split.train, split, states, label)
            trained = train_model(run, job)
            model = abmil.METHOD.store(start, fetch(trained.trainable))
            hosts.written(lambda: saved_model.save_model(path, model))
        hosts.written(lambda: shutil.rmtree(states, ignore_errors=True))
        return saved_model.load_model(path)

    return InnerPool(run.pool.root, run.config.dataset, refit)


def _untrained(run: Experiment, member: SavedModel, split: Fold) -> SavedModel:
    """theta_0 with the loss and the kind of time bins of the pool's model that it replaces.

    Where that has no record of them: the default loss, and the run's bins if they fit its number of
    outputs, else uniform ones. Bins that depend on outcomes are cut by those of the split, as for
    the method that is trained on it.
    """
    objective, record = saved_model.stored_objective(member), member.metadata.get("bins")
    num_outputs = member.architecture.num_bins
    if record:
        bins = TimeBins.from_json(record)
    else:
        bins = time_bins(run.config, run.cohort, split)
        if objective.output.num_outputs(bins.num_bins) != num_outputs:
            bins = uniform_bins(num_outputs)
    if bins.kind != "uniform":
        section = dataclasses.replace(run.config.bins, kind=bins.kind, number=bins.num_bins)
        time, event = run.cohort.table.time[split.train], run.cohort.table.event[split.train]
        bins = section.cut(time, event)
    num_outputs = objective.output.num_outputs(bins.num_bins)
    spec = run.config.fold_spec(run.config.folds[0], num_outputs, bins)
    settings = {"bins": bins.to_json(), "objective": objectives.objective_record(objective)}
    return dataclasses.replace(abmil.METHOD.start(spec, run.pool), metadata=settings)
