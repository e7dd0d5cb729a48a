"""What has become of runs: one table, from what is on disk and what Slurm knows."""

import pathlib
import shutil
from collections.abc import Mapping, Sequence

from steph_jax import run_directory
from steph_jax.jobs import launch


def finished_folds(directory: pathlib.Path, folds: Sequence[int]) -> int:
    """How many folds of a run are done."""
    directories = (run_directory.fold_directory(directory, fold) for fold in folds)
    return sum(map(run_directory.is_finished, directories))


def table(runs: Mapping[str, pathlib.Path], folds: Sequence[int], jobs: pathlib.Path) -> str:
    """A line for each run: finished folds, and what it is doing.

    Args:
        runs: their directories, by name.
        folds: that each is to have.
        jobs: folder that jobs are submitted from.
    """
    ids = launch.job_ids(jobs)
    known = launch.queued(ids.values()) if ids and shutil.which("squeue") else {}
    width = max(map(len, [*runs, "run"]))
    lines = [f"{'run':{width}}  folds  state"]
    for name, directory in runs.items():
        number = finished_folds(directory, folds)
        waiting = known.get(ids.get(name, ""), "")
        if number == len(folds) and run_directory.is_summarized(directory, folds):
            state = "finished"
        elif waiting:
            state = f"{waiting.lower()} (Slurm job {ids[name]})"
        elif number or any(directory.glob("fold_*")):
            state = "begun"
        else:
            state = "not begun"
        lines.append(f"{name:{width}}  {f'{number}/{len(folds)}':>5}  {state}")
    return "\n".join(lines)
