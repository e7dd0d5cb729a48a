"""Values of settings selected on inner folds of the training patients.

    python -m steph_jax.train --config C --sweep 'loss.merge_weight=0.005,0.05' --workdir W

For every fold its training patients are cut into three inner folds, stratified by event and time.
With each value, the method is trained on two of them and evaluated on the third; the value with the
best mean C-index, the first of equals, is the fold's, which is then trained with it as without a
sweep. Several settings make a grid of all their values. Test patients take no part in it.

The pool's model of the target was fitted on all training patients of the fold, the held-out ones
too. For each inner fold it is therefore fitted again, from the null model on the inner training
patients, and shared by all values.

W/fold_{k}/sweep.csv, .png  the C-index of every value and inner fold
W/fold_{k}/sweep/           finished parts, so that an interrupted sweep goes on
"""

import dataclasses
import json
import math
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from steph_jax import files, hosts, messages, records
from steph_jax.checkpoints.pool import NULL, Pool, member_name
from steph_jax.data.cohort import Cohort
from steph_jax.training import preflight, resume
from steph_jax.training.config import Config
from steph_jax.training.experiment import Experiment, fold_spec, time_bins, with_config
from steph_jax.training.grid import Grid, Point
from steph_jax.training.inner_folds import InnerFold, cut_inner_folds
from steph_jax.training.inner_pool import refitted_pool
from steph_jax.training.loop import DivergedError
from steph_jax.training.preflight import check_splits
from steph_jax.training.restarts import train_split

_BEGUN = records.record(
    {"models": records.mapping(records.TEXT), "held_out": records.list_of(records.ANYTHING)}
)
_RESULT = records.record({"c_index": records.or_null(records.within(0, 1))})


class SweepResult(NamedTuple):
    """What the sweep of a fold selected.

    Attributes:
        point: the values; none without a sweep.
        c_index: their mean C-index over the inner folds; NaN without a sweep.
    """

    point: Point
    c_index: float

    def record(self) -> dict[str, Any]:
        """Entries of metrics.json."""
        return {"selected": self.point, "inner_c_index": self.c_index} if self.point else {}


def check(grid: Grid, config: Config, cohort: Cohort, pool: Pool) -> None:
    """Checks that every value can be used, before features are read.

    Raises:
        ValueError, FileNotFoundError: as a run with that value would; too few patients or events
            for the inner folds.
    """
    if not grid.values:
        return
    method = config.controlled_method
    if method.joins is not None and "sources" in grid.values:
        raise ValueError(
            f"--sweep: the cohorts of {config.method} are read once for a run, so `sources` "
            "cannot be swept with it; use a run for each"
        )
    inner = {fold: cut_inner_folds(cohort, fold, config.seed) for fold in cohort.folds}
    for point in grid.points():
        changed = config.with_values(point)
        check_splits(changed, cohort)
        for fold, cuts in inner.items():
            for cut in cuts:
                time_bins(changed, cohort, cut.split)
                if len(cut.split.train) < changed.batch_size:
                    raise ValueError(
                        f"--sweep: an inner fold of fold {fold} leaves {len(cut.split.train)} "
                        f"training patients, fewer than one batch of {changed.batch_size}; "
                        "lower --config.batch_size"
                    )
        # Starting a fold reads the pool; one fold stands for all of them.
        fold = config.folds[0]
        method.start(fold_spec(changed, cohort, fold), pool)


def select(run: Experiment, grid: Grid, fold: int, directory: pathlib.Path) -> SweepResult:
    """Selects the values that a fold is trained with; goes on where an earlier call ended.

    Args:
        run: config and data.
        grid: the values that are tried, checked by `check`.
        fold: number of the fold.
        directory: of the fold.

    Raises:
        ValueError: models of the pool or patients have changed since an earlier call.
    """
    config, points = run.config, grid.points()
    if not grid.values:
        return SweepResult({}, math.nan)
    inner = cut_inner_folds(run.cohort, fold, config.seed)
    place = directory / "sweep"
    place.mkdir(parents=True, exist_ok=True)
    experiments = [with_point(run, point) for point in points]
    hosts.written(lambda: _store_start(experiments, fold, inner, place))
    c_index = np.zeros((len(points), len(inner)))
    for number, cut in enumerate(inner):
        within = place / f"inner_{number}"
        label = f"fold {fold}, inner fold {number}"
        pool = refitted_pool(run, cut, within, f"{label}, target's model")
        for i, (point, changed) in enumerate(zip(points, experiments, strict=True)):
            c_index[i, number] = held_out_c_index(
                dataclasses.replace(changed, pool=pool),
                fold,
                cut,
                within / f"value_{i}",
                f"{label}, {messages.setting_values(point)}",
            )
    means = c_index.mean(axis=1)
    if np.isnan(means).all():
        raise ValueError(
            f"fold {fold}: no value of the sweep could be trained on all inner folds; lower "
            "--config.learning_rate or try other values"
        )
    best = int(np.nanargmax(means))
    rows = [
        {name: json.dumps(value) for name, value in point.items()}
        | {"inner_fold": number, "c_index": value}
        for point, values in zip(points, c_index.tolist(), strict=True)
        for number, value in enumerate(values)
    ]
    labels = {messages.setting_values(p): v for p, v in zip(points, c_index.tolist(), strict=True)}
    title = f"{config.dataset}, {config.method}, fold {fold}: sweep over inner folds"

    def write() -> None:
        import pandas as pd  # here: neither is needed to start

        from steph_jax import plots

        files.write_table(directory / "sweep.csv", pd.DataFrame(rows))
        plots.folds(labels, directory / "sweep.png", title, patients="held-out training patients")

    hosts.written(write)
    logging.info(
        "fold %d: mean C-index over the inner folds %s; goes on with %s",
        fold,
        "; ".join(f"{name}: {mean:.4f}" for name, mean in zip(labels, means, strict=True)),
        messages.setting_values(points[best]),
    )
    return SweepResult(points[best], float(means[best]))


def members(grid: Grid, run: Experiment, folds: Sequence[int]) -> list[tuple[str, int]]:
    """(dataset, fold) of the models of the pool that some folds read, with any values."""
    configs = [run.config.with_values(point) for point in grid.points()]
    read = [
        member
        for config in configs
        for fold in folds
        for member in preflight.members(config, run.cohort, run.pool, fold)
    ]
    return list(dict.fromkeys(read))


def with_point(run: Experiment, point: Point) -> Experiment:
    """The experiment with other values of some settings, by their names with dots."""
    return with_config(run, run.config.with_values(point))


def _store_start(
    experiments: list[Experiment], fold: int, inner: list[InnerFold], place: pathlib.Path
) -> None:
    """Stores what the sweep of a fold started from, or checks that it is still the same."""
    pool, patients = experiments[0].pool, experiments[0].cohort.table.patients
    models = {NULL: resume.fingerprint(pool.null())} if pool.has_null() else {}
    for run in experiments:
        for member in preflight.members(run.config, run.cohort, pool, fold):
            models.setdefault(member_name(*member), resume.fingerprint(pool.member(*member)))
    record = {
        "models": models,
        "held_out": [[patients[i] for i in cut.held_out] for cut in inner],
    }
    path = place / "sweep.json"
    if not path.is_file():
        files.write_json(path, record)
    elif _read(path, _BEGUN) != record:
        raise ValueError(
            f"{place}: the models of the pool, or the training patients, have changed since the "
            "sweep of this fold began; put them back, or remove this directory to sweep the fold "
            "from its beginning"
        )


def _read(path: pathlib.Path, kind: records.Kind) -> dict[str, Any]:
    advice = f"remove {path.parent} to do this part of the sweep again"
    return records.read(path, kind, "a part of a sweep", advice)


def held_out_c_index(
    run: Experiment, fold: int, cut: InnerFold, directory: pathlib.Path, label: str
) -> float:
    """The C-index on the held-out patients of the method trained without them; NaN if it diverged.

    Args:
        run: config and data, with the pool of the inner fold.
        fold: number of the outer fold.
        cut: the inner fold.
        directory: of the result, and of the states of training until then.
        label: in the log.
    """
    path, states = directory / "result.json", directory / "training"
    if not hosts.agreed(path.is_file()):
        states.mkdir(parents=True, exist_ok=True)
        try:
            trained = train_split(run, fold, cut.split, states, label)
            scores = trained.evaluate(cut.held_out, trained.trainable).scores
        except DivergedError as error:
            logging.warning("%s", error)
            scores = {"c_index": math.nan}
        hosts.written(lambda: files.write_json(path, scores))
    hosts.written(lambda: shutil.rmtree(states, ignore_errors=True))
    value = _read(path, _RESULT)["c_index"]
    return math.nan if value is None else float(value)
