"""Real patients for the experiments beside this file: bags of RNA-seq, and a pool of models."""

import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags, logging

from steph_jax import cli, convert
from steph_jax.training.config import as_dict

#: Cohorts that the experiments are about; the others are their sources.
TARGETS = ("tcga_gbmlgg", "tcga_kirc")


def prepare(shared: pathlib.Path, out: pathlib.Path, cohorts: Sequence[str]) -> None:
    """Builds the bags of some cohorts and imports the pool of PyTorch checkpoints, once.

    Args:
        shared: folder with tcga_rna/ and parity/.
        out: gets features/{cohort} and pool/.
        cohorts: whose bags are needed.

    Raises:
        ValueError: `shared` is another folder, has no such cohort, or the pool cannot be imported.
    """
    script = shared / "tcga_rna" / "make_bags.py"
    if not script.is_file():
        raise ValueError(
            f"{shared}: expected tcga_rna/ and parity/ there; name the folder by --shared"
        )
    unknown = sorted(set(cohorts) - set(all_cohorts(shared)))
    if unknown:
        raise ValueError(
            f"{script.parent}: no cohort {', '.join(unknown)}; there are "
            f"{', '.join(all_cohorts(shared))}"
        )
    for cohort in cohorts:
        done = out / "features" / cohort / ".complete"
        if not done.is_file():
            subprocess.run([sys.executable, script, out / "features", cohort], check=True)
            done.touch()
    done = out / "pool" / ".complete"
    if not done.is_file():
        if convert.main([str(shared / "parity" / "result"), "--out", str(out / "pool")]):
            raise ValueError("the pool could not be imported; see above")
        done.touch()


def all_cohorts(shared: pathlib.Path) -> list[str]:
    """Cohorts of which there is data."""
    return sorted(path.name for path in (shared / "tcga_rna").glob("tcga_*") if path.is_dir())


def app_run(main: Callable[[], int], out: str, cohorts: Sequence[str]) -> None:
    """Runs a script with the flags that all of these have.

    Args:
        main: the script.
        out: where it writes, by default.
        cohorts: its targets, by default.
    """
    flags.DEFINE_string("shared", "../shared", "Folder with tcga_rna/ and parity/.")
    flags.DEFINE_string("out", out, "Where everything is written.")
    flags.DEFINE_list("cohorts", cohorts, "Target cohorts.")
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
    config.eval_every = 5
    return as_dict(config)
