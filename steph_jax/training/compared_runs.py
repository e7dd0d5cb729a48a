"""The runs of comparisons: their configs, which are finished, and whether the rest can be made."""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from steph_jax import hosts
from steph_jax import run_directory as runs
from steph_jax.checkpoints.pool import Pool
from steph_jax.evaluation import comparison, over_cohorts
from steph_jax.evaluation import learning_curve as curves
from steph_jax.evaluation.comparison import run_directory
from steph_jax.methods.controls import label_of, parts_of
from steph_jax.training import experiment, preflight
from steph_jax.training.config import MAY_CHANGE_ON_RESUME, Config, defaults


@dataclasses.dataclass(frozen=True)
class Request:
    """What `steph_jax.compare` is asked for: one comparison, or one on each of several datasets.

    Attributes:
        record: the config as `config.as_dict` gives it; its method and seed are not used, nor what
            other attributes name.
        methods: values of `config.method`, or labels of controls (`controls.label_of`).
        seeds: every method is run with each.
        workdir: where the runs are kept.
        command: that was given, for the record.
        datasets: names; () for that of the record.
        numbers: of training patients, 0 for all; () for that of the record.
        reference: the one of the methods that differences are to.
        primary: see `over_cohorts.expect_primary`; "" for none.
    """

    record: dict[str, Any]
    methods: Sequence[str]
    seeds: Sequence[int]
    workdir: pathlib.Path
    command: str
    datasets: Sequence[str] = ()
    numbers: Sequence[int] = ()
    reference: str = comparison.REFERENCE
    primary: str = ""

    def check(self) -> None:
        """Checks datasets and primary comparison.

        Raises:
            ValueError: fewer than two datasets, or one that is named twice; a primary comparison
                over one, or that is not made.
        """
        names = self.datasets
        if names and (len(names) < 2 or len(set(names)) < len(names)):
            raise ValueError(
                f"--datasets are two or more different ones, as a,b; found {','.join(names)}"
            )
        if self.primary and not names:
            raise ValueError(
                "--primary is the main comparison over cohorts; name them by --datasets"
            )
        if self.primary:
            over_cohorts.expect_primary(self.primary, self.methods, self.reference)

    def comparisons(self) -> dict[pathlib.Path, dict[str, Any]]:
        """The config of each comparison, by its directory; none of them adds to the pool.

        Raises:
            ValueError: numbers that are none of patients.
        """
        record = self.record | {"pool": self.record["pool"] | {"save": False}}
        by_dataset = {
            self.workdir / dataset: record | {"dataset": dataset} for dataset in self.datasets
        } or {self.workdir: record}
        if not self.numbers:
            return by_dataset
        return {
            curves.directory(workdir, number): of_dataset | {"train_patients": number}
            for workdir, of_dataset in by_dataset.items()
            for number in curves.in_order(self.numbers)
        }


def missing_runs(
    record: dict[str, Any], methods: Sequence[str], seeds: Sequence[int], workdir: pathlib.Path
) -> dict[pathlib.Path, Config]:
    """The configs of those runs of a comparison that are not finished, by directory.

    Raises:
        ValueError: as `asked_runs` does; a run with other settings in one of the directories.
    """
    return {
        run_directory(workdir, *name): run
        for name, run in asked_runs(record, methods, seeds).items()
        if not hosts.agreed(is_finished(run_directory(workdir, *name), run))
    }


def asked_runs(
    record: dict[str, Any], methods: Sequence[str], seeds: Sequence[int]
) -> dict[tuple[str, int], Config]:
    """The config of each run of a comparison, by label and seed.

    Raises:
        ValueError: no run, one that is named twice, or a setting that cannot be used.
    """
    names = list(itertools.product(methods, seeds))
    if not names or len(set(names)) < len(names):
        raise ValueError(
            "expected methods and seeds, each of them once; found --methods "
            f"{','.join(methods)} --seeds {','.join(map(str, seeds))}"
        )
    config = Config.from_dict(record)
    return {
        (label, seed): config.with_values(
            dict(zip(("method", "control"), parts_of(label), strict=True)) | {"seed": seed}
        )
        for label, seed in names
    }


def is_finished(directory: pathlib.Path, config: Config) -> bool:
    """Whether a run has finished all folds of its config.

    Raises:
        ValueError: the run in this directory has other settings.
    """
    folds = [runs.fold_directory(directory, fold) for fold in config.folds]
    # A run that was ended before its summary is given the chance to write it.
    summarized = runs.is_summarized(directory, config.folds)
    if not summarized or not all(runs.is_finished(fold) for fold in folds):
        return False
    store = runs.store_config if hosts.is_writer() else runs.reconciled_config
    store(directory, config.record, MAY_CHANGE_ON_RESUME, defaults())
    return True


def check_methods(configs: Iterable[Config], pool_grows: bool = False) -> None:
    """Finds out before the first training whether each of the runs can be started.

    Args:
        configs: of the runs.
        pool_grows: whether models are added to the pool before the runs begin, so that one that it
            lacks now may be there then.

    Raises:
        ValueError, FileNotFoundError: a setting that cannot be used; a model that the pool lacks,
            with how to make it.
    """
    checked: set[str] = set()
    for config in configs:
        if config.pool.save:
            raise ValueError(
                "pool.save is for `steph_jax.train`: a comparison uses the pool as it is, so that "
                "no method depends on those run before it; make the pool first"
            )
        label = label_of(config.method, config.control)
        if label in checked:
            continue
        checked.add(label)
        cohort = experiment.read_cohort(config)
        if not pool_grows:
            preflight.preflight(config, cohort, Pool(config.pool.root), config.folds)


def check_numbers(
    record: dict[str, Any],
    methods: Sequence[str],
    seeds: Sequence[int],
    numbers: Sequence[int],
    pool_grows: bool = False,
) -> None:
    """Finds out before the first training whether all comparisons can be made; raises as they do.

    Each seed and number draws other patients. `pool_grows` is that of `check_methods`.
    """
    for number in numbers:
        runs_asked = asked_runs(record | {"train_patients": number}, methods, seeds)
        for config in {config.seed: config for config in runs_asked.values()}.values():
            experiment.read_cohort(config)
        check_methods(runs_asked.values(), pool_grows)
