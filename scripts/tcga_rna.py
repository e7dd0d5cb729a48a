"""Real patients for the experiments of this folder: bags of RNA-seq, and a pool of models.

docs/results.md says where the data come from, and how their folder is laid out. Each gene is ranked
within each cohort over all its patients, test patients included.
"""

import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from absl import flags, logging

from steph_jax import cli, convert, files
from steph_jax.data.features.hdf5 import write_hdf5
from steph_jax.training.config import as_dict

#: Cohorts that the experiments are about; the others are their sources.
TARGETS = ("tcga_gbmlgg", "tcga_kirc")
#: D of UNI2-h.
FEATURE_DIM = 1536


def prepare(shared: pathlib.Path, out: pathlib.Path, cohorts: Sequence[str]) -> None:
    """Builds the bags of some cohorts and imports the pool of PyTorch checkpoints, once.

    Args:
        shared: folder with tcga_rna/ and parity/.
        out: gets features/{cohort} and pool/.
        cohorts: whose bags are needed.

    Raises:
        ValueError: `shared` is another folder, has no such cohort, or the pool cannot be imported.
    """
    home = shared / "tcga_rna"
    if not (home / "pathways.npz").is_file():
        raise ValueError(
            f"{shared}: expected tcga_rna/ and parity/ there (docs/results.md, Data); name the "
            "folder by --shared"
        )
    unknown = sorted(set(cohorts) - set(all_cohorts(shared)))
    if unknown:
        raise ValueError(
            f"{home}: no cohort {', '.join(unknown)}; there are {', '.join(all_cohorts(shared))}"
        )
    for cohort in cohorts:
        complete = out / "features" / cohort / ".complete"
        if not complete.is_file():
            write_bags(home, cohort, complete.parent)
            complete.touch()
    complete = out / "pool" / ".complete"
    if not complete.is_file():
        if convert.main([str(shared / "parity" / "result"), "--out", str(out / "pool")]):
            raise ValueError("the pool could not be imported; see above")
        complete.touch()


def bag_of_profile(profile: np.ndarray, member: np.ndarray) -> np.ndarray:
    """A bag in the shape of UNI2-h features from a gene expression profile.

        x_n = sqrt(G / |genes of pathway n|) * member_n * profile,   padded with 0 to 1536

    so that the instances, one per pathway, have norms of one order.

    Args:
        profile: [G] expression of one patient, G at most `FEATURE_DIM`.
        member: [N, G] True where a gene belongs to a pathway; each has one at least.

    Returns:
        [N, 1536] float32.
    """
    num_genes = member.shape[1]
    scale = np.sqrt(num_genes / member.sum(axis=1, keepdims=True)).astype(np.float32)
    bag = np.zeros((len(member), FEATURE_DIM), np.float32)
    bag[:, :num_genes] = member * scale * profile.astype(np.float32)
    return bag


def write_bags(home: pathlib.Path, cohort: str, folder: pathlib.Path) -> None:
    """Writes a cohort's bags as HDF5 files; instances are dealt to a patient's slides in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    with np.load(home / "pathways.npz") as pathways:
        member = pathways["member"]
    with np.load(home / cohort / "expression.npz") as expression:
        profiles = dict(zip(expression["patient_id"], expression["rna"], strict=True))
    table = pd.read_csv(home / cohort / f"{cohort}_survival.csv", dtype=str)
    for patient, slides in table.groupby("patient_id")["pathology_id"]:
        bag = bag_of_profile(profiles[patient], member)
        for i, slide in enumerate(sorted(slides)):
            rows = np.arange(i, len(bag), len(slides))
            # A made-up grid: molecular data have no place on a slide.
            coords = np.stack([rows % 10, rows // 10], axis=1).astype(np.int32) * 256
            path = folder / f"{slide}.h5"
            temporary = files.hidden_name(path)
            write_hdf5(temporary, bag[rows], coords)
            temporary.replace(path)


def all_cohorts(shared: pathlib.Path) -> list[str]:
    """Cohorts with data in the folder."""
    return sorted(path.name for path in (shared / "tcga_rna").glob("tcga_*") if path.is_dir())


def app_run(main: Callable[[], int], out: str, cohorts: Sequence[str]) -> None:
    """Runs a script with the flags that all of these have.

    Args:
        main: the script.
        out: where it writes, by default.
        cohorts: its targets, by default.
    """
    flags.DEFINE_string(
        "shared", "../shared", "Folder with tcga_rna/ and parity/; see docs/results.md."
    )
    flags.DEFINE_string("out", out, "Where everything is written.")
    flags.DEFINE_list("cohorts", list(cohorts), "Target cohorts.")
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    logging.set_verbosity(logging.INFO)
    cli.app_run(main)


def config_of(
    cohort: str, method: str, seed: int, shared: pathlib.Path, out: pathlib.Path
) -> dict[str, Any]:
    """Settings of the paper for a cohort, a method and a seed."""
    from configs import default

    config = default.get_config()
    config.dataset, config.method, config.seed = cohort, method, seed
    config.data.root = str(shared / "tcga_rna")
    config.data.features = str(out / "features" / "{dataset}")
    config.pool.root = str(out / "pool")
    return as_dict(config)
