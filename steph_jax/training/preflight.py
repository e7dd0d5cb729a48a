"""What is checked before a run trains anything."""

import itertools
import math
import pathlib
import sys
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from absl import logging
from tqdm import tqdm

from steph_jax import files, hosts
from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.pool import Pool, member_name
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.data import finite_check
from steph_jax.data.cohort import Cohort
from steph_jax.data.features import lookalikes
from steph_jax.data.features.source import FeatureSource
from steph_jax.data.leaks import find_leaks
from steph_jax.data.splits import split_path
from steph_jax.data.tables import SurvivalTable, read_table, table_path
from steph_jax.messages import join_names
from steph_jax.survival import metrics
from steph_jax.training.config import Config
from steph_jax.training.experiment import Experiment, fold_spec, joined_names, open_source


def check_feature_dim(model: SavedModel, run: Experiment) -> None:
    """Raises ValueError where a model was made for features of another size than a run's."""
    actual, expected = run.bags.feature_dim, model.architecture.feature_dim
    if actual == expected:
        return
    source = open_source(run.config, run.config.dataset)
    headers = [source.header(slide) for slides in run.cohort.table.slides for slide in slides]
    shapes = [(header.num_patches, header.dim) for header in headers if header.num_patches]
    if lookalikes.seem_transposed(shapes, expected):
        raise ValueError(f"{source.location}: {lookalikes.transposed_text(shapes)}")
    if run.pool.has_null():
        what = f"the models of {run.pool.root} expect"
        advice = "use features of the encoder that the pool was fitted on, or another pool"
    else:
        what = "model.feature_dim is"
        advice = lookalikes.dim_advice(actual)
    raise ValueError(
        f"features of {run.config.dataset} have D = {actual}, {what} D = {expected}; {advice}"
    )


def warn_of_slide_level(run: Experiment) -> None:
    """Says on the log where every slide of a run has one patch."""
    pairs = list(zip(run.bags.num_patches, run.cohort.table.slides, strict=True))
    if all(num_patches <= len(slides) for num_patches, slides in pairs):
        text = lookalikes.slide_level_text([1] * int(run.bags.num_patches.sum()))
        logging.warning("features of %s: %s", run.config.dataset, text)


def encoder_of(config: Config, dataset: str, table: SurvivalTable) -> str:
    """The encoder that most files of a dataset name; "" where none does.

    Raises:
        FileNotFoundError, ValueError: features that are missing or cannot be used; files that name
            several encoders.
    """
    source = open_source(config, dataset)
    slides = [slide for patient_slides in table.slides for slide in patient_slides]
    source.require(slides)
    names = {slide: source.encoder(slide) for slide in slides}
    several = lookalikes.several_encoders(names)
    if several:
        raise ValueError(f"{source.location}: {several}; extract all with one encoder")
    return Counter(filter(None, names.values())).most_common(1)[0][0] if any(names.values()) else ""


def expect_encoder_of_members(
    config: Config, cohort: Cohort, pool: Pool, folds: Sequence[int], encoder: str
) -> None:
    """Looks whether the models that a run reads were fitted on features of its own encoder.

    Args:
        config: of the run.
        cohort: of the target.
        pool: of models.
        folds: numbers.
        encoder: of the target's features; "" where it is not known.

    Raises:
        ValueError: one was fitted on features of another encoder.
    """
    for member in {m for fold in folds for m in members(config, cohort, pool, fold)}:
        header = saved_model.load_header(pool.root / member_name(*member))
        member_encoder = str(header.metadata.get("encoder", ""))
        names = [lookalikes.same_encoder(name) for name in (encoder, member_encoder) if name]
        if len(set(names)) > 1:
            raise ValueError(
                f"{pool.root}: {member[0]}, fold {member[1]}, was fitted on features of the "
                f"encoder {member_encoder}, but the features of {config.dataset} are of {encoder}; "
                "use models and features of one encoder"
            )


def check_values(run: Experiment, marker: pathlib.Path) -> None:
    """Reads the values of streamed features once, before they are trained on (`finite_check`).

    Args:
        run: whose features are open; those on the devices were checked when they were uploaded.
        marker: file with the fingerprint of the features whose values are finite; written here.

    Raises:
        ValueError: values that are not finite or cannot be read; lists every such slide.
    """
    parts = [] if run.loader.uses_device_cache else finite_check.unchecked(run.bags)
    if not parts:
        return
    fingerprint = finite_check.fingerprint(parts)
    known = marker.is_file() and marker.read_text(encoding="utf-8") == fingerprint
    if hosts.agreed(known):
        return
    # Each host reads a part of them.
    own = [range(hosts.index(), len(part.num_patches), hosts.count()) for part in parts]
    total, done = sum(map(len, own)), 0
    logging.info("reading the values of %d patients once (data.check_values)", total)
    terminal = sys.stderr.isatty()
    with tqdm(total=total, desc="values", unit="patient", disable=not terminal) as shown:

        def progress() -> None:
            nonlocal done
            done += 1
            shown.update()
            if not terminal and done % max(1, total // 10) == 0:
                logging.info("values of %d of %d patients are read", done, total)

        bad = [
            problem
            for part, patients in zip(parts, own, strict=True)
            for problem in finite_check.bad_slides(part, patients, progress)
        ]
    bad = list(itertools.chain(*hosts.of_all(bad)))
    if bad:
        raise ValueError(
            f"values of {len(bad)} slides cannot be used; extract these slides again, or take them "
            "out of the table\n  " + "\n  ".join(bad)
        )
    hosts.written(lambda: files.write_text(marker, fingerprint))


def preflight(config: Config, cohort: Cohort, pool: Pool, folds: Sequence[int]) -> SavedModel:
    """Checks before features are read that folds can start; returns the first one's model.

    Preparing task vectors may take long, so only the first fold is started; for the others it is
    checked that the models that they read are in the pool.

    Raises:
        ValueError, FileNotFoundError: folds that cannot be trained on; a setting that cannot be
            used; a model that the pool lacks; tables or features of joined cohorts.
    """
    check_splits(config, cohort)
    check_joined(config, cohort, pool)
    first, *others = folds
    for member in {member for fold in others for member in members(config, cohort, pool, fold)}:
        pool.member(*member)
    return config.controlled_method.start(fold_spec(config, cohort, first), pool)


def members(config: Config, cohort: Cohort, pool: Pool, fold: int) -> Sequence[tuple[str, int]]:
    """(dataset, fold) of the models of the pool that a fold of a run reads."""
    return config.controlled_method.members(fold_spec(config, cohort, fold), pool)


def warn_of_leaks(config: Config, cohort: Cohort, sources: Iterable[str]) -> None:
    """Logs which test patients the models of sources were, or may have been, fitted on."""
    patients = cohort.table.patients
    slides = dict(zip(patients, cohort.table.slides, strict=True))
    test = {fold: [patients[i] for i in split.test] for fold, split in cohort.folds.items()}
    root, columns = config.data.folder, config.data.table_columns
    search = find_leaks(root, cohort.dataset, test, tuple(sources), columns, slides)
    for problem in search.unreadable:
        logging.warning("%s; patients cannot be compared", problem)
    for leak in search.leaks:
        logging.warning("%s: %s; %s", leak.message, join_names(leak.patients), leak.advice)


def check_splits(config: Config, cohort: Cohort) -> None:
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
    """Checks the tables and features of the other cohorts that a method trains on, if any.

    Raises:
        FileNotFoundError, ValueError: one that is missing or cannot be used.
    """
    root, columns = config.data.folder, config.data.table_columns
    for name in joined_names(config, cohort, pool):
        try:
            table = read_table(table_path(root, name), columns)
            target = open_source(config, config.dataset)
            _check_alike(target, cohort.table, open_source(config, name), table)
        except (OSError, ValueError) as error:
            kind = FileNotFoundError if isinstance(error, OSError) else ValueError
            raise kind(
                f"method {config.method} trains on the patients of {name} too: {error}; "
                "--config.sources names the cohorts to be joined, all others of the pool by default"
            ) from error


def _check_alike(
    target: FeatureSource,
    target_table: SurvivalTable,
    other: FeatureSource,
    other_table: SurvivalTable,
) -> None:
    """Raises ValueError where the first slides of two cohorts differ in size or encoder."""
    kinds_of_slides = []
    for source, table in ((target, target_table), (other, other_table)):
        slides = (slide for patient_slides in table.slides for slide in patient_slides)
        first = next((slide for slide in slides if not source.missing([slide])), None)
        if first is None:  # missing features are reported when they are opened
            return
        kinds_of_slides.append((source.dim(first), lookalikes.same_encoder(source.encoder(first))))
    (dim, encoder), (other_dim, other_encoder) = kinds_of_slides
    advice = "source and target need features of one encoder"
    if dim != other_dim and dim and other_dim:
        raise ValueError(
            f"{other.location}: features of D = {other_dim}, those of {target.location} have D = "
            f"{dim}; {advice}"
        )
    if encoder != other_encoder and encoder and other_encoder:
        raise ValueError(
            f"{other.location}: features of the encoder {other_encoder}, those of "
            f"{target.location} are of {encoder}; {advice}"
        )
