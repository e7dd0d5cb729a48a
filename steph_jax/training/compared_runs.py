"""The runs of a comparison: their configs, which are finished, and whether the rest can be made."""

import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

from steph_jax import hosts
from steph_jax import run_directory as runs
from steph_jax.checkpoints.pool import Pool
from steph_jax.evaluation.comparison import parts_of
from steph_jax.training import experiment, preflight
from steph_jax.training.config import MAY_CHANGE_ON_RESUME, Config, defaults


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


def check_methods(configs: dict[tuple[str, int], Config]) -> None:
    """Finds out before the first training whether each of the runs can be started.

    Raises:
        ValueError, FileNotFoundError: a setting that cannot be used; a model that the pool lacks,
            with how to make it.
    """
    checked: set[str] = set()
    for (method, _), config in configs.items():
        if config.pool.save:
            raise ValueError(
                "pool.save is for `steph_jax.train`: a comparison uses the pool as it is, so that "
                "no method depends on those run before it; make the pool first"
            )
        if method in checked:
            continue
        checked.add(method)
        cohort = experiment.read_cohort(config)
        pool = Pool(config.pool.root)
        preflight.preflight(config, cohort, pool, config.folds)


def check_numbers(
    record: dict[str, Any], methods: Sequence[str], seeds: Sequence[int], numbers: Sequence[int]
) -> None:
    """Finds out before the first training whether all comparisons can be made; raises as they do.

    Each seed and number draws other patients.
    """
    for number in numbers:
        runs_asked = asked_runs(record | {"train_patients": number}, methods, seeds)
        for config in {config.seed: config for config in runs_asked.values()}.values():
            experiment.read_cohort(config)
        check_methods(runs_asked)
