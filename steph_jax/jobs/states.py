"""What has become of runs: one table, from what is on disk and what Slurm knows."""

import pathlib
import shutil
from collections.abc import Sequence
from typing import NamedTuple

from steph_jax import run_directory
from steph_jax.jobs import slurm


class Work(NamedTuple):
    """What a job does.

    Attributes:
        name: of the job.
        directory: of the run.
        folds: numbers.
        is_summarized: whether nothing is left to do when all folds are finished.
    """

    name: str
    directory: pathlib.Path
    folds: Sequence[int]
    is_summarized: bool = True


def finished_folds(directory: pathlib.Path, folds: Sequence[int]) -> int:
    """How many folds of a run are done."""
    directories = (run_directory.fold_directory(directory, fold) for fold in folds)
    return sum(map(run_directory.is_finished, directories))


def table(works: Sequence[Work], jobs: pathlib.Path) -> str:
    """A line for each job: finished folds, and what it is doing; and one for what comes last.

    Args:
        works: in the order of the lines.
        jobs: folder that jobs are submitted from.
    """
    ids = slurm.job_ids(jobs)
    known = slurm.queued(ids.values()) if ids and shutil.which("squeue") else {}
    states = {
        name: f"{known[job_id].lower()} (Slurm job {job_id})"
        for name, job_id in ids.items()
        if job_id in known
    }
    names = [work.name for work in works]
    last = [name for name in states if name not in names]
    width = max(map(len, [*names, *last, "run"]))
    lines = [f"{'run':{width}}  folds  state"]
    for work in works:
        number = finished_folds(work.directory, work.folds)
        directories = (run_directory.fold_directory(work.directory, fold) for fold in work.folds)
        if number == len(work.folds) and work.is_summarized:
            state = "finished"
        elif work.name in states:
            state = states[work.name]
        elif number or any(path.is_dir() for path in directories):
            state = "begun"
        else:
            state = "not begun"
        lines.append(f"{work.name:{width}}  {f'{number}/{len(work.folds)}':>5}  {state}")
    lines += [f"{name:{width}}  {'':5}  {states[name]}" for name in last]
    return "\n".join(lines)
