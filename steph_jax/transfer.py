"""What every source's model, unchanged, is worth for every cohort: the zero-shot matrix.

    python -m steph_jax.transfer --config configs/brca.py --workdir W

The first row is the untrained null model, whose ranking a source keeps in part: what is below or
above 0.5 need not come from what it learned. Sources and targets are `config.sources` (all datasets
of the pool, if empty) and `config.dataset`. As everywhere, a source's model is the one of its fold
0, but for a cohort's own model, which is the one of the fold whose patients are tested. A cohort
without data here is no target, one without a model in the pool no source, which is logged.

W/transfer.csv              source (or "null model"), target, fold, c_index
W/task_vector_cosines.csv   cosine between the task vectors of the merged encoder
W/transfer.png              mean over folds, and the cosines
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
from absl import flags, logging
from ml_collections import config_flags

from steph_jax import cli, files, plots, run_directory
from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel, stored_objective
from steph_jax.data.splits import split_path
from steph_jax.data.tables import table_path
from steph_jax.engine.frozen_encoders import Representations
from steph_jax.engine.loader import DeviceLoader
from steph_jax.messages import join_names
from steph_jax.methods.abmil import apply_head
from steph_jax.models import task_vectors
from steph_jax.survival import metrics
from steph_jax.training import experiment, preflight
from steph_jax.training.config import Config, as_dict

#: What is written.
TABLE, COSINES, PICTURE = "transfer.csv", "task_vector_cosines.csv", "transfer.png"
#: theta_0 in the column `source`: no dataset can be named so, and pandas does not read it as a gap.
NULL_MODEL = "null model"


def main() -> int:
    """The entry point."""
    transfer(as_dict(flags.FLAGS.config), flags.FLAGS.workdir)
    return 0


def transfer(record: dict[str, Any], workdir: pathlib.Path) -> pd.DataFrame:
    """Evaluates every source on every target and writes what came out.

    Args:
        record: the config as `config.as_dict` gives it.
        workdir: where the tables and the picture go.

    Returns:
        columns source, target, fold, c_index.

    Raises:
        ValueError, FileNotFoundError: a setting, file or directory that cannot be used; no source
            or no target at all.
    """
    config = Config.from_dict(record)
    run_directory.make(workdir)
    for name in (TABLE, COSINES, PICTURE):
        files.check_output(workdir / name)
    pool = Pool(config.pool.root)
    names = cohort_names(config, pool)
    sources = {name: pool.member(name, 0) for name in with_model(pool, names)}
    targets = with_data(config, names)
    rows = [
        row
        for target in targets
        for row in on_target(config.with_values({"dataset": target}), pool, sources)
    ]
    table = pd.DataFrame(rows, columns=["source", "target", "fold", "c_index"])
    cosines = cosine_table(pool, sources)
    files.write_table(workdir / COSINES, cosines.rename_axis(None, axis=1).reset_index())
    means = mean_matrix(table, [NULL_MODEL, *sources], targets)
    draw(means, cosines, len(config.folds), workdir)
    # Last: this file marks the matrix as complete.
    files.write_table(workdir / TABLE, table)
    print(f"\nMean C-index on the test patients of each target, {len(config.folds)} folds\n")
    print(means.to_string(float_format=lambda x: f"{x:.4f}", na_rep="n/a"))
    print(f"\nwritten to {workdir}")
    return table


def cohort_names(config: Config, pool: Pool) -> list[str]:
    """`sources`, or all datasets of the pool, and the dataset; each once."""
    return list(dict.fromkeys([*(config.sources or pool.datasets()), config.dataset]))


def with_model(pool: Pool, names: Sequence[str]) -> list[str]:
    """The cohorts that have a model to transfer; a line on the log for each of the others.

    Raises:
        FileNotFoundError: none has; with how to make one.
    """
    sources_of_pool = [name for name in names if name in pool.datasets()]
    for name in names:
        if name not in sources_of_pool:
            logging.warning("%s is no source: no fold-0 model of it in %s", name, pool.root)
    if not sources_of_pool:
        pool.member(names[0], 0)
    return sources_of_pool


def with_data(config: Config, names: Sequence[str]) -> list[str]:
    """The cohorts that have data here; a line on the log for each of the others.

    Raises:
        FileNotFoundError: none has.
    """
    datasets = []
    for name in names:
        root = config.data.root
        paths = (
            table_path(root, name),
            *(split_path(root, name, fold) for fold in config.folds),
            config.data.features_of(name),
        )
        missing = [path for path in paths if not path.exists()]
        if missing:
            logging.warning("%s is no target: no %s", name, join_names(missing))
        else:
            datasets.append(name)
    if not datasets:
        raise FileNotFoundError(
            f"none of {join_names(names)} has a table under data.root = {config.data.root!r} and "
            f"features at data.features = {config.data.features!r}"
        )
    return datasets


def on_target(
    config: Config, pool: Pool, sources: Mapping[str, SavedModel]
) -> list[tuple[str, str, int, float]]:
    """(source, target, fold, C-index) of theta_0 and of all sources on the target's test patients.

    The target is `config.dataset`. All models see the patients in one pass.
    """
    target = config.dataset
    cohort = experiment.read_cohort(config)
    preflight.warn_of_leaks(config, cohort, sources)
    models: dict[tuple[str, int], SavedModel] = {
        (NULL_MODEL, 0): pool.null(),
        **{(name, 0): model for name, model in sources.items() if name != target},
    }
    folds = pool.members().get(target, [])
    for fold in cohort.folds:
        if fold in folds:
            models[target, fold] = pool.member(target, fold)
        else:
            logging.warning(
                "%s, fold %d: its own model is not in %s, so it is left out",
                target,
                fold,
                pool.root,
            )
    bags = experiment.read_bags(config, target, cohort.table)
    some = next(iter(sources.values()))
    if bags.feature_dim != some.architecture.feature_dim:
        raise ValueError(
            f"features of {target} have D = {bags.feature_dim}, the models of {pool.root} expect "
            f"D = {some.architecture.feature_dim}; use features of the encoder that the pool was "
            "fitted on"
        )
    loader = DeviceLoader.open(bags, config.batch_size, config.data.device_gb)
    represent = Representations(loader, config.precision.operands)
    z = represent(some.architecture, [model.params for model in models.values()])
    risks = {key: risk(model, z[:, i]) for i, (key, model) in enumerate(models.items())}
    rows = []
    for fold, split in cohort.folds.items():
        time, event = cohort.table.time[split.test], cohort.table.event[split.test]
        for name in (NULL_MODEL, *sources):
            key = (name, fold if name == target else 0)
            if key in risks:
                c_index = metrics.concordance_index(time, event, risks[key][split.test])
                rows.append((name, target, fold, c_index))
    return rows


def risk(model: SavedModel, z: np.ndarray) -> np.ndarray:
    """Risk [n], higher = worse, from pooled embeddings z [n, E]."""
    output = stored_objective(model).output
    return np.asarray(output.risk(apply_head(model.params["pred_head"], jnp.asarray(z))))


def cosine_table(pool: Pool, sources: Mapping[str, SavedModel]) -> pd.DataFrame:
    """Cosine [S, S] between the task vectors of the sources, over the encoder that is merged."""
    null = pool.null()
    vectors = [
        task_vectors.parts_of(task_vectors.task_vector(model.params, null.params), "mil_encoder")
        for model in sources.values()
    ]
    cosines = np.asarray(task_vectors.cosine_matrix(task_vectors.stack(vectors)))
    names = list(sources)
    return pd.DataFrame(cosines, pd.Index(names, name="source"), pd.Index(names, name="source"))


def mean_matrix(
    table: pd.DataFrame, sources: Sequence[str], targets: Sequence[str]
) -> pd.DataFrame:
    """Mean over folds, sources by targets; NaN where a fold is undefined or lacks its model."""
    folds = table["fold"].nunique()
    cells = table.groupby(["source", "target"])["c_index"]
    means = cells.agg(lambda c: c.mean() if len(c) == folds and c.notna().all() else np.nan)
    return means.unstack("target").reindex(index=list(sources), columns=list(targets))


def draw(means: pd.DataFrame, cosines: pd.DataFrame, num_folds: int, workdir: pathlib.Path) -> None:
    """The picture of both matrices."""
    axes = cosines.rename_axis("task vector").rename_axis("task vector", axis="columns")
    plots.matrices(
        plots.Heatmap(means, "C-index", 0.5, f"Unchanged model, mean of {num_folds} folds"),
        plots.Heatmap(axes, "cosine", None, "Similarity of task vectors"),
        workdir / PICTURE,
        "Zero-shot transfer",
    )


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
    cli.define_path("workdir", None, "Where the tables and the picture go.")
    cli.app_run(main, required=("config", "workdir"))
