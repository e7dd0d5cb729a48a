"""Starts runs as jobs and waits for them; submitit (extra `jobs`) does the starting.

A job is one call with all folds of a run, or with one fold (`Job`). Runs keep what they have done
on disk, epoch by epoch, so nothing has to come back through the launcher: a job that a cluster
preempts or that runs out of time is queued again and goes on, and the same command, given again,
finds what is finished, waits for what is running and starts the rest.

    local    as many jobs at a time as asked for, a GPU of its own for each where there are any
    slurm    arrays of jobs; `options` are those of sbatch
"""

import pathlib
import time
from collections.abc import Sequence
from typing import Any

from absl import logging

from steph_jax import files
from steph_jax.hosts.discovery import visible_gpus
from steph_jax.jobs import slurm
from steph_jax.jobs.job import Job, Launcher
from steph_jax.jobs.outcomes import failure_of
from steph_jax.jobs.process import JobProcess, submitit

LAUNCHERS = ("here", "local", "slurm")
#: Where jobs have their scripts and logs, below --workdir.
JOBS = "jobs"
#: Seconds between two looks at the jobs.
_INTERVAL = 0.5
_NO_LIMIT_MINUTES = 10**7


def run(stages: Sequence[Sequence[Job]], launcher: Launcher, last: Job | None = None) -> bool:
    """Runs jobs.

    Args:
        stages: each begins when all jobs of the one before have succeeded.
        launcher: where.
        last: what to do when all have ended; a job of its own on a cluster only.

    Returns:
        whether `last` has been done, or will be.

    Raises:
        ValueError: submitit or Slurm is not there; a job failed: names it, why, and its log. The
            others of its stage are waited for all the same.
    """
    jobs = [job for stage in stages for job in stage]
    if not jobs:
        return False
    submitit()
    files.check_output_folder(launcher.folder)
    with files.writing(launcher.folder):
        launcher.folder.mkdir(parents=True, exist_ok=True)
    if launcher.kind == "slurm":
        submitted = slurm.submit(stages, last, launcher)
        if not launcher.waits:
            return last is not None
        failures = slurm.wait(submitted)
    else:
        failures = []
        for stage in stages:
            failures = failures or _run_here(stage, launcher)
    # What comes last has failed for the same reason.
    others = [line for line in failures if last is None or not line.startswith(f"{last.name}: ")]
    failures = others or failures
    if failures:
        raise ValueError(
            f"{len(failures)} of {len(jobs)} jobs failed; the same command goes on with them\n  "
            + "\n  ".join(failures)
        )
    return launcher.kind == "slurm" and last is not None


def parse_options(text: str) -> dict[str, str]:
    """Options of sbatch from NAME=VALUE,NAME=VALUE; values may hold "=" and ":".

    Raises:
        ValueError: a part without a value; a time that is no number of minutes.
    """
    options = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not name.strip("- ") or not value:
            raise ValueError(
                f"--slurm: expected options of sbatch as partition=gpu,time=240; found {part!r}"
            )
        options[name.strip("- ").replace("_", "-")] = value
    if not options.get("time", "1").isdecimal():
        raise ValueError(f"--slurm: time is in minutes, a whole number; found {options['time']}")
    return options


def _run_here(jobs: Sequence[Job], launcher: Launcher) -> list[str]:
    """Runs jobs on this machine; returns a line for each that failed."""
    gpus = visible_gpus()
    slots = list(range(launcher.number or len(gpus) or 1))
    waiting, running, failures = list(jobs), dict[int, tuple[Job, Any]](), list[str]()
    try:
        while waiting or running:
            for slot in slots:
                if slot in running or not waiting:
                    continue
                executor = submitit().LocalExecutor(folder=launcher.folder)
                executor.update_parameters(timeout_min=_NO_LIMIT_MINUTES)
                if gpus:
                    gpu = gpus[slot % len(gpus)]
                    executor.update_parameters(gpus_per_node=1, visible_gpus=(gpu,))
                job = waiting.pop(0)
                running[slot] = job, executor.submit(JobProcess(job.call))
                logging.info("%s: started, %d wait", job.name, len(waiting))
            time.sleep(_INTERVAL)
            for slot, (job, submitted) in list(running.items()):
                if submitted.done():
                    del running[slot]
                    failures += failure_of(job.name, submitted)
    finally:
        for _, submitted in running.values():
            submitted.cancel()
    return failures


def chosen(
    kind: str, number: int, folder: pathlib.Path, options: str, waits: bool = True
) -> Launcher | None:
    """The launcher that flags name; None to run here, one after the other.

    Raises:
        ValueError: a number of jobs below 0; options of a launcher that has none.
    """
    if number < 0:
        raise ValueError(f"--jobs is a number of jobs at a time; found {number}")
    if kind == "here" and number > 1:
        raise ValueError("--jobs needs --launcher local or slurm")
    if options and kind != "slurm":
        raise ValueError("--slurm needs --launcher slurm")
    if not waits and kind != "slurm":
        raise ValueError("--nowait needs --launcher slurm")
    if kind == "here":
        return None
    return Launcher(kind, number, folder, parse_options(options), waits)
