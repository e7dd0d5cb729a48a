"""What is checked before a run trains anything."""

import math
import pathlib
import sys
from collections.abc import Iterable, Sequence

import numpy as np
from absl import logging
from tqdm import tqdm

from steph_jax import files
from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data import finite_check
from steph_jax.data.cohort import Cohort
from steph_jax.data.leaks import find_leaks
from steph_jax.data.splits import split_path
from steph_jax.data.tables import read_table, table_path
from steph_jax.messages import listed
from steph_jax.survival import metrics
from steph_jax.training.config import Config
from steph_jax.training.experiment import Experiment, fold_spec, joined_names, open_source


def expect_features_of(model: SavedModel, run: Experiment) -> None:
    """Raises ValueError where a model was made for features of another size than a run's."""
    found, expected = run.bags.feature_dim, model.architecture.feature_dim
    if found == expected:
        return
    if run.pool.has_null():
        what = f"the models of {run.pool.root} expect"
        advice = "use features of the encoder that the pool was fitted on, or another pool"
    else:
        what = "model.feature_dim says"
        advice = f"set --config.model.feature_dim={found}"
    raise ValueError(
        f"features of {run.config.dataset} have D = {found}, {what} D = {expected}; {advice}"
    )


def check_values(run: Experiment, marker: pathlib.Path) -> None:
    """Reads the values of streamed features once, before they are trained on (`data.values`).

    Args:
        run: whose features are open; what is on the devices was looked at on its way.
        marker: file that says which features were found to be good; written if all are.

    Raises:
        ValueError: values that are not finite or cannot be read; lists every such slide.
    """
    parts = [] if run.feed.is_resident else finite_check.unchecked(run.bags)
    if not parts:
        return
    found = finite_check.fingerprint(parts)
    if marker.is_file() and marker.read_text(encoding="utf-8") == found:
        return
    total, done = sum(len(part.num_patches) for part in parts), 0
    logging.info("reading the values of %d patients once (data.check_values)", total)
    terminal = sys.stderr.isatty()
    with tqdm(total=total, desc="values", unit="patient", disable=not terminal) as shown:

        def progress() -> None:
            nonlocal done
            done += 1
            shown.update()
            if not terminal and done % max(1, total // 10) == 0:
                logging.info("values of %d of %d patients are read", done, total)

        bad = [problem for part in parts for problem in finite_check.bad_slides(part, progress)]
    if bad:
        raise ValueError(
            f"values of {len(bad)} slides cannot be used; extract these slides again, or take them "
            "out of the table\n  " + "\n  ".join(bad)
        )
    files.write_text(marker, found)


def look_ahead(config: Config, cohort: Cohort, pool: Pool, folds: Sequence[int]) -> SavedModel:
    """The untrained model of the first of some folds, after a look at what all of them need.

    It shows before features are read whether folds can be started. Preparing task vectors may take
    long, so of the other folds the models are looked at that they read.

    Raises:
        ValueError, FileNotFoundError: folds that cannot be trained on; a setting that cannot be
            used; a model that the pool lacks; tables or features of joined cohorts.
    """
    check_parts(config, cohort)
    check_joined(config, cohort, pool)
    first, *others = folds
    for member in {member for fold in others for member in members(config, cohort, pool, fold)}:
        pool.member(*member)
    return config.recipe.start(fold_spec(config, cohort, first), pool)


def members(config: Config, cohort: Cohort, pool: Pool, fold: int) -> Sequence[tuple[str, int]]:
    """(dataset, fold) of the models of the pool that a fold of a run reads."""
    return config.recipe.members(fold_spec(config, cohort, fold), pool)


def warn_of_leaks(config: Config, cohort: Cohort, sources: Iterable[str]) -> None:
    """Says on the log which test patients models of sources were, or may have been, fitted on."""
    patients = cohort.table.patients
    slides = dict(zip(patients, cohort.table.slides, strict=True))
    test = {fold: [patients[i] for i in split.test] for fold, split in cohort.folds.items()}
    root, columns = config.data.folder, config.data.table_columns
    search = find_leaks(root, cohort.dataset, test, tuple(sources), columns, slides)
    for problem in search.unreadable:
        logging.warning("%s; patients cannot be compared", problem)
    for leak in search.leaks:
        logging.warning("%s: %s; %s", leak.message, listed(leak.patients), leak.advice)


def check_parts(config: Config, cohort: Cohort) -> None:
    """Raises ValueError for folds with too few training patients, or none to validate on."""
    for fold, split in cohort.folds.items():
        size = config.batch_size
        if len(split.train) < size:
            raise ValueError(
                f"fold {fold} of {config.dataset} has {len(split.train)} training patients, "
                f"fewer than one batch of {size}; lower --config.batch_size"
            )
        if config.validation.is_on and not len(split.validation):
            path = split_path(config.data.folder, config.dataset, fold)
            raise ValueError(
                f"{path}: expected a column `validation`, for validation.select = "
                f"{config.validation.select!r}, found no patients there; add some, or use "
                "--config.validation.select=none"
            )
        if config.validation.select == "c_index":
            time, event = cohort.table.time[split.validation], cohort.table.event[split.validation]
            if math.isnan(metrics.concordance_index(time, event, np.zeros(len(time)))):
                raise ValueError(
                    f"fold {fold} of {config.dataset}: no two of its {len(time)} validation "
                    f"patients ({event.sum():g} with an event) can be compared, so no epoch has a "
                    "C-index; select by --config.validation.select=loss"
                )


def check_joined(config: Config, cohort: Cohort, pool: Pool) -> None:
    """Looks for the tables and features of other cohorts that a method trains on, if it does.

    Raises:
        FileNotFoundError, ValueError: one that is missing or cannot be used.
    """
    root, columns = config.data.folder, config.data.table_columns
    for name in joined_names(config, cohort, pool):
        try:
            read_table(table_path(root, name), columns)
            open_source(config, name)
        except (OSError, ValueError) as error:
            kind = FileNotFoundError if isinstance(error, OSError) else ValueError
            raise kind(
                f"method {config.method} trains on the patients of {name} too: {error}; "
                "--config.sources names the cohorts to be joined, all others of the pool by default"
            ) from error
