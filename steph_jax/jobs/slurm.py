"""Jobs on a Slurm cluster: arrays that wait for each other, and what has become of them."""

import pathlib
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import logging

from steph_jax import files, records
from steph_jax.jobs.job import Job, Launcher
from steph_jax.jobs.outcomes import failure_of
from steph_jax.jobs.process import JobProcess, submitit

SUBMITTED = "submitted.json"
#: Seconds between two looks at the jobs, and after which one that Slurm has forgotten has ended.
_INTERVAL, _GRACE = 2.0, 20.0
_DEFAULT_MINUTES = 24 * 60
_IDS = records.mapping(records.TEXT)


def submit(stages: Sequence[Sequence[Job]], last: Job | None, launcher: Launcher) -> dict[str, Any]:
    """Submits those jobs that Slurm does not have from an earlier call.

    Args:
        stages: each an array, which begins when all jobs of the one before have succeeded.
        last: is done when all others have ended, however they have; submitted if any of them is.
        launcher: options and folder.

    Returns:
        submitit's job by name, in order.

    Raises:
        ValueError: this machine has no Slurm.
    """
    for program in ("sbatch", "squeue"):
        if shutil.which(program) is None:
            raise ValueError(
                f"--launcher slurm: {program} is not on this machine; give the command on a login "
                "node of the cluster, or --print for a script to submit there"
            )
    every = [job for stage in stages for job in stage]
    known = _known([*every, *([last] if last else [])], launcher.folder)
    submitted: dict[str, Any] = {}
    needs: list[str] = []
    for stage in stages:
        new = [job for job in stage if job.name not in known]
        new_jobs = _array(new, launcher, "afterok", needs)
        for job in stage:
            submitted[job.name] = known.get(job.name) or new_jobs[job.name]
        needs = [submitted[job.name].job_id for job in stage]
    if last is None or not every:
        return submitted
    if last.name in known:
        if all(job.name in known for job in every):
            return submitted | {last.name: known[last.name]}
        known[last.name].cancel()  # it would not wait for the new ones
    ids = [job.job_id for job in submitted.values()]
    return submitted | _array([last], launcher, "afterany", ids)


def _array(
    jobs: Sequence[Job], launcher: Launcher, kind: str, needs: Sequence[str]
) -> dict[str, Any]:
    """Submits jobs as one array, below what a user may have queued; notes and returns them."""
    if not jobs:
        return {}
    executor = submitit().SlurmExecutor(folder=launcher.folder)
    options = dict(launcher.options)
    minutes = int(options.pop("time", _DEFAULT_MINUTES))
    if needs:
        options |= {"dependency": ":".join([kind, *needs]), "kill-on-invalid-dep": "yes"}
    executor.update_parameters(
        job_name="steph_jax",
        array_parallelism=launcher.number or len(jobs),
        additional_parameters={"requeue": True, **options},
        time=minutes,
        stderr_to_stdout=True,
    )
    with executor.batch():
        submitted = {job.name: executor.submit(JobProcess(job.call)) for job in jobs}
    ids = {name: str(job.job_id) for name, job in submitted.items()}
    files.write_json(launcher.folder / SUBMITTED, job_ids(launcher.folder) | ids)
    logging.info("submitted to Slurm: %s", ", ".join(f"{n} {i}" for n, i in ids.items()))
    return submitted


def wait(submitted: Mapping[str, Any]) -> list[str]:
    """Waits for jobs; returns a line for each that failed."""
    waiting, failures = dict(submitted), list[str]()
    missing_since: dict[str, float] = {}
    states: dict[str, str] = {}
    while waiting:
        queue = queued(job.job_id for job in waiting.values())
        for name, job in list(waiting.items()):
            state = queue.get(str(job.job_id))
            if state is not None:
                missing_since.pop(name, None)
                if states.get(name) != state:
                    states[name] = state
                    logging.info("%s: %s (job %s)", name, state.lower(), job.job_id)
                continue
            since = missing_since.setdefault(name, time.monotonic())
            if job.paths.result_pickle.exists() or time.monotonic() - since >= _GRACE:
                del waiting[name]
                failures += failure_of(name, job)
        if waiting:
            time.sleep(_INTERVAL)
    return failures


def queued(ids: Iterable[str]) -> dict[str, str]:
    """States by id of those jobs that Slurm knows as waiting or running.

    Raises:
        ValueError: Slurm does not answer.
    """
    wanted = set(map(str, ids))
    command = ["squeue", "--noheader", "--array", "--format=%F_%K %A %T", "--me"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise ValueError(f"squeue: {answer.stderr.strip()}; is SLURM_CONF right?")
    states = {}
    for line in answer.stdout.splitlines():
        array_id, plain_id, state = line.split()
        for name in (array_id, plain_id):
            if name in wanted:
                states[name] = state
    return states


def _known(jobs: Sequence[Job], folder: pathlib.Path) -> dict[str, Any]:
    """Jobs of an earlier call that Slurm still has, by name."""
    ids = job_ids(folder)
    states = queued(ids[job.name] for job in jobs if job.name in ids)
    return {
        job.name: submitit().SlurmJob(folder, ids[job.name])
        for job in jobs
        if ids.get(job.name) in states
    }


def job_ids(folder: pathlib.Path) -> dict[str, str]:
    """Slurm's ids of the jobs that were submitted from this folder, by name."""
    path = folder / SUBMITTED
    if not path.exists():
        return {}
    ids: dict[str, str] = records.read(path, _IDS, "ids of jobs", f"remove {path}")
    return ids
